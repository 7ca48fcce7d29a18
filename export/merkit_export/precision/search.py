"""Which precision each step gets: the fastest choice that stays within the budget.

Every candidate of every encoder is tried alone first; a journal keeps what was found, so that a
search that was stopped goes on where it was. Then candidates are taken greedily, the one that saves
most time first, each only if all that is chosen so far and it together stay within the budget:
losses that are harmless alone can add up. The whole bundle is judged once more at the end.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.backends.sessions import Session
from merkit.contract import StepSpec, canonical
from merkit.errors import MerkitError
from merkit_export import storage, tolerance
from merkit_export.precision import admit
from merkit_export.precision.judge import Judge, Verdict
from merkit_export.precision.kinds import (
    REFERENCE,
    Precision,
    candidates,
    searched_steps,
)
from merkit_export.precision.variants import Maker

Say = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What speed may cost."""

    waf: float = 0.5
    """Points of weighted average F1 (of 100)."""
    agreement: float = 0.99
    """Least share of clips with the reference's label."""
    cosine: float = 0.995
    """Least cosine of each clip's features: the gate where weights are random."""
    ece: float = tolerance.Budget.ece_shift
    """Most that the expected calibration error may rise, as the gate has it."""


@dataclass(frozen=True)
class Trial:
    """One candidate, alone: every other step as the reference."""

    step: str
    precision: str
    bytes: int = 0
    ms: float | None = None
    """A clip's time; None where the target's provider is not here."""
    reference_ms: float | None = None
    waf: float | None = None
    agreement: float = 0.0
    shift: float = 0.0
    cosine: float = 0.0
    neighbour: float = 0.0
    """Change beside loud neighbours, relative to the largest feature."""
    refused: str = ""
    """Why it cannot be chosen at any budget."""

    @property
    def saved(self) -> float | None:
        """Milliseconds; None where none are measured."""
        if self.ms is None or self.reference_ms is None:
            return None
        return self.reference_ms - self.ms


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        chosen: precision by step.
        trials: every candidate, in the order tried.
        reference: the reference's verdict.
        final: the verdict on all chosen together.
        clips: judged on so many.
        trained: whether there was a task; else cosine decided.
        budget: what was asked.
        refusals: why a candidate that is good alone was not taken.
    """

    chosen: Mapping[str, str]
    trials: tuple[Trial, ...]
    reference: Verdict
    final: Verdict
    clips: int
    trained: bool
    budget: Budget
    refusals: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, for the manifest."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain


class Search:
    """Tries the candidates of a target; `run` chooses.

    Args:
        judge: the reference and the clips.
        maker: writes candidates.
        budget: what speed may cost.
        allowed: only these precisions; empty: all of the target's.
        single: whether the bundle will run one clip at a time (the edge target).
        say: receives progress, one line at a time.
    """

    def __init__(
        self,
        judge: Judge,
        maker: Maker,
        budget: Budget,
        allowed: tuple[str, ...] = (),
        single: bool = False,
        say: Say = print,
    ) -> None:
        self.judge, self.maker, self.budget, self.say = judge, maker, budget, say
        self.allowed, self.single = allowed, single
        self.features: dict[tuple[str, str], NDArray[np.float32]] = {}
        self._journal = Journal(maker.folder / "journal.jsonl")

    def run(self) -> Outcome:
        """Tries everything, then chooses."""
        steps = searched_steps(self.judge.contract)
        for step in steps:
            self._encode(step, REFERENCE)
        trials = [trial for step in steps for trial in self._try_step(step)]
        base = {step.name: REFERENCE for step in steps}
        chosen, refusals = self._choose(base, trials)
        reference = self._verdict(base)
        return Outcome(
            chosen,
            tuple(trials),
            reference,
            self._verdict(chosen),
            len(self.judge.material),
            self.judge.material.truth is not None,
            self.budget,
            refusals,
        )

    def _try_step(self, step: StepSpec) -> list[Trial]:
        reference = None  # it is large, and only raced against
        if self.judge.timed:
            reference = self.judge.session(step, self.maker.path(step.name, REFERENCE))
        trials = []
        for precision in candidates(self.maker.target, step, self.allowed):
            trial = self._try(step, precision, reference)
            trials.append(trial)
            self.say(line(trial))
        self.maker.forget(step)
        return trials

    def _try(self, step: StepSpec, precision: Precision, reference: Session | None) -> Trial:
        key = self._key(step.name, precision.name)
        known = self._journal.find(key)
        path = self.maker.path(step.name, precision.name)
        if known is not None and (known.refused or path.exists()):
            if not known.refused:
                self._encode(step, precision.name)
            return known
        trial = Trial(step.name, precision.name)
        if not self.judge.timed and "cpu" not in precision.providers:
            return replace(trial, refused=f"only {'/'.join(precision.providers)} runs it")
        try:
            self.maker.make(step, precision)
            session = self.judge.session(step, path)
            trial = self._measure(trial, step, precision, session, reference)
        except MerkitError as error:
            trial = replace(trial, refused=error.found)
        except Exception as error:
            if not type(error).__module__.startswith("onnxruntime"):
                raise
            # its own exceptions derive from none of Python's; memory may suffice another time
            first = str(error).partition("\n")[0]
            return replace(trial, refused=f"ONNX Runtime cannot run it ({first[:200]})")
        self._journal.add(key, trial)
        return trial

    def _measure(
        self,
        trial: Trial,
        step: StepSpec,
        precision: Precision,
        session: Session,
        reference: Session | None,
    ) -> Trial:
        path = self.maker.path(step.name, precision.name)
        trial = replace(trial, bytes=storage.file_bytes(path))
        admission = admit.probe(session, step, path, *self.judge.corners(step))
        refused = (
            "" if admission.finite and (admission.batches or self.single) else admission.problem
        )
        trial = replace(trial, neighbour=admission.neighbour, refused=refused)
        if refused:
            return trial
        rows = self._encode(step, precision.name, session)
        verdict = self._verdict({step.name: precision.name})
        if reference is not None:
            before, after = self.judge.race(step, reference, session)
            trial = replace(trial, ms=after, reference_ms=before)
        return replace(
            trial,
            waf=verdict.waf,
            agreement=verdict.agreement,
            shift=verdict.shift,
            cosine=self.judge.cosine(step, rows, self.features[step.name, REFERENCE]),
        )

    def _choose(
        self, base: Mapping[str, str], trials: list[Trial]
    ) -> tuple[dict[str, str], dict[str, str]]:
        chosen, refusals = dict(base), {}
        for trial in sorted(trials, key=self._promise):
            if trial.refused or chosen[trial.step] != REFERENCE:
                continue
            least = tolerance.LEAST_COSINE.get(trial.precision, 0.0)
            if trial.saved is not None and trial.saved <= 0:
                why = "no faster than the reference"
            elif not trial.cosine >= least:
                why = f"cosine {trial.cosine:.4f}: verify would shut its gate below {least:g}"
            elif self.judge.material.truth is None:
                why = "" if trial.cosine >= self.budget.cosine else f"cosine {trial.cosine:.4f}"
            else:
                why = self._over({**chosen, trial.step: trial.precision}, base)
            if why:
                refusals[f"{trial.step} {trial.precision}"] = why
            else:
                chosen[trial.step] = trial.precision
        return chosen, refusals

    def _promise(self, trial: Trial) -> float:
        """Least first: what saves most time or, untimed, what the target names first."""
        if trial.saved is not None:
            return -trial.saved
        return self.maker.target.precisions.index(trial.precision)

    def _over(self, choice: Mapping[str, str], base: Mapping[str, str]) -> str:
        """What of the budget a choice exceeds, or "". Clips that chose flatter what they chose, and
        `verify` will ask others: labels must agree to one standard error above the budget."""
        found, reference = self._verdict(choice), self._verdict(base)
        agree = found.agreement
        doubt = math.sqrt(agree * (1 - agree) / len(self.judge.material.names))
        if agree - doubt < self.budget.agreement:
            return f"{agree:.2%} (- {doubt:.2%}) of the labels agree with those chosen before it"
        if found.waf is not None and reference.waf is not None:
            lost = 100 * (reference.waf - found.waf)
            if lost > self.budget.waf:
                return f"{lost:.2f} points of WAF lost with those chosen before it"
        if found.ece is not None and reference.ece is not None:
            risen = found.ece - reference.ece
            if risen > self.budget.ece:
                return f"the calibration error rises by {risen:.4f} with those chosen before it"
        return ""

    def _verdict(self, choice: Mapping[str, str]) -> Verdict:
        steps = searched_steps(self.judge.contract)
        named = {s.outputs[0]: s.name for s in steps}
        reference = {o: self.features[name, REFERENCE] for o, name in named.items()}
        found = {o: self.features[name, choice.get(name, REFERENCE)] for o, name in named.items()}
        return self.judge.verdict(found, reference)

    def _encode(
        self, step: StepSpec, precision: str, session: Session | None = None
    ) -> NDArray[np.float32]:
        kept = self.maker.folder / "features" / f"{self._key(step.name, precision)}.npy"
        if session is None and not kept.exists():
            session = self.judge.session(step, self.maker.path(step.name, precision))
        self.features[step.name, precision] = self.judge.encode(step, session, kept)
        return self.features[step.name, precision]

    def _key(self, step: str, precision: str) -> str:
        """Changes with whatever could change what a trial finds."""
        facts = {
            "step": step,
            "digest": self.judge.bundle.manifest["step_digests"],
            "precision": precision,
            "calibration": asdict(self.maker.calibration),
            "target": self.maker.target.name,
            "clips": list(self.judge.material.names),
            "threads": self.judge.threads,
            "timed": self.judge.timed,
        }
        return hashlib.sha256(canonical(facts)).hexdigest()[:16]


class Journal:
    """Trials in a file, one a line, so that a search goes on where it was stopped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Trial] = {}
        if path.exists():
            for entry in path.read_text("utf-8").splitlines():
                try:
                    plain = json.loads(entry)
                    self._known[plain["key"]] = Trial(**plain["trial"])
                except (ValueError, KeyError, TypeError):  # half a line of a killed search
                    continue

    def find(self, key: str) -> Trial | None:
        """What was found under this key."""
        return self._known.get(key)

    def add(self, key: str, trial: Trial) -> None:
        """Notes a trial; it survives a kill."""
        self._known[key] = trial
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "trial": asdict(trial)}) + "\n")


def line(trial: Trial) -> str:
    """A trial for a terminal."""
    head = f"{trial.step:20} {trial.precision:13}"
    if trial.refused:
        return f"{head} refused: {trial.refused}"
    faster = (
        f"{trial.reference_ms / trial.ms:5.2f}x" if trial.ms and trial.reference_ms else "    –"
    )
    metric = f"WAF {100 * trial.waf:.2f}" if trial.waf is not None else f"cos {trial.cosine:.4f}"
    return (
        f"{head} {faster} {trial.bytes / 1e6:8.2f} MB  {metric}  labels {trial.agreement:.2%}"
        f"  neighbour {trial.neighbour:.1e}"
    )
