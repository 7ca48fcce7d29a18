"""`merkit-train mine`: learners of a run label an unlabelled pool and learn from it (seed 2.5)."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError

if TYPE_CHECKING:
    from merkit_training.commands import Commands

EPILOG = (
    "Writes DIR/report.md, report.json and report.svg, every round's decisions, and DIR/run, which "
    "merkit-export build takes. Interrupted, the same command continues; with a larger --rounds it "
    "goes further."
)


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "mine",
        help="learn from unlabelled clips that the learners agree on",
        description="Vote on a pool, adopt what enough learners agree on, train again, repeat.",
        epilog=EPILOG,
    )
    parser.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a finished run")
    parser.add_argument(
        "--pool",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="features, or a corpus with clips/unlabelled, or the feature folders of a run of "
        "`fuse`; several make one pool",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="for all results")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the first (default: 0)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="loops (default: 1)")
    parser.add_argument(
        "--truth", type=Path, nargs="+", default=(), metavar="FILE", help="labels, for the report"
    )
    parser.add_argument(
        "--half", action="store_true", help="keep extracted features in half precision"
    )
    parser.add_argument("--trace", metavar="CLIP", help="print what became of a clip, and no more")
    _add_options(parser)
    parser.set_defaults(command=_mine)


def _add_options(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("beyond the seed's loop, all off by default")
    how.add_argument("--agree", type=int, default=3, metavar="N", help="learners (default: 3)")
    how.add_argument(
        "--transductive", action="store_true", help="leave test clips that the pool holds there"
    )
    how.add_argument(
        "--labels", type=int, default=0, metavar="N", help="train on N labelled clips only"
    )
    how.add_argument(
        "--confidence", type=float, default=0.0, metavar="P", help="least mean probability"
    )
    how.add_argument(
        "--per-class", type=int, default=0, metavar="N", help="clips of a class a round, at most"
    )
    how.add_argument("--stratified", action="store_true", help="even shares within each class")
    how.add_argument(
        "--drop", action="store_true", help="withdraw labels that a later vote contradicts"
    )
    how.add_argument(
        "--steps", type=int, default=0, metavar="N", help="of each learner, instead of epochs"
    )
    how.add_argument(
        "--control", action="store_true", help="compare with labels alone for as many steps"
    )
    how.add_argument(
        "--patience", type=int, default=0, metavar="N", help="rounds without gain on validation"
    )


def _mine(arguments: argparse.Namespace) -> None:
    if arguments.trace is not None:
        from merkit_training.mining.session import trace

        print("\n".join(trace(arguments.out, arguments.trace)))
        return
    if arguments.run is None or not arguments.pool:
        raise InvalidInputError("RUN or --pool is missing", "both", "see: merkit-train mine --help")
    if arguments.seeds < 1 or arguments.seed < 0:
        found = f"--seed {arguments.seed}, --seeds {arguments.seeds}"
        raise InvalidInputError(found, "a number that is not negative, and at least one seed")
    from merkit_training.mining.config import MiningConfig
    from merkit_training.settings import from_table

    names = MiningConfig.__dataclass_fields__
    options = {name: getattr(arguments, name) for name in names}
    config = from_table(MiningConfig, options, "merkit-train mine")
    from merkit_training.mining.session import mine

    seeds = range(arguments.seed, arguments.seed + arguments.seeds)
    mine(
        arguments.run,
        arguments.pool,
        arguments.out,
        config,
        seeds,
        arguments.truth,
        half=arguments.half,
    )
    print(f"the report is at {arguments.out / 'report.md'}, the run at {arguments.out / 'run'}")
