"""The command line: `merkit predict | serve | inspect | verify`."""

from merkit.cli.commands import main

__all__ = ["main"]
