"""`merkit lint`: what is wrong with a Triton model repository, found without a server."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit.lint import Finding, Report


def add(commands: Any, say: Callable[[str], None]) -> None:
    """Adds the command, which prints with `say`."""
    parser = commands.add_parser(
        "lint",
        help="find what Triton would reject or do badly in a model repository",
        description="Reads a Triton model repository, of merkit's making or anybody's, and names "
        "what the server would reject (errors) or silently do badly (warnings).",
        epilog="Exit status: 1 when there is an error, else 0.",
    )
    parser.add_argument("repository", type=Path, nargs="?", metavar="REPO")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings, too")
    parser.add_argument("--server-version", metavar="YY.MM", help="release of the server, as 24.10")
    parser.add_argument("--server-args", metavar="ARGS", help="tritonserver's flags, in quotes")
    parser.add_argument("--env", type=Path, metavar="DIR", help="environment of Python models")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs of the host")
    parser.add_argument(
        "--backend", action="append", default=[], metavar="NAME", help="a further backend"
    )
    parser.add_argument("--rules", action="store_true", help="list the rules and their sources")
    parser.set_defaults(run=lambda args, parser: _lint(args, parser, say))


def _lint(
    args: argparse.Namespace, parser: argparse.ArgumentParser, say: Callable[[str], None]
) -> int:
    from merkit.lint import RULES, Options, lint, server_arguments, server_version

    if args.rules:
        for rule in RULES.values():
            say(f"{rule.severity:<8} {rule.id:<22} {rule.says}\n{'':<32}({rule.source})")
        return 0
    if args.repository is None:
        parser.error("merkit lint needs a REPO, or --rules")
    if args.gpus is not None and args.gpus < 0:
        raise InvalidInputError(f"--gpus {args.gpus}", "0 or more", "count the host's GPUs")
    if args.env is not None and not args.env.is_dir():
        found = f"there is no folder {args.env}"
        raise InvalidInputError(found, "a Python environment", "check --env")
    options = Options(
        server_version=server_version(args.server_version) if args.server_version else None,
        server_args=server_arguments(args.server_args) if args.server_args is not None else None,
        gpus=args.gpus,
        environment=args.env,
        backends=frozenset(args.backend),
    )
    report = lint(args.repository, options)
    if args.json:
        say(json.dumps(report.to_json(), indent=1))
    else:
        for line in _lines(report):
            say(line)
    return int(bool(report.errors) or (args.strict and not report.clean))


def _lines(report: Report) -> Iterator[str]:
    for finding in report.findings:
        yield from _told(finding)
    yield from (f"skipped  {sentence}" for sentence in report.skipped)
    counts = Counter(finding.severity for finding in report.findings)
    errors, warnings = counts["error"], counts["warning"]
    yield f"{len(report.models)} models: {errors} errors, {warnings} warnings"


def _told(finding: Finding) -> Iterator[str]:
    from merkit.cli.table import printable  # needs numpy, which --version must not wait for

    place = ": ".join(part for part in (finding.model, finding.field) if part) or "repository"
    yield printable(f"{finding.severity:<8} {place}: {finding.found} [{finding.rule}]")
    yield printable(f"{'':<8} {finding.action}")
    yield printable(f"{'':<8} ({finding.source})")
