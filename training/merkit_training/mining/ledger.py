"""Every round's decisions on disk: what a label rests on, and where a killed run goes on.

A pseudo-label that nobody can trace is a rumour. So each round keeps who voted what with which
probability, what was adopted into which share and what was dropped, as columns over the clips
that were asked; the state of the pool at any round is those columns replayed.

    DIR/seed-S/excluded.npy
    DIR/seed-S/round-00/{learner-0.safetensors, ..., round.json}
    DIR/seed-S/round-01/{decisions.safetensors, learner-0.safetensors, ..., round.json} ...
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from merkit.errors import BundleCorruptError
from merkit.voting import NOBODY
from merkit_training.mining.exclude import REASONS
from merkit_training.mining.votes import Labels, Votes
from merkit_training.runs import read_json, write_bytes, write_json

EXCLUDED, DECISIONS, ROUND = "excluded.npy", "decisions.safetensors", "round.json"


@dataclass(frozen=True)
class Decisions:
    """What one round did, a row for each clip that was asked."""

    votes: Votes
    adopted: Labels  # [m] the pseudo-label adopted now, NOBODY where none
    share: Labels  # [m] whose training data it joins, NOBODY where none
    dropped: NDArray[np.bool_]  # [m] whether an earlier pseudo-label was withdrawn

    def save(self, path: Path) -> None:
        """Writes the columns."""
        columns = {
            "rows": self.votes.rows,
            "ballots": self.votes.ballots,
            "probabilities": self.votes.probabilities,
            "adopted": self.adopted,
            "share": self.share,
            "dropped": self.dropped,
        }
        write_bytes(path, save({k: np.ascontiguousarray(v) for k, v in columns.items()}))


def read_decisions(path: Path) -> Decisions:
    """Reads what `Decisions.save` wrote; BundleCorruptError where it is damaged."""
    try:
        found = load_file(path)
        votes = Votes(found["rows"], found["ballots"], found["probabilities"])
        return Decisions(votes, found["adopted"], found["share"], found["dropped"])
    except (SafetensorError, KeyError) as error:
        raise BundleCorruptError(
            f"{path} is damaged ({error})", "a round's decisions", "remove this round's folder"
        ) from None


@dataclass
class State:
    """What is known of each clip of the pool after some rounds."""

    excluded: NDArray[np.bool_]  # [n] never asked
    label: Labels = field(init=False)  # [n] the pseudo-label, NOBODY where none
    share: Labels = field(init=False)  # [n] the learner that trains on it

    def __post_init__(self) -> None:
        self.label = np.full(len(self.excluded), NOBODY, np.int8)
        self.share = np.full(len(self.excluded), NOBODY, np.int8)

    def apply(self, decisions: Decisions) -> None:
        """Replays one round."""
        rows = decisions.votes.rows
        for own, value in ((self.label, decisions.adopted), (self.share, decisions.share)):
            own[rows[decisions.dropped]] = NOBODY
            new = decisions.adopted != NOBODY
            own[rows[new]] = value[new]

    def remaining(self) -> NDArray[np.int64]:
        """Clips that may still be adopted."""
        return np.flatnonzero(~self.excluded & (self.label == NOBODY))

    def adopted(self, share: int | None = None) -> NDArray[np.int64]:
        """Clips that have a pseudo-label, of all shares or of one."""
        chosen = self.label != NOBODY
        return np.flatnonzero(chosen if share is None else chosen & (self.share == share))


class Ledger:
    """The rounds of one seed.

    Args:
        folder: DIR/seed-S.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def of(self, number: int) -> Path:
        """The folder of a round."""
        return self.folder / f"round-{number:02d}"

    def excluded(self) -> NDArray[np.int8] | None:
        """An index of `exclude.REASONS` for each clip of the pool; None before it is known."""
        path = self.folder / EXCLUDED
        return np.load(path, allow_pickle=False) if path.exists() else None

    def exclude(self, codes: NDArray[np.int8]) -> None:
        """Keeps which clips take no part."""
        buffer = io.BytesIO()
        np.save(buffer, codes, allow_pickle=False)
        write_bytes(self.folder / EXCLUDED, buffer.getvalue())

    def decisions(self, number: int) -> Decisions | None:
        """What a round decided, None where it has not yet."""
        path = self.of(number) / DECISIONS
        return read_decisions(path) if path.exists() else None

    def finished(self) -> list[dict[str, Any]]:
        """`round.json` of the finished rounds, in order."""
        found: list[dict[str, Any]] = []
        while (path := self.of(len(found)) / ROUND).exists():
            found.append(read_json(path))
        return found

    def finish(self, number: int, facts: dict[str, Any]) -> None:
        """Marks a round done."""
        write_json(self.of(number) / ROUND, facts)

    def state(self, number: int, excluded: NDArray[np.bool_]) -> State:
        """The pool after round `number`."""
        state = State(excluded)
        for earlier in range(1, number + 1):
            if (decisions := self.decisions(earlier)) is not None:
                state.apply(decisions)
        return state

    def reason(self, row: int) -> str:
        """Why the clip `row` takes no part; empty where it does."""
        codes = self.excluded()
        return REASONS[int(codes[row])] if codes is not None and codes[row] else ""

    def trace(self, row: int, voters: Sequence[str], classes: Sequence[str]) -> list[str]:
        """What happened to the clip `row`, a line for each round that asked it."""
        lines = []
        number = 1
        while (found := self.decisions(number)) is not None:
            place = int(np.searchsorted(found.votes.rows, row))
            if place < len(found.votes.rows) and found.votes.rows[place] == row:
                said = [
                    f"{voter} {classes[b]} {p:.2f}" if b != NOBODY else f"{voter} abstains"
                    for voter, b, p in zip(
                        voters,
                        found.votes.ballots[place].tolist(),
                        found.votes.probabilities[place].tolist(),
                        strict=True,
                    )
                ]
                lines.append(
                    f"round {number}: {'; '.join(said)}: {_fate(found, place, classes, voters)}"
                )
            number += 1
        return lines


def _fate(found: Decisions, place: int, classes: Sequence[str], voters: Sequence[str]) -> str:
    if found.dropped[place]:
        return "dropped, back in the pool"
    if (label := int(found.adopted[place])) != NOBODY:
        return f"adopted as {classes[label]}, for {voters[int(found.share[place])]} to train on"
    return "no change"
