"""`python -m merkit_bench.lazy`: what lazy voting saves, and whether it ever changes a label.

A saving that changed one label in a thousand would be no saving. So every clip of whole test
splits is asked both ways, and what was saved stands beside the most that the ranking allows: the
cheapest set of voters that, with hindsight, would have settled each clip.

Who votes what does not depend on what an encoder costs, so the same votes also tell what would be
saved at the shapes of another recipe, such as the paper's, whose weights nobody has here.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from tqdm import tqdm

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.lazy import PENDING, next_voter, settled, step_costs
from merkit.bundle import open_bundle
from merkit.contract import MODALITIES, Contract, Preprocessing
from merkit.entry import Clip, decoded_entry
from merkit.errors import MerkitError
from merkit.media.limits import Limits
from merkit.pipeline import GROUPS
from merkit.voting import NOBODY
from merkit_bench.agreement import read_clips
from merkit_export.costs import recipe_operations
from merkit_training.recipe import load_recipe

HEAD = """# Lazy voting

Written by `python -m merkit_bench.lazy`; do not edit. Every clip of each split, decoded once, then
asked eagerly and lazily in turn. *Operations* are those of the encoders (the manifest's `costs`),
*time* is what the encoders took in this run; *most possible* is the saving of the cheapest voters
that, with hindsight, settle each clip. The bundle's models are synthetic.

| split | clips | same label | voters asked | operations saved | most possible | time saved |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""
SHAPES = """
## At other shapes

The votes of the same clips, and what the encoders of a recipe would have cost for a sentence of
5 s and 20 tokens: operations counted from the shapes, nothing of that size was run. Who is asked
next follows from those costs.

| recipe | encoder operations of a clip | voters asked | operations saved | most possible |
| --- | --- | ---: | ---: | ---: |
"""
Votes = list[tuple[tuple[int, ...], tuple[str, ...]]]
"""Ballots in rank order, and the modalities that are there, by clip."""


@dataclass
class Tally:
    """Sums over the clips of a split."""

    clips: int = 0
    same: int = 0
    asked: int = 0
    operations: np.ndarray = field(default_factory=lambda: np.zeros(3))  # eager, lazy, hindsight
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(2))  # eager, lazy
    votes: Votes = field(default_factory=list)

    def row(self, name: str) -> str:
        """One row of the table."""
        eager, lazy, least = self.operations
        return (
            f"| {name} | {self.clips} | {self.same} | {self.asked / self.clips:.2f} "
            f"| {1 - lazy / eager:.1%} | {1 - least / eager:.1%} "
            f"| {1 - self.seconds[1] / self.seconds[0]:.1%} |"
        )


class Ledger:
    """Encoder operations of sets of voters."""

    def __init__(self, contract: Contract, costs: Mapping[str, float]) -> None:
        self.contract, self.costs = contract, costs
        self.encoders = {
            step.name: step
            for step in contract.steps
            if step.outputs[0] in GROUPS.values() and step.name in costs
        }

    def of(self, voters: Collection[int], present: Collection[str]) -> float:
        """Of the encoders that these voters read, but for those of absent modalities."""
        groups = {g for i in voters for g in self.contract.voters[i].groups}
        return sum(self.of_group(g, present) for g in groups)

    @cache  # noqa: B019 - a ledger lives as long as the process
    def asked(self, ballots: tuple[int, ...], present: tuple[str, ...]) -> tuple[int, ...]:
        """The voters that lazy voting asks where they would vote like this."""
        price = {g: self.of_group(g, present) for g in self.contract.groups}
        reads = tuple(tuple((g, price[g]) for g in v.groups) for v in self.contract.voters)
        state = [b if b == NOBODY else PENDING for b in ballots]
        while (voter := next_voter(state, reads, len(self.contract.labels))) is not None:
            state[voter] = ballots[voter]
        return tuple(i for i, ballot in enumerate(state) if ballot >= 0)

    def of_group(self, group: str, present: Collection[str]) -> float:
        """Of the encoder of a group, or nothing where its modalities are absent."""
        return sum(
            self.costs[name]
            for name, step in self.encoders.items()
            if step.outputs[0] == GROUPS[group] and set(step.needs) & set(present)
        )

    @cache  # noqa: B019 - a ledger lives as long as the process
    def least(self, ballots: tuple[int, ...], present: tuple[str, ...]) -> float:
        """Of the cheapest voters whose votes alone settle the outcome."""
        able = [i for i, ballot in enumerate(ballots) if ballot != NOBODY]
        classes = len(self.contract.labels)
        return min(
            self.of(asked, present)
            for size in range(1, len(able) + 1)
            for asked in itertools.combinations(able, size)
            if settled(
                [b if i in asked or b == NOBODY else PENDING for i, b in enumerate(ballots)],
                classes,
            )
        )


