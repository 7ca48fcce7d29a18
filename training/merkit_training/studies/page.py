"""A study as a page, worded by its own figures: a direction that does not hold is said not to.

The seed reports one run a row. Here each row is a mean over seeds, with their spread, and each
claim carries a paired bootstrap interval over the test clips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from merkit.pipeline import GROUPS
from merkit_training.fusion.tables import MAJORITY
from merkit_training.metrics import Interval, accuracy, paired_bootstrap, waf
from merkit_training.runs import read_json
from merkit_training.studies.cells import MEASURED, Cell
from merkit_training.studies.measure import TESTS
from merkit_training.studies.plan import MERBENCH, Claim, Study, row_name

RESAMPLES = 2000
FEWEST = 3  # seeds on which a claim is decided
Row = Mapping[str, np.ndarray]
"""Labels [seeds, clips] by test split."""


def study_page(study: Study, cells: Sequence[Cell], classes: int) -> str:
    """Markdown of all measured cells; a row or claim without any is left out and said to be."""
    rows, truth, seeds = _rows(study, cells)
    written = f"Written by `merkit-train study training/studies/{study.name}.toml`; do not edit."
    parts = [f"# {study.title}", written, study.about.strip()]
    if rows:
        parts += [
            "Synthetic clips: the figures prove the machinery and say nothing about people. Each "
            f"row is trained under {len(seeds)} seeds ({', '.join(map(str, seeds))}); a head on "
            "the frozen features is trained on `train`, its epoch chosen on `val`. Weighted "
            "average F1, mean ± standard deviation over the seeds.",
            _table(rows, truth, classes),
        ]
        if len(study.heads()) > 1:
            parts += _against_ceilings(study, rows, truth, cells[0].corpus)
    claims = [_claim(claim, rows, truth, classes) for claim in study.claims if _known(claim, rows)]
    if claims:
        parts += [
            "## Do the seed's directions hold?",
            "Difference of the means, with its 95 % interval of a paired bootstrap over clips. "
            "*Holds*: the interval lies above zero and every seed agrees in sign. *Reversed*: the "
            "same below zero. Otherwise the data do not decide.",
            "\n".join(claims),
        ]
    left = [row for row in study.rows() if row not in rows]
    if left:
        parts.append(f"Not yet measured: {'; '.join(left)}.")
    return "\n\n".join(parts) + "\n"


def _rows(
    study: Study, cells: Sequence[Cell]
) -> tuple[dict[str, Row], dict[str, np.ndarray], list[int]]:
    """Rows measured under every seed that any row has; truth by split; the seeds."""
    measured = [(cell, read_json(cell.run / MEASURED)) for cell in cells if cell.done]
    seeds = sorted({cell.seed for cell, _ in measured})
    truth = {s: np.array(measured[0][1]["truth"][s]) for s in TESTS} if measured else {}
    rows: dict[str, Row] = {}
    for variant in study.variants:
        found = {cell.seed: m for cell, m in measured if cell.variant == variant}
        if set(found) != set(seeds) or not seeds:
            continue
        for head in study.heads():
            rows[row_name(variant.name, head, study)] = {
                s: np.array([found[seed]["labels"][head][s] for seed in seeds]) for s in TESTS
            }
    return rows, truth, seeds


def _scores(row: Row, truth: Mapping[str, np.ndarray], split: str, classes: int) -> np.ndarray:
    return np.array([waf(truth[split], labels, classes) for labels in row[split]])


def _table(rows: Mapping[str, Row], truth: Mapping[str, np.ndarray], classes: int) -> str:
    lines = [_header()]
    for name, row in rows.items():
        scores = [_scores(row, truth, split, classes) for split in TESTS]
        cells = [_spread(s) for s in scores]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _against_ceilings(
    study: Study, rows: Mapping[str, Row], truth: Mapping[str, np.ndarray], corpus: Path
) -> list[str]:
    """Accuracy beside the best possible, of a corpus whose generator knows that."""
    bounds = read_json(corpus / "card.json").get("ceilings")
    if not bounds:
        return []
    lines = [_header()]
    for variant in study.variants:
        for head in study.heads():
            row = rows.get(name := row_name(variant.name, head, study))
            if row is not None and head != MAJORITY:  # it reads nothing
                reached = [np.mean([accuracy(truth[s], each) for each in row[s]]) for s in TESTS]
                best = [bounds[s][_evidence(head)] for s in TESTS]
                pairs = zip(reached, best, strict=True)
                lines.append(
                    f"| {name} | " + " | ".join(f"{a:.3f} of {b:.3f}" for a, b in pairs) + " |"
                )
    return [
        "## Against the ceiling",
        "Accuracy, mean over the seeds, beside the best that any classifier could reach from the "
        "generator's true parameters of what the row reads; sound holds the words, too. That of "
        "`test_noise` is of the clean parameters.",
        "\n".join(lines),
    ]


def _evidence(head: str) -> str:
    """Which ceiling bounds a head."""
    letters = set(head.removesuffix(MERBENCH).split("+"))
    if not letters <= set(GROUPS):
        return "all"
    video, sound = letters & {"v", "V"}, letters & {"a", "j"}
    if video:
        return "all" if sound else "video+words" if "t" in letters else "video"
    return "sound" if sound else "words"


def _header() -> str:
    names = " | ".join(f"`{split}`" for split in TESTS)
    return f"| | {names} |\n" + "|---" * (len(TESTS) + 1) + "|"


def _claim(
    claim: Claim, rows: Mapping[str, Row], truth: Mapping[str, np.ndarray], classes: int
) -> str:
    better, worse = rows[claim.better], rows[claim.worse]
    found = []
    for split in TESTS:
        interval = paired_bootstrap(truth[split], better[split], worse[split], classes, RESAMPLES)
        each = _scores(better, truth, split, classes) - _scores(worse, truth, split, classes)
        found.append(
            f"`{split}` {interval.difference:+.3f} ({interval.low:+.3f} to {interval.high:+.3f}): "
            f"{_verdict(interval, each)}"
        )
    return f"- {claim.says} ({claim.better} against {claim.worse}): {'; '.join(found)}."


def _verdict(interval: Interval, each: np.ndarray) -> str:
    if len(each) < FEWEST:
        return "too few seeds"
    if interval.low > 0 and (each > 0).all():
        return "**holds**"
    if interval.high < 0 and (each < 0).all():
        return "**reversed**"
    return "not decided"


def _known(claim: Claim, rows: Mapping[str, Any]) -> bool:
    return claim.better in rows and claim.worse in rows


def _spread(scores: np.ndarray) -> str:
    if len(scores) < 2:
        return f"{scores.mean():.3f}"
    return f"{scores.mean():.3f} ± {scores.std(ddof=1):.3f}"
