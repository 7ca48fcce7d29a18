"""`merkit-export keygen`: a key pair to sign bundles with."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "keygen",
        help="make a key pair to sign bundles with",
        description="Writes KEY, the private key (readable to its owner alone), and KEY.pub, the "
        "public key, which hosts that check signatures need.",
    )
    parser.add_argument("key", type=Path, metavar="KEY", help="the private key's file; new")
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="encrypt the key with its first line"
    )
    parser.set_defaults(command=_keygen)


def _keygen(args: argparse.Namespace) -> int:
    from merkit.signing import generate_keys

    public, name = generate_keys(args.key, read_password(args.password_file))
    print(f"{args.key}: private key {name}, keep it secret; {public}: public key, give it to hosts")
    return 0


def read_password(path: Path | None) -> bytes | None:
    """The first line of a file; command lines and environments are read by others."""
    if path is None:
        return None
    lines = path.read_bytes().splitlines()
    return lines[0] if lines else b""
