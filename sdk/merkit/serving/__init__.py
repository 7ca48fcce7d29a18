"""A bundle on Triton: rendering its deployment, running its steps, starting a server."""

from merkit.serving.server import ServeOptions, Server, serve

__all__ = ["ServeOptions", "Server", "serve"]
