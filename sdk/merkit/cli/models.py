"""`merkit models`: which bundles a running server has, and loading and unloading them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from merkit.cli import access


def add(commands: Any, say: Callable[[str], None]) -> None:
    """Adds the command, which prints with `say`."""
    models = commands.add_parser(
        "models",
        help="list, load and unload a server's bundles",
        description="Lists, loads and unloads the bundles in the repository of a server with "
        "explicit model control (merkit serve --model-control explicit --admin-key-file FILE).",
    )
    actions = models.add_subparsers(title="actions", required=True, metavar="ACTION")
    for name, words in (
        ("list", "show bundles and whether they answer"),
        ("load", "load a bundle; what it shares with others stays as it is"),
        ("unload", "unload a bundle after its last answer; what others need stays"),
    ):
        action = actions.add_parser(name, help=words)
        if name != "list":
            action.add_argument(
                "bundle",
                nargs="?",
                metavar="ID",
                help="first 8 digits of its bundle_id; default: the one with plain names",
            )
        action.add_argument("--url", required=True, metavar="URL", help="grpc://HOST:PORT")
        action.add_argument("--admin-key-file", type=Path, metavar="FILE", help="the server's")
        access.add_options(action)
        action.set_defaults(run=lambda args, _parser, name=name: _run(name, args, say))


def _run(action: str, args: argparse.Namespace, say: Callable[[str], None]) -> int:
    from merkit.serving.control import ModelControl

    key = access.read_secret(args.admin_key_file) if args.admin_key_file else None
    with ModelControl(args.url, key, access.security(args)) as control:
        one = {"load": control.load, "unload": control.unload}.get(action)
        found = [one(args.bundle)] if one else control.bundles()
        for bundle in found:
            state = f"{len(bundle.ready)} of {len(bundle.entries)} entry points ready"
            say(f"{bundle.digits or '(plain names)'}  {state}")
        if not found:
            say("no bundles")
    return 0
