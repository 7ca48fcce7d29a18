"""`merkit-train`: makes the synthetic corpus and trains a run, one stage after the other.

Heavy imports wait until a command needs them, so that `--help` and a mistyped path answer at
once.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from merkit.errors import InvalidInputError, MerkitError, MissingExtraError

STAGES = {
    "tokenizer": "merkit_training.encoders.text.tokenizer:train",
    "face_encoder": "merkit_training.encoders.vision.encoder:train_face_encoder",
    "face_encoder_large": "merkit_training.encoders.vision.encoder:train_face_encoder_large",
    "text_encoder": "merkit_training.encoders.text.encoder:train",
    "audio_encoder": "merkit_training.encoders.audio.encoder:train",
    "joint_encoder": "merkit_training.encoders.joint.encoder:train",
    "features": "merkit_training.fusion.features:extract",
    "fusion": "merkit_training.fusion.stage:train",
}
"""Stages in order; each is `(recipe, corpus, run) -> scores`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status (0 done, 2 an error, 130 interrupted)."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], None] = arguments.command
    try:
        command(arguments)
    except MerkitError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("merkit"):
            raise
        return _fail(MissingExtraError.of(package, "train"))
    except KeyboardInterrupt:
        print("\nmerkit-train: stopped; the same command continues", file=sys.stderr)
        return 130
    return 0


def _fail(error: MerkitError) -> int:
    print(f"merkit-train: {error}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="merkit-train",
        description="Train the emotion recognition system: first the corpus, then the run.",
        epilog="Interrupted commands continue where they stopped when given again.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    synth = commands.add_parser("synth", help="write the synthetic corpus", description=_SYNTH)
    synth.add_argument("out", type=Path, metavar="OUT", help="folder of the corpus")
    synth.add_argument(
        "--recipe", type=Path, required=True, help="a TOML file with a [synth] table"
    )
    synth.add_argument("--only", nargs="+", metavar="SET", help="some of its sets (default: all)")
    synth.set_defaults(command=_synth)

    run = commands.add_parser("run", help="train the stages of a recipe", description=_RUN)
    run.add_argument(
        "recipe", type=Path, metavar="RECIPE", help="such as training/recipes/tiny.toml"
    )
    run.add_argument("--corpus", type=Path, required=True, help="what `merkit-train synth` wrote")
    run.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    run.add_argument("--stage", choices=tuple(STAGES), help="only this stage (default: all)")
    run.add_argument("--seed", type=int, help="instead of the recipe's")
    run.set_defaults(command=_run)
    return parser


_SYNTH = "Write faces, sequences, utterances, sentences and clips, the same for the same recipe."
_RUN = f"Train in this order, skipping what is done: {', '.join(STAGES)}."


def _synth(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    from merkit_training.synth.generate import generate
    from merkit_training.synth.sets import KINDS

    generate(arguments.out, recipe.synth, arguments.only or KINDS)
    print(f"the corpus is at {arguments.out}")


def _run(arguments: argparse.Namespace) -> None:
    from merkit_training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe)
    if arguments.seed is not None:
        if arguments.seed < 0:
            raise InvalidInputError(f"--seed is {arguments.seed}", "a number that is not negative")
        recipe = recipe.with_seed(arguments.seed)
    if not arguments.corpus.is_dir():
        raise InvalidInputError(
            f"there is no corpus at {arguments.corpus}",
            "a folder that merkit-train synth wrote",
            f"run: merkit-train synth {arguments.corpus} --recipe {arguments.recipe}",
        )
    from merkit_training.runs import RunCard

    card = RunCard(arguments.out, recipe, arguments.corpus)
    for stage in [arguments.stage] if arguments.stage else STAGES:
        if card.done(stage):
            print(f"{stage}: done before, skipped")
            continue
        started = time.monotonic()
        scores = _resolve(STAGES[stage])(recipe, arguments.corpus, arguments.out)
        seconds = time.monotonic() - started
        card.record(stage, scores, seconds)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(f"{stage}: {told} ({seconds:.0f} s)", flush=True)


def _resolve(location: str) -> Callable[..., dict[str, float]]:
    module, _, name = location.partition(":")
    function: Callable[..., dict[str, float]] = getattr(import_module(module), name)
    return function


if __name__ == "__main__":
    sys.exit(main())
