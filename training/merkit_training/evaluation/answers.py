"""Asks a model about every clip under every condition, and remembers each answer.

A report on a thousand clips asks twenty thousand times. Killed at the end, it must not begin anew;
so the answers on a clip lie in one small file, written as soon as they are there, and a later run
asks only what is missing. Answers are numbers: no face and no voice is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.contract import MODALITIES, canonical
from merkit.errors import BundleError, InferenceError, InputError, MerkitError
from merkit.pipeline import DECODED_IN
from merkit_training.data import ClipRecord
from merkit_training.evaluation.conditions import (
    BABBLES,
    BLURRED,
    BLURS,
    CLEAN,
    NOISES,
    Condition,
    Material,
    effective,
    patterns_of,
    seed_of,
    talkers,
    tensors_under,
)
from merkit_training.evaluation.labelled import Item
from merkit_training.evaluation.material import Spool, look, material_of
from merkit_training.evaluation.subject import Subject
from merkit_training.runs import read_json, write_json

DIGITS = 7
"""Of a score, in the cache and in the report alike: asked or remembered, an answer is the same."""
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """What the model said. `label` is -1 and all scores are 0 where it saw nothing to judge."""

    label: int
    scores: tuple[float, ...]  # [classes]
    branches: tuple[tuple[float, ...], ...]  # [voters][classes]; zeros: abstained
    present: tuple[str, ...]  # of contract.MODALITIES


@dataclass
class Answers:
    """The answers on one clip by condition, or why there are none."""

    clean: Answer | None = None
    under: dict[str, Answer | None] = field(default_factory=dict)  # None: nothing left to judge
    error: MerkitError | None = None


class Asks(Protocol):
    """Gets answers on clips, as they are and under every condition."""

    def examine(self, items: Sequence[Item], hard: Sequence[Item]) -> dict[str, Answers]:
        """Answers on all items by name, on `hard` under all conditions."""
        ...

    def close(self) -> None:
        """Removes what was kept of the clips meanwhile."""
        ...


class Examiner:
    """Asks, spools and remembers.

    Args:
        subject: the model.
        folder: of cache and spool.
        seed: of noise and babble.
        workers: clips at a time.
    """

    def __init__(self, subject: Subject, folder: Path, seed: int, workers: int) -> None:
        self.subject, self.seed, self.workers = subject, seed, workers
        self.folder = folder / f"{subject.mark}-{seed}"
        self.spool = Spool(self.folder / "spool")

    def examine(self, items: Sequence[Item], hard: Sequence[Item]) -> dict[str, Answers]:
        """Answers on all items by name, on `hard` under all conditions.

        Clips at fault carry their error. Raises BackendError or BundleError if the model is.
        """
        tried = {item.record.name for item in hard}

        def first(item: Item) -> Answers:
            return self._clean(item.record, item.record.name in tried)

        found = {
            item.record.name: answers
            for item, answers in self._each(first, items, "clips as they are")
        }
        loud = [n for n in tried if (a := found[n].clean) and "audio" in a.present]
        left = [item for item in hard if found[item.record.name].clean is not None]
        records = {item.record.name: item.record for item in hard}

        def harder(item: Item) -> None:
            answers = found[item.record.name]
            others = talkers(self.seed, item.record.name, loud)
            try:
                self._under(item.record, answers, [records[name] for name in others])
            except (InputError, InferenceError) as error:  # the file may have gone meanwhile
                answers.clean, answers.under, answers.error = None, {}, error

        for _ in self._each(harder, left, "clips made harder"):
            pass
        return found

    def close(self) -> None:
        """Removes the spool: it holds faces and voices."""
        self.spool.remove()

    def _each(
        self, work: Callable[[Item], T], items: Iterable[Item], told: str
    ) -> Iterator[tuple[Item, T]]:
        """Several at a time, and never more taken than are worked on."""
        items = list(items)
        running: dict[Future[T], Item] = {}
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="evaluate") as pool,
            tqdm(total=len(items), desc=told, unit="clip", mininterval=1) as bar,
        ):
            try:
                for item in [*items, None]:
                    while running and (item is None or len(running) >= 2 * self.workers):
                        done, _ = wait(running, return_when=FIRST_COMPLETED)
                        for future in done:
                            bar.update()
                            yield running.pop(future), future.result()
                    if item is not None:
                        running[pool.submit(work, item)] = item
            finally:
                for future in running:
                    future.cancel()

    def _clean(self, record: ClipRecord, spooled: bool) -> Answers:
        try:
            stamp = stamp_of(record)
            known = self._known(record, stamp)
            if CLEAN.key in known:
                return Answers(known[CLEAN.key])
            p = self.subject.contract.preprocessing
            seen = look(record, p)
            if spooled:
                material = material_of(record, p, seen, BLURS)
                self.spool.keep(record.name, stamp, material)
            answer = self._ask({name: seen.tensors[name] for name in DECODED_IN})
        except (InputError, InferenceError) as error:
            return Answers(error=error)
        self._remember(record, stamp, {CLEAN.key: answer})
        return Answers(answer)

    def _under(self, record: ClipRecord, answers: Answers, others: Sequence[ClipRecord]) -> None:
        """Fills `answers.under`."""
        assert answers.clean is not None
        stamp, present = stamp_of(record), answers.clean.present
        behind = [stamp_of(other) for other in others]
        asked: dict[str, Condition] = {c.key: c for c in patterns_of(present)}
        for condition in (*NOISES, *(BABBLES if others else ()), *BLURRED):
            if effective(condition, present) != CLEAN:
                asked[cache_key(condition, behind)] = condition
        known = self._known(record, stamp)
        material: Material | None = None
        waves: list[NDArray[np.float32]] = []
        p = self.subject.contract.preprocessing
        for key, condition in asked.items():
            if key in known:
                continue
            if material is None:
                material = self._material(record, stamp)
                waves = [self._material(o, s).waveform for o, s in zip(others, behind, strict=True)]
            seed = seed_of(self.seed, record.name, condition.kind)
            tensors = tensors_under(condition, material, p, seed, waves)
            if self.subject.contract.hearing and "text" not in condition.keep:
                del tensors["text"]  # taken away is the word, which would be heard again
            known[key] = self._ask(tensors)
        if material is not None:
            self._remember(record, stamp, known)
        answers.under = {condition.key: known[key] for key, condition in asked.items()}

    def _material(self, record: ClipRecord, stamp: str) -> Material:
        if (found := self.spool.find(record.name, stamp)) is not None:
            return found
        p = self.subject.contract.preprocessing
        material = material_of(record, p, look(record, p), BLURS)
        self.spool.keep(record.name, stamp, material)
        return material

    def _ask(self, tensors: Mapping[str, NDArray[Any]]) -> Answer:
        outputs = self.subject.client.backend.infer(tensors)
        scores = outputs["branch_scores"][0]
        if not np.isfinite(scores).all():
            raise InferenceError("branch_scores holds NaN", "finite numbers", "verify the model")
        return Answer(
            int(outputs["label"][0]),
            plain(outputs["scores"][0]),
            tuple(plain(row) for row in scores),
            tuple(
                m
                for m, is_there in zip(MODALITIES, outputs["presence"][0], strict=True)
                if is_there
            ),
        )

    def _known(self, record: ClipRecord, stamp: str) -> dict[str, Answer]:
        try:
            kept = read_json(self._path(record))
            if kept["clip"] != stamp:
                return {}
            return {key: _answer(value) for key, value in kept["answers"].items()}
        except (BundleError, KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _remember(self, record: ClipRecord, stamp: str, known: Mapping[str, Answer]) -> None:
        told = {
            key: {
                "label": a.label,
                "scores": a.scores,
                "branches": a.branches,
                "present": a.present,
            }
            for key, a in known.items()
        }
        write_json(self._path(record), {"clip": stamp, "answers": told})

    def _path(self, record: ClipRecord) -> Path:
        return self.folder / "answers" / f"{record.name}.json"


def stamp_of(record: ClipRecord) -> str:
    """Which clip this is: its entry, and its files' sizes and times of change."""
    told: list[Any] = [record.to_json() | {"label": None}]
    for path in (record.path, record.faces):
        if path is not None and path.exists():
            facts = path.stat()
            told.append([facts.st_size, facts.st_mtime_ns])
    return hashlib.sha256(canonical(told)).hexdigest()[:32]


def cache_key(condition: Condition, behind: Sequence[str]) -> str:
    """The condition's key; babble is another where other clips make it."""
    if condition.kind != "babble":
        return condition.key
    mark = hashlib.sha256("".join(behind).encode()).hexdigest()[:12]
    return f"{condition.key} of {mark}"


def plain(row: NDArray[Any]) -> tuple[float, ...]:
    """Scores as a cache and a report keep them."""
    return tuple(round(float(value), DIGITS) for value in row)


def _answer(value: Mapping[str, Any]) -> Answer:
    branches = tuple(tuple(map(float, row)) for row in value["branches"])
    return Answer(
        int(value["label"]), tuple(map(float, value["scores"])), branches, tuple(value["present"])
    )
