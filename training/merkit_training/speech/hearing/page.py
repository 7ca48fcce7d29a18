"""A hearing study as a page of tables, worded by its own figures.

What is not measured is named, and a difference is called one only where every seed agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit_training.metrics import waf
from merkit_training.speech.hearing.cells import PUNCTUATOR, Hearing, chain_name, slug
from merkit_training.speech.hearing.chain import chosen
from merkit_training.speech.hearing.conditions import conditions_of
from merkit_training.speech.hearing.plan import TESTS, Row

Values = list[float]
"""One for each seed."""
SEED_RULE = 0.1  # the seed's threshold
FEWEST = 3  # seeds on which a direction is decided


def hearing_page(hearing: Hearing, seeds: Sequence[int], classes: int) -> str:
    """Markdown of all that is measured."""
    study = hearing.study
    written = f"Written by `merkit-train hear training/studies/{study.name}.toml`; do not edit."
    parts = [f"# {study.title}", written, study.about.strip()]
    parts.append(
        "Synthetic voices (espeak-ng) and synthetic clips: the figures prove the machinery and say "
        f"nothing about people. Each row is trained under {len(seeds)} seeds "
        f"({', '.join(map(str, seeds))}); mean ± standard deviation over them."
    )
    for section in (_recognition, _scores, _emotion, _thresholds):
        parts += section(hearing, seeds, classes)
    left = _left(hearing, seeds)
    if left:
        parts.append(f"Not yet measured: {'; '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def _recognition(hearing: Hearing, seeds: Sequence[int], _: int) -> list[str]:
    """Character error rates, and whether each row is better than the one before."""
    study = hearing.study
    keys = [c.key for c in conditions_of(study.snrs)]
    rates = {}
    for row in study.recognizers:
        found = _found(hearing, slug(row.name), seeds)
        if found:
            rates[row.name] = {
                key: [
                    f["errors"][key]["errors"] / max(f["errors"][key]["length"], 1) for f in found
                ]
                for key in keys
            }
    if not rates:
        return []
    rows = [[name, *(_spread(each[key], 100) for key in keys)] for name, each in rates.items()]
    lines = ["## Recognition", (
        f"Character error rate in percent on the clips of `{study.split}`, whose voices and "
        "sentences no training and no choice has seen; noise of levels in dB. Ambient: generated "
        "noise of the kinds that augmentation draws from, other draws. Babble: four other speakers "
        "of the split, without a room, which augmentation has not shown."
    ), _table(["", *keys], rows)]  # fmt: skip
    names = list(rates)
    said = [_step(before, after, rates) for before, after in pairwise(names)]
    return [*lines, *(["\n".join(said)] if said else [])]


def _step(before: str, after: str, rates: dict[str, dict[str, Values]]) -> str:
    """Where a row hears better or worse than the one before, under every seed."""
    better, worse = [], []
    for key in rates[after]:
        pairs = zip(rates[before][key], rates[after][key], strict=True)
        gains = [b - a for b, a in pairs]
        if len(gains) >= FEWEST and all(g > 0 for g in gains):
            better.append(key)
        if len(gains) >= FEWEST and all(g < 0 for g in gains):
            worse.append(key)
    told = [f"better under every seed in {', '.join(better)}"] if better else []
    told += [f"worse under every seed in {', '.join(worse)}"] if worse else []
    return f"- {after}, against {before}: {'; '.join(told) or 'the seeds do not agree'}."


def _scores(hearing: Hearing, seeds: Sequence[int], _: int) -> list[str]:
    """Separation and punctuation, by the scores of their stages."""
    parts: list[str] = []
    study = hearing.study
    rows = {row.name: _found(hearing, slug(row.name), seeds) for row in study.separators}
    rows = {name: found for name, found in rows.items() if found}
    if rows:
        kinds = [
            k
            for k in ("si_sdri", "si_sdri_noise")
            if all(k in f[0]["scores"] for f in rows.values())
        ]
        cells = [
            [name, *(_spread([f["scores"][k] for f in found]) for k in kinds)]
            for name, found in rows.items()
        ]
        parts += ["## Separation", (
            "SI-SDR improvement in dB over the mixture, on mixtures of voices and sentences that "
            "training has not seen (they chose the epoch): `si_sdri` of two voices, "
            "`si_sdri_noise` of a voice in noise. A separator at 8 kHz is judged at 16 kHz, as it "
            "is used."
        ), _table(["", *kinds], cells)]  # fmt: skip
    if found := _found(hearing, PUNCTUATOR, seeds):
        kinds = [k for k in found[0]["scores"] if k.startswith("f1")]
        cells = [[k, _spread([f["scores"][k] for f in found])] for k in kinds]
        parts += ["## Punctuation", (
            "F1 by mark on unseen sentences, joined at random; `f1` is the mean over the marks."
        ), _table(["", "F1"], cells)]  # fmt: skip
    return parts


def _emotion(hearing: Hearing, seeds: Sequence[int], classes: int) -> list[str]:
    """Emotion against noise, with and without the chain."""
    study = hearing.study
    keys = [c.key for c in conditions_of(study.snrs)]
    parts: list[str] = []
    for split in TESTS:
        rows: list[list[str]] = []
        kinds: list[tuple[str, Row, Callable[[dict[str, Any]], list[int]]]] = []
        if study.separators:
            first = study.separators[0]
            kinds += [("true words, noisy sound", first, lambda cell: cell["given"])]
            kinds += [("recognised words, noisy sound", first, lambda cell: _by(cell, 1.0))]
        kinds += [
            (f"chain, {row.name}", row, lambda cell: _by(cell, SEED_RULE))
            for row in study.separators
        ]
        for name, row, how in kinds:
            values = [_waf(hearing, row, split, key, seeds, classes, how) for key in keys]
            if all(values):
                rows.append([name, *(_spread(v, 100) for v in values)])
        if rows:
            parts += [f"### `{split}`", _table(["", *keys], rows)]
    if not parts:
        return []
    return ["## Emotion in noise", (
        f"Weighted average F1 in percent of one emotion model ({_called(hearing)}) on "
        f"{study.emotion_clips or 'all'} clips of each split: seeds differ in the chain alone. The "
        f"chain recognises with the row *{study.chain}* and chooses by the seed's rule with a "
        "threshold of 0.1 (2.4.2, the denoised rows of Tables 3 and 4)."
    ), *parts]  # fmt: skip


def _thresholds(hearing: Hearing, seeds: Sequence[int], classes: int) -> list[str]:
    """The rule's threshold, over all conditions of the split that recognition is measured on."""
    study = hearing.study
    rows = []
    for row in study.separators:
        for threshold in study.thresholds:
            taken: list[float] = []
            values: list[Values] = []
            for c in conditions_of(study.snrs):
                found = _found(hearing, chain_name(row, study.split, c.key), seeds)
                if not found:
                    break
                taken += [_share(cell, threshold) for cell in found]
                values.append([_score(cell, _by(cell, threshold), classes) for cell in found])
            if values and len(values) == 1 + 2 * len(study.snrs):
                mean = np.mean(values, axis=0).tolist()
                share = f"{100 * float(np.mean(taken)):.0f} %"
                rows.append([row.name, f"{threshold:g}", _spread(mean, 100), share])
    if not rows:
        return []
    return ["## The rule's threshold", (
        f"Mean over all conditions on `{study.split}`; how often a separated source was taken."
    ), _table(["", "threshold", "WAF", "separated"], rows)]  # fmt: skip


