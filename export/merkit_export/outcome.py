"""The whole pipeline's answers against the checkpoint's: labels, probabilities, and what they cost.

Where every step claims to compute the same, one other label is a fault. Where a step runs in fewer
bits, labels of doubtful clips will flip, and the question is how many, whether the score suffers,
and whether a probability still means what it meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_export.tolerance import ROUNDING, Budget
from merkit_training.metrics import ece, waf

KEPT_PROBLEMS = 5
Answer = tuple[str, NDArray[np.float32]]
"""A label and the probability of each class."""


@dataclass(frozen=True)
class Scores:
    """Of one side on labelled clips."""

    waf: float
    ece: float

    def to_json(self) -> dict[str, float]:
        """Plain values."""
        return {"waf": round(self.waf, 6), "ece": round(self.ece, 6)}


@dataclass
class OutcomeParity:
    """Torch against the bundle, from a clip's tensors or bytes to its answer.

    Attributes:
        labels: class names in order; without them clips cannot be scored.
        budget: what the answers may cost; None: they must be the same.
        advisory: differences are told but fail nothing: made-up clips say nothing of the task.
    """

    labels: Sequence[str] = ()
    budget: Budget | None = None
    advisory: bool = False
    clips: int = 0
    labels_differ: int = 0
    refused: int = 0  # clips that both refuse with the same error: nothing in them to judge
    max_abs: float = 0.0  # of a probability, over all clips and classes
    tolerance: float = ROUNDING
    flips: list[str] = field(default_factory=list)  # the first few clips whose label differs
    problems: list[str] = field(default_factory=list)
    _judged: list[tuple[str, Answer, Answer]] = field(default_factory=list, repr=False)

    @property
    def passed(self) -> bool:
        """Whether all is within tolerance, or within the budget."""
        return not self.problems

    @property
    def answered(self) -> int:
        """Clips that both answered."""
        return self.clips - self.refused

    @property
    def agreement(self) -> float:
        """Share of answered clips with the same label."""
        return 1 - self.labels_differ / self.answered if self.answered else 1.0

    @property
    def labelled(self) -> int:
        """Clips whose true label is known."""
        return len(self._judged)

    def scores(self) -> tuple[Scores, Scores] | None:
        """Of torch and of the bundle, on the labelled clips; None where there are none."""
        if not self._judged:
            return None
        place = {name: i for i, name in enumerate(self.labels)}
        truth = np.array([place[truth] for truth, *_ in self._judged])

        def of(side: int) -> Scores:
            answers = [(want, got)[side] for _, want, got in self._judged]
            predicted = np.array([place[label] for label, _ in answers])
            probabilities = np.stack([scores for _, scores in answers]).astype(np.float64)
            return Scores(waf(truth, predicted, len(place)), ece(truth, probabilities))

        return of(0), of(1)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        keys = ("clips", "labels_differ", "refused", "max_abs", "tolerance", "flips", "problems")
        found = self.scores()
        scored = {"torch": found[0].to_json(), "bundle": found[1].to_json()} if found else {}
        return {
            **{key: getattr(self, key) for key in keys},
            "agreement": self.agreement,
            "labelled": self.labelled,
            **scored,
            "passed": self.passed,
        }

    def add(self, name: str, want: Answer | str, got: Answer | str, truth: str = "") -> None:
        """Notes one clip: torch's answer and the bundle's.

        An answer is a label with probabilities [classes], or the name of the error that says why
        there is none. `truth` is the clip's true label, "" where it is unknown.
        """
        self.clips += 1
        if isinstance(want, str) or isinstance(got, str):
            self.refused += 1
            if want != got:
                self._complain(f"{name}: torch says {_told(want)}, the bundle {_told(got)}")
            return
        if truth:
            self._judged.append((truth, want, got))
        difference = float(np.abs(want[1] - got[1]).max())
        self.max_abs = max(self.max_abs, difference)
        told = f"{name}: torch says {want[0]}, the bundle {got[0]}"
        if want[0] != got[0]:
            self.labels_differ += 1
            if len(self.flips) < KEPT_PROBLEMS:
                self.flips.append(told)
        exact = self.budget is None and not self.advisory
        if not np.isfinite(got[1]).all():
            self._complain(f"{name}: the bundle's probabilities hold NaN or infinity")
        elif exact and (want[0] != got[0] or not difference <= self.tolerance):
            self._complain(f"{told}, {difference:.2g} apart")

    def close(self) -> OutcomeParity:
        """Holds what was noted against the budget, once all clips are in; returns itself."""
        if self.budget is None or self.advisory:
            return self
        if not self.answered:
            self._complain("no clip was answered: what the lossy steps cost shows nowhere")
        if not self.agreement >= self.budget.agreement:
            self._complain(
                f"{self.agreement:.2%} of the labels agree, of which {self.budget.agreement:.2%} "
                "must"
            )
        if found := self.scores():
            lost, shifted = found[0].waf - found[1].waf, found[1].ece - found[0].ece
            if lost > self.budget.waf_loss:
                self._complain(f"WAF loses {lost:.4f}, at most {self.budget.waf_loss:g} may go")
            if shifted > self.budget.ece_shift:
                self._complain(
                    f"the calibration error rises by {shifted:.4f}, at most "
                    f"{self.budget.ece_shift:g} may come"
                )
        return self

    def _complain(self, problem: str) -> None:
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(problem)


def _told(answer: Answer | str) -> str:
    return answer if isinstance(answer, str) else answer[0]
