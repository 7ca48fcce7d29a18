"""Runs a study: each row under each seed is a cell, a run folder of its own.

A study takes hours and is interrupted. A cell that is done is skipped, one under way resumes at
its last checkpoint, stages that rows share are trained once for each seed, and the cells of one
seed come before those of the next, so that what is there early is whole rows.

    OUT/shared/<stage>-<key>/  OUT/<variant>/seed-<n>/{run files, measured.json}
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, RunCard, read_json, write_json
from merkit_training.stages import is_asked, stage_function
from merkit_training.studies.inputs import corpus_mark, decoded
from merkit_training.studies.measure import TESTS, measure
from merkit_training.studies.plan import Study, Variant

MEASURED = "measured.json"


@dataclass(frozen=True)
class Cell:
    """One row under one seed."""

    study: Study
    variant: Variant
    seed: int
    corpus: Path
    out: Path

    @property
    def recipe(self) -> Recipe:
        """What the cell trains."""
        return self.study.recipe_of(self.variant, self.seed)

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.out / self.variant.name / f"seed-{self.seed}"

    @property
    def inputs(self) -> Path:
        """Where decoded clips are kept, for all studies side by side."""
        return self.out.parent / "inputs"

    @property
    def mark(self) -> str:
        """A hash of all that its figures follow from: its stages' tables, corpus, heads."""
        study, tables = self.study, self.recipe.to_json()
        heard = ("hearing",) if self.recipe.hearing.cleans else ()
        told = (
            {name: tables.get(name) for name in ("run", "preprocessing", *heard, *study.stages)},
            corpus_mark(self.corpus),
            study.heads(),
            study.epochs,
        )
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def done(self) -> bool:
        """Whether it has been measured, as the study states it today."""
        path = self.run / MEASURED
        return path.exists() and read_json(path).get("mark") == self.mark

    def shared(self, stage: str) -> Path:
        """Where a shared stage lies: the same for cells with the same seed, corpus and table."""
        told = [self.seed, corpus_mark(self.corpus), self.recipe.to_json().get(stage)]
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        return self.out / "shared" / f"{stage}-{key}"


def cells_of(study: Study, corpus: Path, out: Path, seeds: Sequence[int]) -> list[Cell]:
    """Every cell below `out`, in order of seed, then row."""
    return [Cell(study, v, seed, corpus, out) for seed in seeds for v in study.variants]


def run_study(cells: Sequence[Cell], workers: int) -> None:
    """Trains and measures every cell that is not done, `workers` at a time.

    Raises what the stages raise; what is done stays done.
    """
    open_cells = [cell for cell in cells if not cell.done]
    if not open_cells:
        return
    one = open_cells[0]
    for split in ("train", "val", *TESTS):  # before the workers, which would each decode
        decoded(one.corpus, split, one.recipe.preprocessing, one.inputs)
    seeds = sorted({cell.seed for cell in open_cells})
    first = [[(c, s) for c, s in _shared(open_cells) if c.seed == seed] for seed in seeds]
    context = multiprocessing.get_context("spawn")  # a fork of a threaded torch process may hang
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(_train_all_shared, first))
        list(pool.map(_train_cell, open_cells))


def _shared(cells: Sequence[Cell]) -> Iterator[tuple[Cell, str]]:
    """A cell for each shared stage that is still to be trained."""
    for cell in cells:
        for stage in cell.study.shared:
            if is_asked(cell.recipe, stage) and not (cell.shared(stage) / CARD).exists():
                yield cell, stage


def _train_all_shared(wanted: Sequence[tuple[Cell, str]]) -> None:
    """One after the other, for one may build on another: those of one seed."""
    torch.set_num_threads(1)
    for cell, stage in wanted:
        _train_shared(cell, stage)


def _train_shared(cell: Cell, stage: str) -> None:
    """Trains a shared stage in a run folder of its own and puts it where cells find it."""
    place = cell.shared(stage)
    workshop = place.with_name(f"{place.name}.run")
    for before in cell.study.shared[: cell.study.shared.index(stage)]:
        if is_asked(cell.recipe, before):
            shutil.copytree(cell.shared(before), workshop / before, dirs_exist_ok=True)
    if not (place / CARD).exists():
        _train(cell, stage, workshop)
        (workshop / stage).rename(place)


def _train_cell(cell: Cell) -> None:
    torch.set_num_threads(1)
    RunCard(cell.run, cell.recipe, cell.corpus)  # refuses what was trained as the study once was
    for stage in cell.study.stages:
        if not is_asked(cell.recipe, stage) or (cell.run / stage / CARD).exists():
            continue
        if stage in cell.study.shared:
            temporary = cell.run / f"{stage}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(cell.shared(stage), temporary)
            temporary.rename(cell.run / stage)
        else:
            _train(cell, stage, cell.run)
    found = measure(cell.recipe, cell.corpus, cell.run, cell.inputs, cell.study)
    write_json(cell.run / MEASURED, {"mark": cell.mark, **found})


def _train(cell: Cell, stage: str, run: Path) -> None:
    card = RunCard(run, cell.recipe, cell.corpus)
    started = time.monotonic()
    scores = stage_function(stage)(cell.recipe, cell.corpus, run)
    card.record(stage, scores, time.monotonic() - started)
