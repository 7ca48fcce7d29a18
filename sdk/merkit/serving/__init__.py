"""A bundle on Triton: rendering its deployment, running its steps, starting a server."""

from merkit.serving.foreground import serve
from merkit.serving.server import ServeOptions, Server

__all__ = ["ServeOptions", "Server", "serve"]
