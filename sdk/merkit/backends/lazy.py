"""Lazy voting: pull voters, cheapest encoders first, until the outcome cannot change.

A ranked-mode outcome is often certain before every voter has spoken, and the dearest encoder of
the large profile serves one voter alone. Running it for a vote that cannot matter is most of the
cost of a clip. The label is the same, always (design 4); what a skipped voter would have said is
not known, and results say that it was not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import product

import numpy as np

from merkit.backends.base import DTYPES
from merkit.bundle import Bundle, onnx_steps
from merkit.contract import MODALITIES, Contract, StepSpec
from merkit.pipeline import GROUP_MODALITIES, GROUPS, OUTCOME, cut
from merkit.voting import NOBODY, winner_of

PENDING = -2
"""The ballot of a voter that has not been asked; `NOBODY` is that of one that abstains."""

Values = dict[str, np.ndarray]


def settled(ballots: Sequence[int], classes: int) -> bool:
    """Whether the ranked-mode outcome is the same however the pending voters vote.

    Args:
        ballots: in rank order a class, `NOBODY` for an abstention, or `PENDING`.
        classes: how many there are to vote for.
    """
    names = {ballot: i for i, ballot in enumerate(dict.fromkeys(b for b in ballots if b >= 0))}
    return _settled(tuple(names.get(b, b) for b in ballots), len(names), classes)


@cache
def _settled(ballots: tuple[int, ...], named: int, classes: int) -> bool:
    """The same of ballots whose classes are numbered as they appear: few patterns are left."""
    pending = [i for i, ballot in enumerate(ballots) if ballot == PENDING]
    open_to = range(min(classes, named + len(pending)))  # unnamed classes are all alike
    outcomes = set()
    for votes in product(open_to, repeat=len(pending)):
        whole = list(ballots)
        for i, vote in zip(pending, votes, strict=True):
            whole[i] = vote
        outcomes.add(winner_of(whole))
        if len(outcomes) > 1:
            return False
    return True


def step_costs(bundle: Bundle) -> dict[str, float]:
    """What each ONNX step costs, for ordering alone: the manifest's `costs` (floating-point
    operations for one clip), or the sizes of the model files where it has none."""
    stated = bundle.manifest.get("costs")
    steps = [step.name for step in onnx_steps(bundle.contract)]
    if isinstance(stated, Mapping) and all(
        isinstance(stated.get(name), int | float) for name in steps
    ):
        return {name: float(stated[name]) for name in steps}
    return {name: float(bundle.model_path(name).stat().st_size) for name in steps}


def pull_votes(
    contract: Contract,
    costs: Mapping[str, float],
    values: Values,
    walk: Callable[[Sequence[StepSpec], Values], None],
) -> None:
    """Computes `pipeline.OUTCOME` in `values`, asking no voter that cannot matter.

    `branch_scores` and `branch_contributions` of a voter that was not asked are rows of zeros. A
    clip's result does not depend on its neighbours in the batch: votes that only they needed are
    left out of it.

    Args:
        contract: the pipeline.
        costs: of each ONNX step, in any unit.
        values: entry tensors; all that is computed is added.
        walk: runs steps on a dict of values, to which it adds their outputs.
    """
    steps, voters, classes = contract.steps, contract.voters, len(contract.labels)
    walk(cut(steps, values.keys(), ("presence",)), values)
    presence = values["presence"]
    there = {g: presence[:, _columns(g)].any(axis=1) for g in contract.groups}
    able = np.stack([np.any([there[g] for g in v.groups], axis=0) for v in voters], axis=1)
    ballots = np.where(able, PENDING, NOBODY)
    scores = np.zeros((len(presence), len(voters), classes), np.float32)
    shares = np.zeros((len(presence), len(voters), len(contract.groups)), np.float32)
    (fusion,) = (step for step in steps if "branch_scores" in step.outputs)
    while True:
        undecided = np.array([not settled(row.tolist(), classes) for row in ballots], bool)
        asked = (ballots == PENDING) & undecided[:, None]
        if not asked.any():
            break
        features = {
            i: cut(steps, values.keys(), [GROUPS[g] for g in voters[i].groups])
            for i in np.flatnonzero(asked.any(axis=0)).tolist()
        }
        cheapest = min(features, key=lambda i: _cost(features[i], costs, presence))
        walk(features[cheapest], values)
        given = {name: _or_zeros(contract, name, values, len(presence)) for name in fusion.inputs}
        walk((fusion,), given)
        rows = np.flatnonzero(asked[:, cheapest])
        scores[rows, cheapest] = given["branch_scores"][rows, cheapest]
        shares[rows, cheapest] = given["branch_contributions"][rows, cheapest]
        ballots[rows, cheapest] = scores[rows, cheapest].argmax(axis=1)
    values["branch_scores"], values["branch_contributions"] = scores, shares
    walk(cut(steps, values.keys(), OUTCOME), values)


def _cost(plan: Sequence[StepSpec], costs: Mapping[str, float], presence: np.ndarray) -> float:
    """Of the steps that have to run; those of modalities that no clip of the batch has do not."""
    return sum(
        costs.get(step.name, 0.0)
        for step in plan
        if not step.needs or presence[:, [MODALITIES.index(m) for m in step.needs]].any()
    )


def _columns(group: str) -> list[int]:
    return [MODALITIES.index(m) for m in GROUP_MODALITIES[group]]


def _or_zeros(contract: Contract, name: str, values: Values, batch: int) -> np.ndarray:
    """A feature, or zeros in its place: no branch reads the features of another."""
    if name in values:
        return values[name]
    spec = contract.tensors[name]
    return np.zeros((batch, *(int(size) for size in spec.shape[1:])), DTYPES[spec.dtype])
