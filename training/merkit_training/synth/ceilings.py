"""How good any classifier can get: Bayes accuracies by Monte Carlo over the exact posteriors.

Without them nobody could tell a weak model from an ambiguous clip. They are upper bounds: they
read the true parameters, which rendering, coding, noise and blur only ever obscure.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from merkit_training.labels import MER6
from merkit_training.synth.model import (
    CATEGORIES,
    CLIP_STRENGTHS,
    COMPOSITES,
    FACE_SIGMA,
    PAIRS,
    PROTOTYPES,
    TONE_SIGMA,
    WEAK,
    Draw,
    Floats,
    draw,
)

VIEWS = {
    "video": ("video",),
    "prosody": ("prosody",),
    "words": ("words",),
    "sound": ("prosody", "words"),
    "video+prosody": ("video", "prosody"),
    "video+words": ("video", "words"),
    "all": ("video", "prosody", "words"),
}
"""The combinations of evidence whose ceilings are published."""

CLASSES = len(MER6)
TONE_OF, WORDS_OF = (np.array([MER6.index(COMPOSITES[name][i]) for name in MER6]) for i in range(2))


def posterior(
    draws: Sequence[Draw],
    label_prior: Floats,
    view: Sequence[str],
    strengths: Sequence[float] = CLIP_STRENGTHS,
    composite_share: float = 0.0,
) -> Floats:
    """P(label | the true parameters of `view`), float64 [draws, 6]."""
    face = np.stack([d.face for d in draws])
    tone = np.stack([d.tone for d in draws])
    words = np.array([d.category for d in draws])
    ordinary = np.ones((len(draws), CLASSES))
    composite = np.ones((len(draws), CLASSES))
    if "prosody" in view:
        ordinary = ordinary * _mixture("prosody", tone, TONE_SIGMA, strengths)
        composite = composite * _strong("prosody", tone, TONE_SIGMA)[:, TONE_OF]
    if "words" in view:
        ordinary = ordinary * word_table(strengths)[:, words].T
        composite = composite * np.eye(len(CATEGORIES))[WORDS_OF][:, words].T
    joint = (1 - composite_share) * ordinary + composite_share * composite
    if "video" in view:
        joint = joint * _mixture("video", face, FACE_SIGMA, strengths)
    joint = joint * label_prior
    return np.asarray(joint / joint.sum(axis=1, keepdims=True))


def ceilings(
    count: int,
    label_prior: Floats,
    strengths: Sequence[float] = CLIP_STRENGTHS,
    composite_share: float = 0.0,
    seed: int = 0,
) -> dict[str, float]:
    """Bayes accuracy of each of VIEWS, and of the prior alone, over `count` draws."""
    rng = np.random.default_rng([seed, 0xCE11])
    draws = [draw(rng, label_prior, strengths, composite_share) for _ in range(count)]
    found = {"prior": float(label_prior.max())}
    for name, view in VIEWS.items():
        beliefs = posterior(draws, label_prior, view, strengths, composite_share)
        found[name] = float(beliefs.max(axis=1).mean())
    return found


def word_table(strengths: Sequence[float] = CLIP_STRENGTHS) -> Floats:
    """P(sentence category | label) in an ordinary clip, float64 [6, categories]."""
    absent, weak, strong, conflicting = strengths
    table = np.zeros((CLASSES, len(CATEGORIES)))
    for c, name in enumerate(MER6):
        table[c, 0] += absent
        table[c, c] += strong
        pairs = [CLASSES + i for i, pair in enumerate(PAIRS) if name in pair]
        table[c, pairs] += weak / len(pairs)
        table[c, [o for o in range(CLASSES) if o != c]] += conflicting / (CLASSES - 1)
    return table


def _strong(kind: str, values: Floats, sigma: float, gain: float = 1.0) -> Floats:
    """Gaussian likelihood, up to a constant, of `values` [n, d] under each class: [n, 6]."""
    gaps = values[:, None, :] - gain * PROTOTYPES[kind][None]
    return np.asarray(np.exp(-0.5 * (gaps**2).sum(-1) / sigma**2))


def _mixture(kind: str, values: Floats, sigma: float, strengths: Sequence[float]) -> Floats:
    absent, weak, strong, conflicting = strengths
    clear = _strong(kind, values, sigma)
    others = (clear.sum(axis=1, keepdims=True) - clear) / (CLASSES - 1)
    nothing = _strong(kind, values, sigma, 0.0)
    faint = _strong(kind, values, sigma, WEAK)
    return np.asarray(absent * nothing + weak * faint + strong * clear + conflicting * others)
