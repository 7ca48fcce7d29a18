"""What a candidate is worth: the task's metric, agreement with the reference, and time.

Encoders cost seconds a clip, fusion and voting next to nothing. So each candidate encodes every
clip once, its features are kept, and any combination of candidates is judged by fusing kept
features: a search over thousands of combinations runs no encoder twice.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.backends.sessions import SHORT_NAMES, Session, open_session
from merkit.bundle import Bundle
from merkit.contract import MODALITIES, StepSpec
from merkit.ort import import_onnxruntime
from merkit_export import samples
from merkit_export.precision.material import Material
from merkit_export.precision.ondemand import opened_on_demand
from merkit_export.precision.variants import variant
from merkit_export.walk import Values, bundle_steps, walk
from merkit_training.metrics import ece, waf

TIMED_CLIPS = 8
ROUNDS = 5
TIMED_SECONDS = 30.0
"""After so long two rounds of a race suffice: large encoders take seconds a clip."""
NEIGHBOURS = 3
"""Clips of which each runs alone and beside the others."""
KEPT_BYTES = 1_500_000_000
"""Of one step's inputs, which all its candidates read."""

Features = Mapping[str, NDArray[np.float32]]
"""By the name of the tensor: [clips, width]."""


@dataclass(frozen=True)
class Verdict:
    """How a choice of precisions answers the clips."""

    waf: float | None
    """Weighted average F1; None where there is no task."""
    agreement: float
    """Share of clips with the reference's label."""
    shift: float
    """Mean change of the winning label's probability."""
    ece: float | None = None
    """Expected calibration error; None where there is no task."""


