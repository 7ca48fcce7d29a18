"""Figures out of tallies: percentiles, ratios, a Markdown table and a picture."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from merkit_bench.contest import Tally

PERCENTILES = (50, 95, 99)


def summarise(tallies: Mapping[str, Tally], about: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values: p50/p95/p99 end to end and by step, memory, cold start, agreement."""
    first = next(iter(tallies.values()))
    result: dict[str, Any] = {"about": {**about, **machine()}, "contenders": {}}
    for name, tally in tallies.items():
        gaps = [
            abs(tally.outcomes[clip]["scores"][label] - score)
            for clip, outcome in first.outcomes.items()
            for label, score in outcome["scores"].items()
        ]
        labels = [tally.outcomes[c]["label"] == o["label"] for c, o in first.outcomes.items()]
        result["contenders"][name] = {
            "end_to_end_ms": percentiles(tally.total_ms),
            "ratio_p50": float(np.median(np.array(first.total_ms) / np.array(tally.total_ms))),
            "steps_ms": {step: percentiles(ms) for step, ms in sorted(tally.step_ms.items())},
            "cold_start_s": tally.cold_start_s,
            "peak_mb": tally.peak_mb,
            "same_labels": all(labels),
            "max_score_gap": max(gaps),
        }
    return result


def percentiles(values: list[float]) -> dict[str, float]:
    """`{"p50": ..., "p95": ..., "p99": ...}`."""
    return {f"p{q}": float(np.percentile(values, q)) for q in PERCENTILES}


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    text = Path("/proc/cpuinfo").read_text("utf-8") if platform.system() == "Linux" else ""
    models = [line.split(":")[1].strip() for line in text.splitlines() if "model name" in line]
    cpu = models[0] if models else platform.processor()
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version()}


def markdown(result: Mapping[str, Any]) -> str:
    """Two tables: end to end, and p50 by step."""
    about, contenders = result["about"], result["contenders"]
    base = next(iter(contenders))
    lines = [
        f"{about['clips']} clips, {about['rounds']} rounds, contenders in turn in one run; "
        f"{about['threads']} threads, {about['cpu']}, {about['cores']} cores. Peak MB adds up the "
        "peaks of all processes, so what they share counts more than once.",
        "",
        f"| contender | p50 ms | p95 ms | p99 ms | {base} / it (median of pairs) | peak MB "
        "| cold start s | labels equal | largest gap |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in contenders.items():
        same = "yes" if row["same_labels"] else "NO"
        agreement = f"{same} | {row['max_score_gap']:.1e}" if about["trained"] else "– | –"
        times = " | ".join(f"{row['end_to_end_ms'][f'p{q}']:.1f}" for q in PERCENTILES)
        lines.append(
            f"| {name} | {times} | {row['ratio_p50']:.2f} | {row['peak_mb']:.0f} "
            f"| {row['cold_start_s']:.1f} | {agreement} |"
        )
    if not about["trained"]:
        lines += ["", "There was no run: torch has random weights of the same shapes."]
    steps = sorted({step for row in contenders.values() for step in row["steps_ms"]})
    lines += ["", "| step, p50 ms | " + " | ".join(contenders) + " |"]
    lines += ["|---" * (1 + len(contenders)) + "|"]
    for step in steps:
        found = [row["steps_ms"].get(step) for row in contenders.values()]
        cells = " | ".join(f"{cell['p50']:.2f}" if cell else "–" for cell in found)
        lines.append(f"| {step} | {cells} |")
    return "\n".join(lines) + "\n"


def write(result: Mapping[str, Any], out: Path) -> None:
    """`latency.json`, `latency.md` and `latency.png` below `out`, each atomically."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("json", json.dumps(result, indent=1) + "\n"), ("md", markdown(result))):
        temporary = out / f".latency.{name}.tmp"
        temporary.write_text(text, "utf-8")
        temporary.replace(out / f"latency.{name}")
    picture(result, out / "latency.png")


def picture(result: Mapping[str, Any], path: Path) -> None:
    """Bars of p50 with whiskers to p95 and p99."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(result["contenders"])
    rows = [result["contenders"][name]["end_to_end_ms"] for name in names]
    figure, axes = plt.subplots(figsize=(7, 0.7 + 0.7 * len(names)), layout="constrained")
    p50, p95, p99 = (np.array([row[f"p{q}"] for row in rows]) for q in PERCENTILES)
    axes.barh(names, p50, color="#4c72b0", height=0.55)
    axes.errorbar(p50, names, xerr=[np.zeros_like(p50), p99 - p50], fmt="none", ecolor="#999")
    axes.errorbar(p50, names, xerr=[np.zeros_like(p50), p95 - p50], fmt="none", ecolor="#333", lw=3)
    for name, value in zip(names, p50, strict=True):
        axes.annotate(f"{value:.1f} ms", (value / 2, name), color="white", ha="center", va="center")
    axes.invert_yaxis()
    axes.set_xlabel("one clip end to end, ms: bar p50, thick line p95, thin line p99")
    axes.spines[["top", "right"]].set_visible(False)
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=150)
    plt.close(figure)
    temporary.replace(path)