def _by(cell: dict[str, Any], threshold: float) -> list[int]:
    """Classes if the rule had this threshold; none is over 1, which leaves the original."""
    pairs = zip(cell["heard"], cell["texts"], strict=True)
    return [classes[chosen(texts, threshold)] for classes, texts in pairs]


def _share(cell: dict[str, Any], threshold: float) -> float:
    return float(np.mean([chosen(texts, threshold) > 0 for texts in cell["texts"]]))


def _waf(
    hearing: Hearing, row: Row, split: str, key: str, seeds: Sequence[int], classes: int,
    how: Callable[[dict[str, Any]], list[int]],
) -> Values:  # fmt: skip
    found = _found(hearing, chain_name(row, split, key), seeds)
    return [_score(cell, how(cell), classes) for cell in found]


def _score(cell: dict[str, Any], labels: list[int], classes: int) -> float:
    """WAF; a clip without an answer counts as wrong."""
    truth = _labels(cell["truth"])
    given = _labels(labels)
    return waf(truth, np.where(given < 0, (truth + 1) % classes, given), classes)


def _labels(values: list[int]) -> NDArray[np.int64]:
    return np.asarray(values, np.int64)


def _found(hearing: Hearing, name: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """What was measured under all seeds; nothing if one is missing."""
    found = [hearing.measured(name, seed) for seed in seeds]
    there = [f for f in found if f is not None]
    return there if len(there) == len(found) else []


def _left(hearing: Hearing, seeds: Sequence[int]) -> list[str]:
    study = hearing.study
    rows = (*study.recognizers, *study.separators)
    left = [row.name for row in rows if not _found(hearing, slug(row.name), seeds)]
    first = study.separators[0] if study.separators else None
    last = conditions_of(study.snrs)
    if first and not all(
        _found(hearing, chain_name(first, s, c.key), seeds) for c in last for s in TESTS
    ):
        left.append("emotion with the chain (give --model)")
    return left


def _called(hearing: Hearing) -> str:
    return f"`{hearing.model}`" if hearing.model else "as measured before"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _spread(values: Values, times: float = 1.0) -> str:
    scaled = np.array(values) * times
    mean = f"{scaled.mean():.1f}"
    return mean if len(scaled) < 2 else f"{mean} ± {scaled.std(ddof=1):.1f}"
