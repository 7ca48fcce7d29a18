"""Self-training of the stage `recognizer`: each round is a run of its own on a corpus of its own.

OUT/rounds/round-<n>.json            the journal
OUT/round-<n>/{run files, recognizer/}
OUT/recognizer/                      the best round's, as in any run
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from merkit.errors import InvalidInputError
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, RunCard, read_json
from merkit_training.speech.noise.listen import Heard, in_batches, listener
from merkit_training.speech.noise.pool import Pool, round_corpus
from merkit_training.speech.noise.selftrain import Outcome, self_train
from merkit_training.stages import stage_function
from merkit_training.studies.inputs import corpus_mark

STAGE = "recognizer"


def train_in_rounds(recipe: Recipe, corpus: Path, out: Path, sounds: Path | None = None) -> Outcome:
    """Trains the recipe's recogniser in rounds; what is done is not done again.

    Args:
        recipe: with `[recognizer] epochs` above 0, and `[self_training]`.
        corpus: labelled utterances, and clips `unlabelled` unless `sounds` is given.
        out: a folder for all rounds.
        sounds: a folder of sound files without text.

    Raises:
        InvalidInputError: the recipe trains no recogniser, there is no sound to learn from, or
            `out` was begun with something else.
    """
    if not recipe.recognizer.epochs:
        raise InvalidInputError(
            "the recipe trains no recogniser", "[recognizer] epochs of 1 or more", "set it"
        )
    p, config = recipe.preprocessing, recipe.self_training
    pool = Pool.of_folder(sounds, p) if sounds else Pool.of_corpus(corpus, p)

    def learn(adopted: Mapping[str, str], number: int) -> float:
        run, place = out / f"round-{number}", out / f"round-{number}" / "corpus"
        card_path = run / STAGE / CARD
        if not card_path.exists():
            source = round_corpus(corpus, pool, adopted, place) if adopted else corpus
            card, started = RunCard(run, recipe, source), time.monotonic()
            scores = stage_function(STAGE)(recipe, source, run)
            card.record(STAGE, scores, time.monotonic() - started)
        shutil.rmtree(place, ignore_errors=True)  # as large as the sound; made again if needed
        return float(read_json(card_path)["scores"]["accuracy"])

    def transcribe(number: int, names: Sequence[str]) -> Iterator[Heard]:
        listen = listener(out / f"round-{number}", config.beam)
        return in_batches(listen, (pool.wave(name) for name in names))

    told = [recipe.to_json(), corpus_mark(corpus), str(sounds or "")]
    mark = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    outcome = self_train(
        list(pool.records), learn, transcribe, config, out / "rounds", mark=mark, truth=pool.texts
    )
    _publish(out / f"round-{outcome.best}" / STAGE, out / STAGE)
    return outcome


def _publish(source: Path, target: Path) -> None:
    temporary = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(source, temporary)
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
