"""`merkit-export`: builds a bundle from a run, verifies it against the run, renders it.

Heavy imports wait until a command needs them, so that `--help` and a mistyped path answer at
once. The commands themselves are in `merkit_export.commands`. Exit status: 0 when all went well,
1 when a verification failed, 2 for an error or a wrong command line, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from merkit import __version__
from merkit.errors import MerkitError
from merkit_export.commands import add_all, check_reports

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = args.command
    try:
        check_reports(args)
        return command(args)
    except MerkitError as error:
        print(f"merkit-export: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"merkit-export: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("merkit-export: interrupted", file=sys.stderr)
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merkit-export", description="Turn a training run into a bundle, and prove it."
    )
    parser.add_argument("--version", action="version", version=f"merkit-export {__version__}")
    add_all(parser.add_subparsers(title="commands", required=True, metavar="COMMAND"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
