"""Lint for Triton model repositories: what the server would reject or silently do badly.

A server names one problem at a time, in its own words, after minutes of loading, and only those
it refuses. This reads the same files without a server and names them all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from merkit.errors import InvalidInputError
from merkit.lint import (
    batching,
    bundles,
    config,
    ensembles,
    environment,
    files,
    graphs,
    plans,
    sequences,
    warmup,
)
from merkit.lint.findings import RULES, SEVERITIES, Finding, Report, Rule, Skip
from merkit.lint.options import UNKNOWN_SERVER, Options, server_arguments, server_version
from merkit.lint.repository import Repository, read_repository

__all__ = [
    "RULES",
    "Finding",
    "Options",
    "Report",
    "Rule",
    "lint",
    "refuse_errors",
    "server_arguments",
    "server_version",
]

Check = Callable[[Repository, Options, Skip], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    files.check,
    config.check,
    batching.check,
    sequences.check,
    warmup.check,
    graphs.check,
    plans.check,
    ensembles.check,  # after its models: a fault of theirs shows in each ensemble over them
    bundles.check,
    environment.check,
)


def lint(repository: str | os.PathLike[str], options: Options = UNKNOWN_SERVER) -> Report:
    """Everything that is wrong with a model repository, found without a server.

    Args:
        repository: its folder, of merkit's making or anybody's.
        options: what is known about the server.

    Raises:
        InvalidInputError: there is no such folder, or it is no repository.
        MissingExtraError: tritonclient, which holds the config's schema, is not installed.
    """
    read = read_repository(Path(repository))
    skipped: list[str] = []
    found = [f for check in CHECKS for f in check(read, options, skipped.append)]
    found.sort(key=lambda f: SEVERITIES.index(f.severity))  # stable: else in the rules' order
    return Report(tuple(dict.fromkeys(found)), tuple(read.models), tuple(skipped))


def refuse_errors(repository: str | os.PathLike[str], options: Options = UNKNOWN_SERVER) -> Report:
    """The report of a repository without errors; InvalidInputError names the first of others."""
    report = lint(repository, options)
    if report.errors:
        first, more = report.errors[0], len(report.errors) - 1
        place = "/".join(part for part in (first.model, first.field) if part)
        others = f" and {more} more" if more else ""
        raise InvalidInputError(
            f"Triton would refuse {repository}: {place}: {first.found} [{first.rule}]{others}",
            "a repository that loads",
            f"{first.action}; merkit lint lists every finding",
        )
    return report
