"""The figures of `merkit_bench.precision` as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BASE = "torch fp32"


def write(result: Mapping[str, Any], out: Path) -> str:
    """`precision.json` and `precision.md` below `out`, each atomically; the page."""
    page = markdown(result)
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("json", json.dumps(result, indent=1) + "\n"), ("md", page)):
        temporary = out / f".precision.{name}.tmp"
        temporary.write_text(text, "utf-8")
        temporary.replace(out / f"precision.{name}")
    return page


def markdown(result: Mapping[str, Any]) -> str:
    """A table for all encoders, one for the whole pipeline."""
    about, peaks = result["about"], result["gemm_gflops"]
    lines = [
        f"Shapes of `{about['recipe']}` at random weights: speed only. {about['rounds']} rounds in "
        f"turns in one run, medians; {about['threads']} threads, {about['cpu']}, "
        f"{about['cores']} cores. Peak of a matrix product: {peaks['fp32']:.0f} GFLOP/s in "
        f"float32, {peaks['bf16']:.0f} in bfloat16.",
        "",
        f"| encoder | contender | p50 ms | {BASE} / it | of the fp32 peak | MB | cosine to torch |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for step, found in result["encoders"].items():
        base = found["contenders"][BASE]["p50"]
        for name, row in found["contenders"].items():
            share = found["gflop"] / (row["p50"] / 1e3) / peaks["fp32"]
            size = f"{row['bytes'] / 1e6:.1f}" if row["bytes"] else "–"
            mark = " (taken)" if result["chosen"].get(step) == name else ""
            lines.append(
                f"| {step} | {name}{mark} | {row['p50']:.2f} | {base / row['p50']:.2f} "
                f"| {share:.0%} | {size} | {row['cosine']:.4f} |"
            )
    lines += ["", *_sums(result), "", *_whole(result)]
    return "\n".join(lines) + "\n"


def _sums(result: Mapping[str, Any]) -> list[str]:
    """All encoders together: as exported, and as chosen."""
    encoders = result["encoders"]

    def total(names: Mapping[str, str]) -> float:
        return sum(float(encoders[step]["contenders"][names[step]]["p50"]) for step in encoders)

    torch, exported = (total(dict.fromkeys(encoders, name)) for name in (BASE, "fp32"))
    chosen = total(result["chosen"])
    return [
        f"All encoders: {BASE} {torch:.1f} ms, fp32 {exported:.1f} ms ({torch / exported:.2f}x), "
        f"as chosen {chosen:.1f} ms ({torch / chosen:.2f}x)."
    ]


def _whole(result: Mapping[str, Any]) -> list[str]:
    base = result["whole"]["torch"]["p50"]
    rows = [
        f"| {name} | {row['p50']:.1f} | {row['p95']:.1f} | {base / row['p50']:.2f} |"
        for name, row in result["whole"].items()
    ]
    return [
        "| whole pipeline, decoding included | p50 ms | p95 ms | torch / it |",
        "| --- | ---: | ---: | ---: |",
        *rows,
    ]
