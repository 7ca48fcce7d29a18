"""A hearing study as a page of tables, worded by its own figures.

What is not measured is named, and a difference is called one only where every seed agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from merkit_training.speech.hearing.cells import PUNCTUATOR, Hearing, chain_name, slug
from merkit_training.speech.hearing.chain import chosen
from merkit_training.speech.hearing.conditions import conditions_of
from merkit_training.speech.hearing.figures import (
    SEED_RULE,
    Values,
    agreed,
    by,
    found_of,
    score,
    spread,
    table,
)
from merkit_training.speech.hearing.plan import TESTS, Row
from merkit_training.speech.hearing.skipping import skipping


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
    for section in (_recognition, _scores, _emotion, _thresholds, skipping):
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
        found = found_of(hearing, slug(row.name), seeds)
        if found:
            rates[row.name] = {
                key: [
                    f["errors"][key]["errors"] / max(f["errors"][key]["length"], 1) for f in found
                ]
                for key in keys
            }
    if not rates:
        return []
    rows = [[name, *(spread(each[key], 100) for key in keys)] for name, each in rates.items()]
    lines = ["## Recognition", (
        f"Character error rate in percent on the clips of `{study.split}`, whose voices and "
        "sentences no training and no choice has seen; noise of levels in dB. Ambient: generated "
        "noise of the kinds that augmentation draws from, other draws. Babble: four other speakers "
        "of the split, without a room, which augmentation has not shown."
    ), table(["", *keys], rows)]  # fmt: skip
    names = list(rates)
    said = [_step(before, after, rates) for before, after in pairwise(names)]
    return [*lines, *(["\n".join(said)] if said else [])]


def _step(before: str, after: str, rates: dict[str, dict[str, Values]]) -> str:
    """Where a row hears better or worse than the one before, under every seed."""
    better, worse = [], []
    for key in rates[after]:
        pairs = zip(rates[before][key], rates[after][key], strict=True)
        said = agreed([b - a for b, a in pairs])
        better += [key] if said == "better" else []
        worse += [key] if said == "worse" else []
    told = [f"better under every seed in {', '.join(better)}"] if better else []
    told += [f"worse under every seed in {', '.join(worse)}"] if worse else []
    return f"- {after}, against {before}: {'; '.join(told) or 'the seeds do not agree'}."


def _scores(hearing: Hearing, seeds: Sequence[int], _: int) -> list[str]:
    """Separation and punctuation, by the scores of their stages."""
    parts: list[str] = []
    study = hearing.study
    rows = {row.name: found_of(hearing, slug(row.name), seeds) for row in study.separators}
    rows = {name: found for name, found in rows.items() if found}
    if rows:
        kinds = [
            k
            for k in ("si_sdri", "si_sdri_noise")
            if all(k in f[0]["scores"] for f in rows.values())
        ]
        cells = [
            [name, *(spread([f["scores"][k] for f in found]) for k in kinds)]
            for name, found in rows.items()
        ]
        parts += ["## Separation", (
            "SI-SDR improvement in dB over the mixture, on mixtures of voices and sentences that "
            "training has not seen (they chose the epoch): `si_sdri` of two voices, "
            "`si_sdri_noise` of a voice in noise. A separator at 8 kHz is judged at 16 kHz, as it "
            "is used."
        ), table(["", *kinds], cells)]  # fmt: skip
    if found := found_of(hearing, PUNCTUATOR, seeds):
        kinds = [k for k in found[0]["scores"] if k.startswith("f1")]
        cells = [[k, spread([f["scores"][k] for f in found])] for k in kinds]
        parts += ["## Punctuation", (
            "F1 by mark on unseen sentences, joined at random; `f1` is the mean over the marks."
        ), table(["", "F1"], cells)]  # fmt: skip
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
            kinds += [("recognised words, noisy sound", first, lambda cell: by(cell, 1.0))]
        kinds += [
            (f"chain, {row.name}", row, lambda cell: by(cell, SEED_RULE))
            for row in study.separators
        ]
        for name, row, how in kinds:
            values = [_waf(hearing, row, split, key, seeds, classes, how) for key in keys]
            if all(values):
                rows.append([name, *(spread(v, 100) for v in values)])
        if rows:
            parts += [f"### `{split}`", table(["", *keys], rows)]
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
                found = found_of(hearing, chain_name(row, study.split, c.key), seeds)
                if not found:
                    break
                taken += [_share(cell, threshold) for cell in found]
                values.append([score(cell, by(cell, threshold), classes) for cell in found])
            if values and len(values) == 1 + 2 * len(study.snrs):
                mean = np.mean(values, axis=0).tolist()
                share = f"{100 * float(np.mean(taken)):.0f} %"
                rows.append([row.name, f"{threshold:g}", spread(mean, 100), share])
    if not rows:
        return []
    return ["## The rule's threshold", (
        f"Mean over all conditions on `{study.split}`; how often a separated source was taken."
    ), table(["", "threshold", "WAF", "separated"], rows)]  # fmt: skip


def _share(cell: dict[str, Any], threshold: float) -> float:
    return float(np.mean([chosen(texts, threshold) > 0 for texts in cell["texts"]]))


def _waf(
    hearing: Hearing, row: Row, split: str, key: str, seeds: Sequence[int], classes: int,
    how: Callable[[dict[str, Any]], list[int]],
) -> Values:  # fmt: skip
    found = found_of(hearing, chain_name(row, split, key), seeds)
    return [score(cell, how(cell), classes) for cell in found]


def _left(hearing: Hearing, seeds: Sequence[int]) -> list[str]:
    study = hearing.study
    rows = (*study.recognizers, *study.separators)
    left = [row.name for row in rows if not found_of(hearing, slug(row.name), seeds)]
    first = study.separators[0] if study.separators else None
    last = conditions_of(study.snrs)
    if first and not all(
        found_of(hearing, chain_name(first, s, c.key), seeds) for c in last for s in TESTS
    ):
        left.append("emotion with the chain (give --model)")
    keys = [c.key for c in conditions_of(study.snrs)]
    if first and any(hearing.estimated(s, key) is None for s in TESTS for key in keys):
        left.append("what skipping separation saves (give --model)")
    return left


def _called(hearing: Hearing) -> str:
    return f"`{hearing.model}`" if hearing.model else "as measured before"
