"""From a proven float32 bundle to the files and the manifest entries of its target."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle, onnx_steps
from merkit.contract import Contract, StepSpec
from merkit.errors import InvalidInputError, MerkitError
from merkit_export.precision import material as clips
from merkit_export.precision.judge import Judge, Verdict
from merkit_export.precision.kinds import PRECISIONS, REFERENCE, target
from merkit_export.precision.material import Material
from merkit_export.precision.search import Budget, Outcome, Say, Search
from merkit_export.precision.variants import Calibration, Maker, variant
from merkit_training.metrics import ece, waf


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Plan:
    """What a build for a target is asked for."""

    target: str
    corpus: Path | None = None
    """What the run was trained on; None where its weights are random."""
    budget: Budget = field(default_factory=Budget)
    calibration: Calibration = field(default_factory=Calibration)
    allowed: tuple[str, ...] = ()
    """Only these precisions; empty: all of the target's."""
    clips: int = 0
    """At most so many validation clips; 0: all."""
    threads: int = field(default_factory=cores)
    """Of every session that is timed."""
    table: Path | None = None
    """Where to write the trade-off as Markdown."""

    def __post_init__(self) -> None:
        known = target(self.target).precisions
        for name in self.allowed:
            if name not in known:
                raise InvalidInputError(
                    f"{name!r} is no precision of the target {self.target!r}",
                    f"some of {', '.join(known)}",
                )


@dataclass(frozen=True)
class Choice:
    """Files to take and what the manifest says of them."""

    files: dict[str, Path]
    """Of the steps that are not as exported."""
    precision: dict[str, dict[str, Any]]
    """By step."""
    outcome: Outcome


def choose(bundle: Bundle, plan: Plan, work: Path, say: Say) -> Choice:
    """Searches the precisions of a bundle.

    Args:
        bundle: proven, in float32.
        plan: target, budget, data.
        work: candidates, decoded clips and the journal; what is there is taken up again.
        say: receives progress.

    Raises:
        InvalidInputError: the corpus is missing or another one than the run's.
        MerkitError: the whole bundle exceeds the budget although its parts did not.
    """
    aim = target(plan.target)
    calibrating, judging = _material(bundle, plan, work)
    judge = Judge(bundle, judging, plan.threads, aim.provider)
    try:
        if not judge.timed:
            say(f"no {aim.provider} here: precisions are ordered by their bits, not by time")

        def feeds(step: StepSpec) -> list[dict[str, Any]]:
            return judge.feeds(step, calibrating)

        maker = Maker(bundle, aim, plan.calibration, feeds, work, plan.threads)
        search = Search(judge, maker, plan.budget, plan.allowed, plan.target == "edge", say)
        found = search.run()
        files = {s: maker.path(s, p) for s, p in found.chosen.items() if p != REFERENCE}
        found = replace(found, final=_whole(judge, bundle, files))
    finally:
        judge.close()
    _hold(found)
    return Choice(files, entries(bundle.contract, found), found)


def entries(contract: Contract, found: Outcome | None = None) -> dict[str, dict[str, Any]]:
    """The manifest's `precision`: for each ONNX step which one and why; `batches` is false where
    clips must not share a batch."""
    chosen = found.chosen if found else {}
    table: dict[str, dict[str, Any]] = {}
    for step in onnx_steps(contract):
        precision = PRECISIONS[chosen.get(step.name, REFERENCE)]
        table[step.name] = {"precision": precision.name, "why": precision.why}
        if not precision.batches:
            table[step.name]["batches"] = False
    return table


def check_corpus(plan: Plan, card: str | None) -> None:
    """Refuses another corpus than the run's, and none where the run was trained; `card` is the
    sha256 of its data card, None at random weights. Cheap: to be asked before any work.

    Raises:
        InvalidInputError: so it is.
    """
    if plan.corpus is not None:
        clips.same_corpus(plan.corpus, card)
    elif card is not None:
        raise InvalidInputError(
            "the run was trained, but no corpus is given",
            "the corpus it was trained on, whose validation clips judge precisions",
            "give it with --corpus",
        )


def _material(bundle: Bundle, plan: Plan, work: Path) -> tuple[Material, Material]:
    """Clips to calibrate on and clips to judge by."""
    contract = bundle.contract
    check_corpus(plan, bundle.manifest["provenance"]["data"]["card_sha256"])
    if plan.corpus is None:
        return clips.made_up_material(contract, 1000), clips.made_up_material(contract, 2000)
    cache = work / "clips"
    size = plan.calibration.clips
    return (
        clips.corpus_material(plan.corpus, clips.CALIBRATION, size, contract, cache),
        clips.corpus_material(plan.corpus, clips.JUDGEMENT, plan.clips, contract, cache),
    )


def _whole(judge: Judge, bundle: Bundle, files: dict[str, Path]) -> Verdict:
    """All that was chosen together, clip by clip through the backend that will run it."""
    expected, before = _answers(judge, bundle, "as exported")
    labels, scores = _answers(judge, variant(bundle, files), "as chosen")
    if not np.isfinite(scores).all():
        raise MerkitError(
            "the chosen precisions together make NaN or infinity",
            "finite probabilities for every clip",
            "leave a precision out with --precisions",
        )
    truth, score, error = judge.material.truth, None, None
    if truth is not None:
        score = waf(truth, np.maximum(labels, 0), len(judge.contract.labels))
        error = ece(truth, scores)
    shifts = np.abs(scores - before)[np.arange(len(expected)), expected]
    return Verdict(score, float((labels == expected).mean()), float(shifts.mean()), error)


def _answers(
    judge: Judge, bundle: Bundle, name: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Labels [clips] and probabilities [clips, classes] of a bundle, which is then closed: two of
    large encoders might not fit."""
    backend, labels, scores = EmbeddedBackend(bundle, ["cpu"], judge.threads), [], []
    try:
        for clip in tqdm(judge.material, f"whole pipeline {name}", disable=None, leave=False):
            found = backend.infer(clip)
            labels.append(int(found["label"][0]))
            scores.append(found["scores"][0].astype(np.float64))
    finally:
        backend.close()
    return np.array(labels), np.stack(scores)


def _hold(found: Outcome) -> None:
    """The budget once more, on the whole."""
    if not found.trained:
        return
    lost = 100 * ((found.reference.waf or 0.0) - (found.final.waf or 0.0))
    risen = (found.final.ece or 0.0) - (found.reference.ece or 0.0)
    budget = found.budget
    if lost > budget.waf or found.final.agreement < budget.agreement or risen > budget.ece:
        raise MerkitError(
            f"together the chosen precisions lose {lost:.2f} points of WAF, "
            f"{found.final.agreement:.2%} of the labels agree, and the calibration error rises by "
            f"{risen:.4f}",
            f"at most {budget.waf:g} points, at least {budget.agreement:.0%}, and at most "
            f"{budget.ece:g}",
            "give a tighter budget, or leave a precision out with --precisions",
        )
