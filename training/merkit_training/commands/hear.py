"""`merkit-train hear`: measures the chain of recognition, separation and punctuation in noise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "hear",
        help="measure recognition, separation and the chain of both in noise",
        description="Train every row of a study under every seed, measure it, print a page.",
        epilog="Interrupted, the same command continues.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="training/studies/hearing.toml")
    parser.add_argument("--corpus", type=Path, required=True, help="with clips of all splits")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for all rows")
    parser.add_argument(
        "--model", type=Path, metavar="BUNDLE_OR_RUN", help="tells emotion behind the chain"
    )
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: the study's")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="seeds at a time")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--only-page", action="store_true", help="train and measure nothing more")
    parser.set_defaults(command=_hear)


def _hear(arguments: argparse.Namespace) -> None:
    from merkit_training.speech.hearing.plan import read_hearing

    study = read_hearing(arguments.study)
    seeds = arguments.seeds or list(range(study.seeds))
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise InvalidInputError(f"--seeds are {seeds}", "different numbers that are not negative")
    if arguments.workers < 1:
        raise InvalidInputError(f"--workers is {arguments.workers}", "at least 1")
    for path, what in ((arguments.corpus, "corpus"), (arguments.model, "model")):
        if path is not None and not path.is_dir():
            raise InvalidInputError(f"there is no {what} at {path}", "a folder", "correct the path")
    from merkit_training.labels import classes_of
    from merkit_training.runs import write_bytes
    from merkit_training.speech.hearing.cells import Hearing, run_hearing
    from merkit_training.speech.hearing.page import hearing_page

    hearing = Hearing(study, arguments.corpus, arguments.out, arguments.model)
    if not arguments.only_page:
        run_hearing(hearing, seeds, arguments.workers)
    page = hearing_page(hearing, seeds, len(classes_of(arguments.corpus)))
    if arguments.page is None:
        print(page, end="")
        return
    write_bytes(arguments.page, page.encode())
    print(f"the page is at {arguments.page}")
