"""Runs a hearing study: every row under every seed, resumable, seed by seed.

It takes hours and is interrupted. What is measured is skipped, a stage under way goes on at its
checkpoint, and what lies there after a kill is whole rows of the first seeds.

    OUT/<study>/seed-<n>/<row>/                run folders
    OUT/<study>/seed-<n>/<row>.json            what was measured of a row
    OUT/<study>/seed-<n>/chain/<separator>-<split>-<condition>.json
    OUT/<study>/clean/<split>-<condition>.json  how clean the chain's sounds seem: of no seed
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, read_json, write_json
from merkit_training.speech.hearing.conditions import Condition, conditions_of
from merkit_training.speech.hearing.measure import cleanness, emotion, recognition
from merkit_training.speech.hearing.plan import TESTS, HearingStudy, Row
from merkit_training.speech.hearing.tools import REAL, Tools
from merkit_training.speech.noise.listen import Listen
from merkit_training.studies.inputs import Inputs, corpus_mark

PUNCTUATOR, CHAIN = "punctuator", "chain"


@dataclass(frozen=True)
class Hearing:
    """A study on a corpus: where its parts lie and what they follow from."""

    study: HearingStudy
    corpus: Path
    out: Path
    model: Path | None = None  # a bundle or run that tells emotion; None: no such rows
    tools: Tools = REAL

    def folder(self, seed: int) -> Path:
        """Of one seed."""
        return self.out / self.study.name / f"seed-{seed}"

    def run_of(self, row: Row, seed: int) -> Path:
        """The run folder that holds a row's recogniser or separator."""
        return self.folder(seed) / slug(row.like or row.name)

    def measured(self, name: str, seed: int) -> dict[str, Any] | None:
        """What was measured under a name, as the study states it today; None if it is not there.
        Names of the chain are `chain/<separator>-<split>-<condition>`."""
        path = self.folder(seed) / f"{name}.json"
        found = read_json(path) if path.exists() else {}
        return found if found.get("mark") == self._mark(name, seed) else None

    def measure(self, name: str, seed: int, how: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`measured`, or what `how` gives, written down."""
        found = self.measured(name, seed)
        if found is None:
            found = {"mark": self._mark(name, seed), **how()}
            write_json(self.folder(seed) / f"{name}.json", found)
        return found

    def estimated(self, split: str, condition: str) -> list[float | None] | None:
        """How clean the sounds of the chain's cell (its condition's key) seem, in dB, None where
        there is too little of one; None if that is not measured."""
        path = self._clean(split, condition)
        found = read_json(path) if path.exists() else {}
        return list(found["estimates"]) if found.get("mark") == self._clean_mark else None

    def estimate(self, split: str, condition: str, how: Callable[[], list[float | None]]) -> None:
        """Writes down what `how` gives, unless it is `estimated`."""
        if self.estimated(split, condition) is None:
            found = {"mark": self._clean_mark, "estimates": how()}
            write_json(self._clean(split, condition), found)

    def clips(self, split: str) -> Inputs:
        """The decoded clips of a split, kept beside those of other studies."""
        p = self.study.recipe_of(None, 0).preprocessing
        return self.tools.clips(self.corpus, split, p, self.out / "inputs")

    @property
    def splits(self) -> tuple[str, ...]:
        """Those whose clips are needed."""
        return TESTS if self.model else (self.study.split,)

    def _mark(self, name: str, seed: int) -> str:
        model = _model_mark(self.model) if self.model and name.startswith(CHAIN) else ""
        told = [self._stated, model, seed]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _clean(self, split: str, condition: str) -> Path:
        return self.out / self.study.name / "clean" / f"{split}-{condition.replace(':', '-')}.json"

    @cached_property
    def _clean_mark(self) -> str:
        p = asdict(self.study.recipe_of(None, 0).preprocessing)
        told = [corpus_mark(self.corpus), p, self.study.emotion_clips]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    @cached_property
    def _stated(self) -> str:
        stated = asdict(self.study)
        for words in ("title", "about", "seeds", "thresholds", "clean_from"):
            del stated[words]  # they change the page, not the figures
        return json.dumps([stated, corpus_mark(self.corpus)], sort_keys=True)


def slug(name: str) -> str:
    """A row's name as a file's."""
    return re.sub(r"[^\w]+", "-", name).strip("-").lower() or "row"


def run_hearing(hearing: Hearing, seeds: Sequence[int], workers: int) -> None:
    """Trains and measures all that is not there, `workers` seeds at a time.

    Raises what stages raise; what is done stays done.
    """
    for split in hearing.splits:  # before the workers, which would each decode
        hearing.clips(split)
    if hearing.model is not None:
        _estimate(hearing)
    if workers == 1 or len(seeds) == 1:
        for seed in seeds:
            run_seed(hearing, seed)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a threaded torch process may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(run_seed, [hearing] * len(seeds), seeds))


def run_seed(hearing: Hearing, seed: int) -> None:
    """All rows of one seed."""
    torch.set_num_threads(1)
    study = hearing.study
    for row in sorted(study.recognizers, key=lambda row: bool(row.like)):
        hearing.measure(slug(row.name), seed, lambda row=row: _recognizer(hearing, row, seed))  # type: ignore[misc]
    for row in study.separators:
        recipe = study.recipe_of(row, seed)
        hearing.measure(
            slug(row.name), seed,
            lambda row=row, recipe=recipe: _stage(hearing, recipe, row, "separator", seed),  # type: ignore[misc]
        )  # fmt: skip
    if _punctuates(study.recipe_of(None, seed)):
        recipe = study.recipe_of(None, seed)
        row = Row(PUNCTUATOR, {})
        hearing.measure(PUNCTUATOR, seed, lambda: _stage(hearing, recipe, row, PUNCTUATOR, seed))
    if hearing.model is not None:
        _chain(hearing, hearing.model, seed)


def chain_cells(study: HearingStudy) -> Iterator[tuple[Row, str, str]]:
    """Separator, split and condition key of every cell of the chain."""
    for row in study.separators:
        for split in TESTS:
            for condition in conditions_of(study.snrs):
                yield row, split, condition.key


def chain_name(row: Row, split: str, key: str) -> str:
    """Under which a cell of the chain is measured."""
    return f"{CHAIN}/{slug(row.name)}-{split}-{key.replace(':', '-')}"


def _recognizer(hearing: Hearing, row: Row, seed: int) -> dict[str, Any]:
    study, tools = hearing.study, hearing.tools
    recipe, run = study.recipe_of(row, seed), hearing.run_of(row, seed)
    if row.like:
        scores = tools.train(recipe, hearing.corpus, run, "language_model")
    elif row.self_training:
        _begin(hearing, row, seed)
        scores = tools.self_train(recipe, hearing.corpus, run)
    else:
        scores = tools.train(recipe, hearing.corpus, run, "recognizer")
    listen = _listen(hearing, row, seed)
    errors = recognition(listen, hearing.clips(study.split), study.snrs, study.clips)
    return {"scores": scores, "errors": errors}


def _begin(hearing: Hearing, row: Row, seed: int) -> None:
    """Round 0 of self-training is the row that differs in nothing else; it is not trained twice."""
    start = hearing.run_of(row, seed) / "round-0"
    for other in hearing.study.recognizers:
        trained = hearing.run_of(other, seed)
        alike = other.tables == row.tables and not (other.like or other.self_training)
        if alike and (trained / "recognizer" / CARD).exists() and not start.exists():
            temporary = start.with_name("round-0.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(trained, temporary)
            temporary.rename(start)


def _listen(hearing: Hearing, row: Row, seed: int) -> Listen:
    """A row's recogniser; with a language model, as wide a beam as its scales were found on."""
    run, study = hearing.run_of(row, seed), hearing.study
    if not row.like:
        return hearing.tools.listen(run, None, study.beam)
    return hearing.tools.listen(run, run, study.recipe_of(row, seed).language_model.beam)


