"""Which parts of the chain a run holds, and the pipeline's python steps over them.

Features, evaluation, reference and export must hear alike. What they need to know of a run (does
it recognise, separate, punctuate; with which words, marks and scales) is found out here, once.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from merkit.contract import Contract, Hearing
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.pipeline import Chain
from merkit.speech.vocabulary import Vocabulary
from merkit.steps import REGISTRY, Step
from merkit.steps.tokenize import JOINT_FILE, TEXT_FILE
from merkit.steps.transcribe import LANGUAGE_FILE, WORDS_FILE
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, read_json, write_json
from merkit_training.settings import from_table
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.hearing.config import HearingConfig

RECOGNIZER, SEPARATOR = "recognizer", "separator"
LANGUAGE_MODEL, PUNCTUATOR = "language_model", "punctuator"
ARPA, MARKS = "model.arpa", "marks.json"
"""Files of a run's language model and punctuator."""
BY_FILES = ("listen", "transcribe", "tokenize")
"""The python steps that need no media."""


def chain_of(run: Path) -> Chain | None:
    """The chain of a run; None where it has no recogniser.

    Raises:
        InvalidInputError: an encoder is to hear cleaned sound, and nothing cleans it.
        BundleError: a file of it is missing or damaged, or two do not belong together.
    """
    table = read_json(run / "recipe.json").get("hearing", {})
    config = from_table(HearingConfig, table, "recipe.json [hearing]")
    separated, recognised = holds(run, SEPARATOR), holds(run, RECOGNIZER)
    if config.cleans and not (separated and recognised):
        raise uncleaned(f"{run} holds no {SEPARATOR if recognised else RECOGNIZER}")
    if not recognised:
        return None
    tokens = Vocabulary.load(run / RECOGNIZER / TOKENS)
    marks = len(_punctuator(run)["marks"]) if holds(run, PUNCTUATOR) else 0
    return Chain(_hearing(run, config, tokens), len(tokens), separated, marks)


def check_asked(recipe: Recipe) -> None:
    """Refuses a recipe that wants cleaned sound and nothing to clean it, before days of training
    find it out; InvalidInputError."""
    for name in (RECOGNIZER, SEPARATOR) if recipe.hearing.cleans else ():
        if not getattr(recipe, name).asked:
            raise uncleaned(f"[{name}] has neither epochs nor a checkpoint")


def uncleaned(found: str) -> InvalidInputError:
    """The error where cleaned sound is wanted and not to be had."""
    return InvalidInputError(
        f"{found}, and the recipe's [hearing] lets an encoder hear cleaned sound",
        "a recogniser and a separator in the run",
        "give [recognizer] and [separator] epochs or a checkpoint, or let encoders hear the "
        "original",
    )


def holds(run: Path, stage: str) -> bool:
    """Whether a stage of the run is finished."""
    return (run / stage / CARD).exists()


def copy_resources(run: Path, step: str, folder: Path) -> list[Path]:
    """Writes what a python step of the run reads into `folder`, as a bundle holds it; the files.

    Errors as of `chain_of`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Path] = {}
    if step == "tokenize":
        found = {name: run / "tokenizer" / name for name in (TEXT_FILE, JOINT_FILE)}
    if step == "transcribe":
        found = {TOKENS: run / RECOGNIZER / TOKENS}
        if _scales(run) != (0.0, 0.0):  # else it would be asked, and have no say
            found[LANGUAGE_FILE] = run / LANGUAGE_MODEL / ARPA
    for name, source in found.items():
        if source.exists() or name != JOINT_FILE:
            shutil.copyfile(source, folder / name)
    if step in ("transcribe", "tokenize") and holds(run, RECOGNIZER) and holds(run, PUNCTUATOR):
        write_json(folder / WORDS_FILE, _punctuator(run))
    return sorted(path for path in folder.iterdir() if path.is_file())


def python_steps(run: Path, contract: Contract) -> dict[str, Step]:
    """The contract's python steps behind decoding and detecting, over a run's own files; errors as
    of `chain_of`."""
    with TemporaryDirectory() as scratch:  # steps have read their files when they are made
        made: dict[str, Step] = {}
        for step in contract.steps:
            if step.name in BY_FILES:
                folder = Path(scratch) / step.name
                copy_resources(run, step.name, folder)
                made[step.name] = REGISTRY[step.name](contract, folder)
        return made


def _hearing(run: Path, config: HearingConfig, tokens: Vocabulary) -> Hearing:
    if holds(run, LANGUAGE_MODEL):
        counted = Vocabulary.load(run / LANGUAGE_MODEL / TOKENS)
        if counted.tokens != tokens.tokens:
            raise BundleCorruptError(
                f"{run / LANGUAGE_MODEL} counts {len(counted)} tokens of its own",
                f"the {len(tokens)} tokens of the recogniser",
                f"remove {run / LANGUAGE_MODEL} and run the stage again",
            )
    return config.stated(*_scales(run))


def _scales(run: Path) -> tuple[float, float]:
    """Weight and bonus of the run's language model; 0 without one."""
    if not holds(run, LANGUAGE_MODEL):
        return 0.0, 0.0
    path = run / LANGUAGE_MODEL / CONFIG
    table = read_json(path)
    try:
        return float(table["weight"]), float(table["bonus"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleCorruptError(
            f"{path} is malformed ({type(error).__name__}: {error})",
            "weight and bonus",
            "run the stage again",
        ) from None


def _punctuator(run: Path) -> dict[str, list[str]]:
    """The punctuator's words, and the marks of its classes."""
    from merkit_training.speech.punctuation.checkpoint import read_tokens

    files = {"tokens": TOKENS, "marks": MARKS}
    return {key: list(read_tokens(run / PUNCTUATOR / file)) for key, file in files.items()}
