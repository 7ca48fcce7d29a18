"""The options of commands that ask a server over TLS or with a token."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit.backends.security import Security


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `security` reads."""
    group = parser.add_argument_group("a server that is protected (--url grpcs://...)")
    group.add_argument("--ca", type=Path, metavar="FILE", help="authorities to trust")
    group.add_argument("--cert", type=Path, metavar="FILE", help="this client's certificate")
    group.add_argument("--key", type=Path, metavar="FILE", help="its private key")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="the token to send")


def given(args: argparse.Namespace) -> bool:
    """Whether any of the options was."""
    return any((args.ca, args.cert, args.key, args.token_file))


def security(args: argparse.Namespace) -> Security:
    """What the options say; the token's file is read again before each call, as it may change."""
    from merkit.backends.security import Security

    path: Path | None = args.token_file
    return Security(args.ca, args.cert, args.key, (lambda: read_secret(path)) if path else None)


def read_secret(path: Path) -> str:
    """What a file of a token or key says; InvalidInputError where it cannot be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"the file {path} cannot be read ({error})", "a text file", "correct the path"
        ) from None
