"""Does the changed graph compute what was fitted? Asked of the new bundle before it is there.

What a gate once found holds for the former numbers. A run to compare the new ones with does not
exist, so some of the labelled clips go through the whole new bundle, and its branches are held
against the fit's own arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.bundle import Bundle
from merkit.calibration.fit import TINY, Calibration
from merkit.calibration.labelled import Labelled, branch_scores
from merkit.client import Client
from merkit.entry import Clip
from merkit.errors import MerkitError
from merkit.voting import ranked_mode

CHECKED = 20
"""Clips at most; spread over those that were judged."""
TOLERANCE = 1e-3
"""Of a probability; scores are float32, and a fit may multiply what they were rounded by."""


def check(
    bundle: Bundle, clips: Sequence[Clip], told: Labelled, start: Calibration, found: Calibration
) -> dict[str, Any]:
    """Compares a calibrated bundle with its fit; what the manifest says of that.

    Raises:
        MerkitError: its branches or its vote say something else.
    """
    from merkit.backends.embedded import EmbeddedBackend

    fitted = found.apply(start.undo(told.scores), told.voted)
    chosen = np.unique(np.linspace(0, len(told.labels) - 1, CHECKED).astype(int))
    names = bundle.contract.labels
    with Client(EmbeddedBackend(bundle)) as client:
        answers = client.predict_many([clips[told.places[i]] for i in chosen])
        with closing(answers):
            rows, labels = [], []
            for answer in answers:
                if isinstance(answer, MerkitError):
                    raise answer
                rows.append(branch_scores(answer, bundle.contract))
                labels.append(names.index(answer.label))
    got = np.array(rows)
    voted, before = told.voted[chosen], told.scores[chosen]
    known = (before > TINY).all(axis=2) | ~voted  # the logit behind a zero is lost
    furthest = float(np.abs(got - fitted[chosen])[known].max(initial=0))
    differ = int((_labels(got) != labels).sum())
    if not furthest <= TOLERANCE or differ or not (known & voted).any():
        raise MerkitError(
            f"on {len(chosen)} clips the calibrated graph differs from what was fitted by up to "
            f"{furthest:.1e}, and {differ} labels from its branches' vote",
            f"at most {TOLERANCE:g}, no label, and scores that are not all 0 or 1",
            "nothing was written; export the bundle again and calibrate that",
        )
    moved = int((_labels(told.scores) != _labels(fitted)).sum())
    return {
        "clips_checked": len(chosen),
        "max_abs": furthest,
        "labels_moved": moved,
        "of_clips": len(fitted),
    }


def _labels(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return ranked_mode(scores.astype(np.float32))[0]
