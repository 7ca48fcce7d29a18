"""`merkit-export sign`: vouch for a bundle's content with a key."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from merkit_export.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "sign",
        help="sign a bundle's content",
        description="Adds a signature over the manifest, which hashes all content, to bundle.sig. "
        "Deployment files are not covered: hosts render their own.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "--key", type=Path, required=True, metavar="KEY", help="of merkit-export keygen"
    )
    parser.add_argument(
        "--password-file", type=Path, metavar="FILE", help="its first line opens the key"
    )
    parser.add_argument(
        "--unreleasable", action="store_true", help="sign although the bundle failed its gate"
    )
    parser.set_defaults(command=_sign)


def _sign(args: argparse.Namespace) -> int:
    from merkit.admission import releasable
    from merkit.bundle import SIGNATURES, open_bundle
    from merkit.errors import UnreleasableBundleError
    from merkit.signing import read_signatures, sign
    from merkit_export.commands.keygen import read_password

    bundle = open_bundle(args.bundle)
    if not releasable(bundle) and not args.unreleasable:
        raise UnreleasableBundleError(
            f"{bundle.root} failed its gate",
            "a bundle that passed it",
            "export it again, or sign it all the same with --unreleasable",
        )
    made = sign(bundle, args.key, read_password(args.password_file))
    names = ", ".join(signature.key_id for signature in read_signatures(bundle))
    print(f"{bundle.root / SIGNATURES}: signed by {made.key_id}; signatures: {names}")
    return 0
