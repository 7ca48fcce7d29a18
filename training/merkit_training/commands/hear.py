"""`merkit-train hear`: measures the chain of recognition, separation and punctuation in noise."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import check_corpus, check_counts, check_seeds, give_page

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
    check_seeds(seeds)
    check_counts(arguments, "workers")
    check_corpus(arguments.corpus)
    if arguments.model is not None and not arguments.model.is_dir():
        found = f"there is no model at {arguments.model}"
        raise InvalidInputError(found, "a folder", "correct the path")
    from merkit_training.labels import classes_of
    from merkit_training.speech.hearing.cells import Hearing, run_hearing
    from merkit_training.speech.hearing.page import hearing_page

    hearing = Hearing(study, arguments.corpus, arguments.out, arguments.model)
    if not arguments.only_page:
        run_hearing(hearing, seeds, arguments.workers)
    page = hearing_page(hearing, seeds, len(classes_of(arguments.corpus)))
    give_page(page, arguments.page)