def _stage(hearing: Hearing, recipe: Recipe, row: Row, stage: str, seed: int) -> dict[str, Any]:
    run = hearing.run_of(row, seed)
    return {"scores": hearing.tools.train(recipe, hearing.corpus, run, stage)}


def _estimate(hearing: Hearing) -> None:
    """How clean the chain's sounds seem, with and without noise: seconds, as nothing is trained."""
    study = hearing.study
    for split in TESTS:
        clips = hearing.clips(split)
        for c in conditions_of(study.snrs):

            def seem(clips: Inputs = clips, c: Condition = c) -> list[float | None]:
                return cleanness(clips, c, study.emotion_clips)

            hearing.estimate(split, c.key, seem)


def _chain(hearing: Hearing, model: Path, seed: int) -> None:
    """Emotion with the chain in front, cell by cell; models are opened if a cell is missing."""
    study, tools = hearing.study, hearing.tools
    conditions = {c.key: c for c in conditions_of(study.snrs)}
    missing = [
        cell for cell in chain_cells(study) if hearing.measured(chain_name(*cell), seed) is None
    ]
    if not missing:
        return
    row = next(r for r in study.recognizers if r.name == study.chain)
    listen = _listen(hearing, row, seed)
    judge = tools.judge(model)
    marks = hearing.run_of(Row(PUNCTUATOR, {}), seed)
    punctuate = tools.punctuate(marks) if _punctuates(study.recipe_of(None, seed)) else None
    separators = {r.name: tools.separate(hearing.run_of(r, seed)) for r in study.separators}
    clips = {split: hearing.clips(split) for split in TESTS}
    for separator, split, key in missing:

        def found(separator: Row = separator, split: str = split, key: str = key) -> dict[str, Any]:
            return emotion(
                listen, separators[separator.name], punctuate, judge, clips[split],
                conditions[key], study.emotion_clips,
            )  # fmt: skip

        hearing.measure(chain_name(separator, split, key), seed, found)


def _punctuates(recipe: Recipe) -> bool:
    return recipe.punctuator.asked


def _model_mark(model: Path) -> str:
    """Tells models apart: hashes that a bundle's manifest or a run's card holds."""
    for name in ("bundle.json", "run.json"):
        if (model / name).is_file():
            return hashlib.sha256((model / name).read_bytes()).hexdigest()
    return str(model.resolve())
