"""Lazy voting: pull voters, the cheapest way to certainty first, until the outcome cannot change.

A ranked-mode outcome is often certain before every voter has spoken, and the dearest encoder of
the large profile serves one voter alone. Running it for a vote that cannot matter is most of the
cost of a clip. The label is the same, always (design 4); what a skipped voter would have said is
not known, and results say that it was not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import combinations, product

import numpy as np

from merkit.backends.base import DTYPES
from merkit.bundle import Bundle, onnx_steps
from merkit.contract import MODALITIES, Contract, StepSpec
from merkit.pipeline import GROUP_MODALITIES, GROUPS, OUTCOME, cut
from merkit.voting import NOBODY, ballots_of, winner_of

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
    if pending and not named:  # whatever the first one says
        return False
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


def next_voter(
    ballots: Sequence[int], reads: tuple[tuple[tuple[str, float], ...], ...], classes: int
) -> int | None:
    """Whom to ask next; None where the outcome is settled.

    Of all sets of pending voters that would settle the outcome if they agreed, the one whose
    encoders cost least is hoped for, and its cheapest voter is asked. A cheap voter that can
    never settle anything with the others of its price is so not asked first.

    Args:
        ballots: as `settled` takes them.
        reads: for each voter the groups that it reads with the costs of their encoders.
        classes: how many there are to vote for.
    """
    names = {ballot: i for i, ballot in enumerate(dict.fromkeys(b for b in ballots if b >= 0))}
    return _next_voter(tuple(names.get(b, b) for b in ballots), len(names), reads, classes)


@cache
def _next_voter(
    ballots: tuple[int, ...],
    named: int,
    reads: tuple[tuple[tuple[str, float], ...], ...],
    classes: int,
) -> int | None:
    if _settled(ballots, named, classes):
        return None
    pending = [i for i, ballot in enumerate(ballots) if ballot == PENDING]
    known = {g for i, ballot in enumerate(ballots) if ballot >= 0 for g, _ in reads[i]}

    def cost(voters: Sequence[int]) -> float:
        return sum({g: c for i in voters for g, c in reads[i] if g not in known}.values())

    def hopeful(voters: Sequence[int]) -> bool:
        hopes = range(min(classes, named + 1))
        return any(
            settled([hope if i in voters else b for i, b in enumerate(ballots)], classes)
            for hope in hopes
        )

    sets = [s for size in range(1, len(pending) + 1) for s in combinations(pending, size)]
    best = min((s for s in sets if hopeful(s)), key=lambda s: (cost(s), len(s), s))
    return min(best, key=lambda voter: (cost([voter]), voter))


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
    ballots = np.where(able, PENDING, NOBODY).tolist()
    scores = np.zeros((len(presence), len(voters), classes), np.float32)
    shares = np.zeros((len(presence), len(voters), len(contract.groups)), np.float32)
    (fusion,) = (step for step in steps if "branch_scores" in step.outputs)
    price = [_prices(contract, costs, row) for row in presence]
    while True:
        turns = [
            next_voter(row, groups, classes) for row, groups in zip(ballots, price, strict=True)
        ]
        asked = sorted({voter for voter in turns if voter is not None})
        if not asked:
            break
        wanted = {GROUPS[g] for voter in asked for g in voters[voter].groups}
        walk(cut(steps, values.keys(), sorted(wanted)), values)
        given = {name: _or_zeros(contract, name, values, len(presence)) for name in fusion.inputs}
        walk((fusion,), given)
        for row, voter in enumerate(turns):
            if voter is not None:
                scores[row, voter] = given["branch_scores"][row, voter]
                shares[row, voter] = given["branch_contributions"][row, voter]
                ballots[row][voter] = int(ballots_of(scores[row, voter]))
    values["branch_scores"], values["branch_contributions"] = scores, shares
    walk(cut(steps, values.keys(), OUTCOME), values)


def _prices(
    contract: Contract, costs: Mapping[str, float], presence: np.ndarray
) -> tuple[tuple[tuple[str, float], ...], ...]:
    """For each voter the groups that it reads and what each one's encoder costs for a clip with
    this `presence`: nothing where all of its modalities are absent."""
    makers = {step.outputs[0]: step for step in contract.steps if step.outputs}
    price = {}
    for group in contract.groups:
        step = makers.get(GROUPS[group])
        idle = step is None or (step.needs and not presence[_modalities(step.needs)].any())
        price[group] = 0.0 if idle or step is None else costs.get(step.name, 0.0)
    return tuple(tuple((g, price[g]) for g in voter.groups) for voter in contract.voters)


def _columns(group: str) -> list[int]:
    return _modalities(GROUP_MODALITIES[group])


def _modalities(names: Sequence[str]) -> list[int]:
    return [MODALITIES.index(name) for name in names]


def _or_zeros(contract: Contract, name: str, values: Values, batch: int) -> np.ndarray:
    """A feature, or zeros in its place: no branch reads the features of another."""
    if name in values:
        return values[name]
    spec = contract.tensors[name]
    return np.zeros((batch, *(int(size) for size in spec.shape[1:])), DTYPES[spec.dtype])
