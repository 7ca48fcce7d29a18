"""The figures of `merkit_bench.precision` as JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from merkit_bench.precision_parts import CLIPS, close

BASE = "torch fp32"
WRONG = 0.9
"""Cosine to PyTorch below which a contender computes something else, whatever its time."""


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
    about = result["about"]
    lines = [
        f"Encoders of `{about['recipe']}` at random weights: speed only. {about['rounds']} rounds "
        f"in turns in one run for each encoder, medians; {about['threads']} threads, "
        f"{about['cpu']}, {about['cores']} cores; PyTorch {about['torch']}, ONNX Runtime "
        f"{about['onnxruntime']}. The peak is that of a matrix product in float32, measured beside "
        "each encoder. The words are given: nothing is recognised, on either side. 8 bits are "
        f"calibrated and judged on {_clips(about)}; the cosine to PyTorch is of the clip that is "
        "timed, and both must reach the gate.",
        "",
        f"| encoder | contender | p50 ms | {BASE} / it | of the fp32 peak | MB | cosine to torch "
        "| least cosine to fp32 | verdict |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for step, found in result["encoders"].items():
        lines += _rows(step, found, result["chosen"][step])
    peaks = [found["gemm_gflops"] for found in result["encoders"].values()]
    lines += ["", f"Peaks, GFLOP/s: {_span(peaks, 'fp32')} in float32, {_span(peaks, 'bf16')} in "
              "bfloat16.", "", *_sums(result)]  # fmt: skip
    if result["whole"]:
        lines += ["", *_whole(result)]
    return "\n".join(lines) + "\n"


def _clips(about: Mapping[str, Any]) -> str:
    splits = f"`train` and `val` clips of `{about['corpus']}`"
    return f"{CLIPS} {splits}" if about["corpus"] else f"{CLIPS} made-up clips each"


def _rows(step: str, found: Mapping[str, Any], chosen: str) -> list[str]:
    """An encoder's contenders, then what was refused before it was timed."""
    peak, rows = found["gemm_gflops"]["fp32"], []
    for name, row in found["contenders"].items():
        made = found["candidates"].get(name)
        size = f"{made['bytes'] / 1e6:.1f}" if made else "–"
        least = f"{made['cosine']:.4f}" if made else "–"
        near = made is None or (made["passes"] and close(name, row["cosine"]))
        verdict = "" if near else "below the gate's cosine"
        verdict = verdict if row["cosine"] >= WRONG else "another answer"
        rows.append(
            f"| {step} | {name} | {row['p50']:.2f} | {row['base'] / row['p50']:.2f} "
            f"| {found['gflop'] / (row['p50'] / 1e3) / peak:.0%} | {size} | {row['cosine']:.4f} "
            f"| {least} | {'**taken**' if name == chosen else verdict} |"
        )
    refused = [made for made in found["candidates"].values() if made["refused"]]
    rows += [f"| {step} | {c['precision']} | | | | | | | {c['refused']} |" for c in refused]
    return rows


def _span(peaks: list[dict[str, float]], kind: str) -> str:
    values = [peak[kind] for peak in peaks]
    return f"{min(values):.0f} to {max(values):.0f}"


def _sums(result: Mapping[str, Any]) -> list[str]:
    """All encoders together: as exported, at the best of float32, and as chosen."""
    encoders = result["encoders"]

    def total(names: Mapping[str, str]) -> float:
        return sum(float(encoders[step]["contenders"][names[step]]["p50"]) for step in encoders)

    def exact(found: Mapping[str, Any]) -> str:
        names = [name for name in ("fp32", "fp32-fused") if name in found["contenders"]]
        return min(names, key=lambda name: float(found["contenders"][name]["p50"]))

    kinds = {
        "torch bf16": dict.fromkeys(encoders, "torch bf16"),
        "fp32 as exported": dict.fromkeys(encoders, "fp32"),
        "the faster float32 of each": {step: exact(found) for step, found in encoders.items()},
        "as chosen": result["chosen"],
    }
    torch = total(dict.fromkeys(encoders, BASE))
    told = [f"{name} {total(k):.0f} ms ({torch / total(k):.2f}x)" for name, k in kinds.items()]
    return [f"All encoders here: {BASE} {torch:.0f} ms, {', '.join(told)}."]


def _whole(result: Mapping[str, Any]) -> list[str]:
    base = result["whole"]["torch"]["p50"]
    rows = [
        f"| {name} | {row['p50']:.1f} | {row['p95']:.1f} | {base / row['p50']:.2f} "
        f"| {row['peak_mb']:.0f} |"
        for name, row in result["whole"].items()
    ]
    return [
        "| whole pipeline, decoding included | p50 ms | p95 ms | torch / it | peak MB |",
        "| --- | ---: | ---: | ---: | ---: |",
        *rows,
    ]