class Judge:
    """The reference bundle and the clips to judge candidates on.

    Args:
        bundle: the reference, in float32.
        material: the clips.
        threads: of every session.
        provider: ONNX Runtime's short name; times count only on it.
        races: whether candidates are timed at all.
    """

    def __init__(
        self, bundle: Bundle, material: Material, threads: int, provider: str, races: bool = True
    ) -> None:
        self.bundle, self.material, self.threads = bundle, material, threads
        self.contract = bundle.contract
        ort = import_onnxruntime()
        wanted = SHORT_NAMES[provider]
        here = wanted in ort.get_available_providers()
        self.timed = here and races
        found = (wanted, SHORT_NAMES["cpu"]) if here else (SHORT_NAMES["cpu"],)
        self._providers = list(dict.fromkeys(found))
        self._ort = ort
        self._backend = opened_on_demand(bundle, threads)
        self._kept: dict[int, Values] = {}
        self._kept_step, self._kept_bytes = "", 0
        self._steps = bundle_steps(self._backend)
        presences = [self.inputs("fusion", clip, ("presence",))["presence"] for clip in material]
        self.presence = np.concatenate(presences)

    def close(self) -> None:
        """Frees the reference's sessions."""
        self._backend.close()

    def session(self, step: StepSpec, path: Path) -> Session:
        """A candidate's session on the judged provider, or the CPU where that is missing."""
        return open_session(
            self._ort, variant(self.bundle, {step.name: path}), step, self._providers, self.threads
        )

    def inputs(self, step: str, clip: Values, names: Sequence[str] | None = None) -> Values:
        """What a step reads of a decoded clip."""
        wanted = self.contract.step(step).inputs if names is None else names
        return self._backend.compute(clip, wanted)  # which skips a chain that hears nothing

    def given(self, step: StepSpec, number: int) -> Values:
        """What a step reads of a clip, by its number; kept for the step that is asked of now."""
        if step.name != self._kept_step:
            self._kept, self._kept_step, self._kept_bytes = {}, step.name, 0
        if number not in self._kept:
            values = self.inputs(step.name, self.material.read(number))
            size = sum(value.nbytes for value in values.values())
            if self._kept_bytes + size > KEPT_BYTES:
                return values
            self._kept[number], self._kept_bytes = values, self._kept_bytes + size
        return self._kept[number]

    def corners(self, step: StepSpec) -> tuple[Values, list[Values]]:
        """What a step reads of some everyday made-up clips: as one batch, and one by one."""
        found = [c for c in samples.usual(self.contract) if self._here(c, step)]
        picked = np.linspace(0, len(found) - 1, min(NEIGHBOURS, len(found))).round().astype(int)
        clips = [found[i] for i in picked]
        batch = self.inputs(step.name, samples.collate(clips))
        return batch, [self.inputs(step.name, clip) for clip in clips]

    def feeds(self, step: StepSpec, material: Material) -> list[Values]:
        """What a step reads of the clips that have a modality it needs."""
        found = []
        for clip in material:
            values = self.inputs(step.name, clip, (*step.inputs, "presence"))
            if self._needed(step, values["presence"][0]):
                found.append({name: values[name] for name in step.inputs})
        return found

    def encode(self, step: StepSpec, session: Session | None, kept: Path) -> NDArray[np.float32]:
        """A candidate's features of every clip [clips, width], zeros where its modalities are
        absent; read from `kept` where they lie there, and then without a session."""
        if session is None or kept.exists():
            return np.asarray(np.load(kept, allow_pickle=False))
        output = step.outputs[0]
        width = self.contract.tensors[output].shape[1]
        rows = np.zeros((len(self.material), int(width)), np.float32)
        for row in tqdm(range(len(rows)), step.name, unit="clip", disable=None, leave=False):
            if self._needed(step, self.presence[row]):
                rows[row] = session(self.given(step, row))[output][0]
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary = kept.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, rows, allow_pickle=False)
        temporary.replace(kept)
        return rows

    def answers(self, features: Features) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Labels [clips] (-1: nothing to judge) and probabilities [clips, classes]."""
        given = {**features, "presence": self.presence}
        values = walk(self.contract, self._steps, given, ("label", "scores"))
        return values["label"], values["scores"]

    def verdict(self, features: Features, reference: Features) -> Verdict:
        """How these features are answered, against the reference's."""
        labels, scores = self.answers(features)
        wanted, expected = self.answers(reference)
        found = np.abs(scores - expected)[np.arange(len(wanted)), np.maximum(wanted, 0)]
        truth = self.material.truth
        return Verdict(
            None if truth is None else waf(truth, np.maximum(labels, 0), len(self.contract.labels)),
            float(np.mean(labels == wanted)),
            float(found.mean()),
            None if truth is None else ece(truth, scores.astype(np.float64)),
        )

    def cosine(self, step: StepSpec, rows: NDArray[Any], reference: NDArray[Any]) -> float:
        """The least cosine between a candidate's and the reference's features of a clip."""
        here = np.array([self._needed(step, p) for p in self.presence])
        a, b = rows[here].astype(np.float64), reference[here].astype(np.float64)
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        return float(np.min((a * b).sum(1) / np.maximum(norms, 1e-12), initial=1.0))

    def race(self, step: StepSpec, reference: Session, candidate: Session) -> tuple[float, float]:
        """Milliseconds a clip of the reference and of the candidate, in turns on the same clips:
        least over rounds (what disturbs only adds), means over clips of different lengths."""
        begun, turns = time.perf_counter(), 0
        here = [i for i, p in enumerate(self.presence) if self._needed(step, p)]
        picked = np.linspace(0, len(here) - 1, min(TIMED_CLIPS, len(here))).round().astype(int)
        clips = [self.given(step, here[i]) for i in picked]
        times = np.zeros((2, len(clips), ROUNDS + 1))
        for turn in range(ROUNDS + 1):  # the first warms up
            if turn > 2 and time.perf_counter() - begun > TIMED_SECONDS:
                break
            turns = turn
            for number, clip in enumerate(clips):
                order = [(0, reference), (1, candidate)]
                for side, session in order if turn % 2 else reversed(order):
                    times[side, number, turn] = _milliseconds(session, clip)
        before, after = times[:, :, 1 : turns + 1].min(axis=2).mean(axis=1)
        return float(before), float(after)

    def _here(self, clip: Values, step: StepSpec) -> bool:
        presence = self.inputs("fusion", clip, ("presence",))["presence"][0]
        return self._needed(step, presence)

    @staticmethod
    def _needed(step: StepSpec, presence: NDArray[np.bool_]) -> bool:
        there = {m for m, is_there in zip(MODALITIES, presence, strict=True) if is_there}
        return not step.needs or bool(there & set(step.needs))


def _milliseconds(run: Callable[[Values], Any], values: Values) -> float:
    start = time.perf_counter()
    run(values)
    return 1e3 * (time.perf_counter() - start)
