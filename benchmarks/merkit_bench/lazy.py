"""`python -m merkit_bench.lazy`: what lazy voting saves, and whether it ever changes a label.

A saving that changed one label in a thousand would be no saving. So every clip of whole test
splits is asked both ways, and what was saved stands beside the most that the ranking allows: the
cheapest set of voters that, with hindsight, would have settled each clip.
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
from merkit.backends.lazy import PENDING, settled, step_costs
from merkit.bundle import open_bundle
from merkit.contract import MODALITIES, Contract, Preprocessing
from merkit.entry import Clip, decoded_entry
from merkit.errors import MerkitError
from merkit.media.limits import Limits
from merkit.pipeline import GROUPS
from merkit.voting import NOBODY
from merkit_bench.agreement import read_clips

HEAD = """# Lazy voting

Written by `python -m merkit_bench.lazy`; do not edit. Every clip of each split, decoded once, then
asked eagerly and lazily in turn. *Operations* are those of the encoders (the manifest's `costs`),
*time* is what the encoders took in this run; *most possible* is the saving of the cheapest voters
that, with hindsight, settle each clip. The bundle's models are synthetic.

| split | clips | same label | voters asked | operations saved | most possible | time saved |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
"""


@dataclass
class Tally:
    """Sums over the clips of a split."""

    clips: int = 0
    same: int = 0
    asked: int = 0
    operations: np.ndarray = field(default_factory=lambda: np.zeros(3))  # eager, lazy, hindsight
    seconds: np.ndarray = field(default_factory=lambda: np.zeros(2))  # eager, lazy

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
        reads = {GROUPS[g] for i in voters for g in self.contract.voters[i].groups}
        return sum(
            self.costs[name]
            for name, step in self.encoders.items()
            if step.outputs[0] in reads and set(step.needs) & set(present)
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


def compare(bundle: Path, folders: Sequence[Path]) -> list[str]:
    """Markdown rows, one for each split."""
    opened = open_bundle(bundle)
    ledger = Ledger(opened.contract, step_costs(opened))
    eager, lazy = EmbeddedBackend(opened, ["cpu"]), EmbeddedBackend(opened, ["cpu"], lazy=True)
    rows = []
    try:
        for folder in folders:
            tally = Tally()
            for path, text in tqdm(list(read_clips(folder)), desc=folder.name):
                entry = _tensors(path, text, opened.contract.preprocessing)
                _ask(tally, ledger, eager, lazy, entry)
            rows.append(tally.row(folder.name))
    finally:
        eager.close()
        lazy.close()
    return rows


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
    args = parser.parse_args()
    try:
        rows = compare(args.bundle, args.clips)
    except MerkitError as error:
        print(f"merkit_bench.lazy: {error}", file=sys.stderr)
        return 2
    print(HEAD + "\n".join(rows))
    counts = [row.split("|")[2:4] for row in rows]
    return int(any(clips != same for clips, same in counts))


if __name__ == "__main__":
    sys.exit(main())