def compare(bundle: Path, folders: Sequence[Path]) -> dict[str, Tally]:
    """What each split came to."""
    opened = open_bundle(bundle)
    ledger = Ledger(opened.contract, step_costs(opened))
    eager, lazy = EmbeddedBackend(opened, ["cpu"]), EmbeddedBackend(opened, ["cpu"], lazy=True)
    tallies = {}
    try:
        for folder in folders:
            tally = tallies[folder.name] = Tally()
            for path, text in tqdm(list(read_clips(folder)), desc=folder.name):
                entry = _tensors(path, text, opened.contract.preprocessing)
                _ask(tally, ledger, eager, lazy, entry)
    finally:
        eager.close()
        lazy.close()
    return tallies


def at_shapes(name: str, ledger: Ledger, votes: Votes) -> str:
    """One row: what lazy voting saves where encoders cost what `ledger` says."""
    sums, asked = np.zeros(3), 0
    for ballots, present in votes:
        lazy = ledger.asked(ballots, present)
        asked += len(lazy)
        able = [i for i, ballot in enumerate(ballots) if ballot != NOBODY]
        sums += [ledger.of(able, present), ledger.of(lazy, present), ledger.least(ballots, present)]
    eager, lazily, least = sums
    costs = ", ".join(f"{n} {ledger.costs[n] / 1e9:,.1f} G" for n in sorted(ledger.encoders))
    return (
        f"| {name} | {costs} | {asked / len(votes):.2f} | {1 - lazily / eager:.1%} "
        f"| {1 - least / eager:.1%} |"
    )


def _tensors(path: Path, text: str, p: Preprocessing) -> Mapping[str, np.ndarray]:
    return decoded_entry(Clip(path, text), p, Limits(), None, keep_frames=False).tensors


def _ask(
    tally: Tally,
    ledger: Ledger,
    eager: EmbeddedBackend,
    lazy: EmbeddedBackend,
    tensors: Mapping[str, np.ndarray],
) -> None:
    took: list[dict[str, float]] = [{}, {}]
    order = [(0, eager), (1, lazy)]
    if tally.clips % 2:
        order.reverse()  # whoever comes second finds warm caches
    found: list[dict[str, np.ndarray]] = [{}, {}]
    for i, backend in order:
        found[i] = backend.infer(tensors, took[i])
    there = found[0]["presence"][0]
    present = tuple(m for m, is_there in zip(MODALITIES, there, strict=True) if is_there)
    scores = [out["branch_scores"][0] for out in found]
    voted = [(s != 0).any(axis=1) for s in scores]
    ballots = tuple(np.where(voted[0], scores[0].argmax(axis=1), NOBODY).tolist())
    tally.votes.append((ballots, present))
    tally.clips += 1
    tally.same += int(found[0]["label"][0] == found[1]["label"][0])
    tally.asked += int(voted[1].sum())
    tally.operations += [
        ledger.of(np.flatnonzero(voted[0]).tolist(), present),
        ledger.of(np.flatnonzero(voted[1]).tolist(), present),
        ledger.least(ballots, present),
    ]
    tally.seconds += [sum(ms for name, ms in t.items() if name in ledger.encoders) for t in took]


def main() -> int:
    """Prints a Markdown page; exit status 1 when a label differs."""
    parser = argparse.ArgumentParser(prog="merkit_bench.lazy", description=__doc__)
    parser.add_argument("--bundle", type=Path, default=Path("triton_repo/models"))
    parser.add_argument("--clips", type=Path, nargs="+", required=True, help="folders of splits")
    parser.add_argument(
        "--recipes", type=Path, nargs="*", default=[], help="other shapes to tell of"
    )
    args = parser.parse_args()
    try:
        recipes = [load_recipe(path) for path in args.recipes]
        tallies = compare(args.bundle, args.clips)
        contract = open_bundle(args.bundle).contract
    except MerkitError as error:
        print(f"merkit_bench.lazy: {error}", file=sys.stderr)
        return 2
    print(HEAD + "\n".join(tally.row(name) for name, tally in tallies.items()))
    votes = [vote for tally in tallies.values() for vote in tally.votes]
    ledgers = {r.run.name: Ledger(contract, recipe_operations(r)) for r in recipes}
    if ledgers:
        rows = [at_shapes(name, ledger, votes) for name, ledger in ledgers.items()]
        print(SHAPES + "\n".join(rows))
    return int(any(tally.clips != tally.same for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
