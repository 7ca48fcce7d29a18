"""`merkit-train study`: repeats a comparison of the seed over seeds and writes its page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit_training.commands.common import check_corpus, check_counts, check_seeds, give_page

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "study",
        help="compare variants of a recipe over seeds",
        description="Train every row of a study under every seed, measure it, print its page.",
    )
    parser.add_argument("study", type=Path, metavar="STUDY", help="such as training/studies/*.toml")
    parser.add_argument("--corpus", type=Path, required=True, help="with clips of all splits")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for all cells")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="default: the study's")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="cells at a time")
    parser.add_argument("--page", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("--only-page", action="store_true", help="train nothing more")
    parser.set_defaults(command=_study)


def _study(arguments: argparse.Namespace) -> None:
    from merkit_training.studies.plan import read_study

    study = read_study(arguments.study)
    seeds = arguments.seeds or list(range(study.seeds))
    check_seeds(seeds)
    check_counts(arguments, "workers")
    check_corpus(arguments.corpus)
    from merkit_training.labels import classes_of
    from merkit_training.studies.cells import cells_of, run_study
    from merkit_training.studies.page import study_page

    out = arguments.out / study.name
    cells = cells_of(study, arguments.corpus, out, seeds)
    if not arguments.only_page:
        run_study(cells, arguments.workers)
    page = study_page(study, cells, len(classes_of(arguments.corpus)))
    give_page(page, arguments.page)
