"""The precision benchmark's page: every row against PyTorch of the same run."""

from __future__ import annotations

import json
from pathlib import Path

from merkit_bench.precision_page import write


def row(p50: float, size: int | None = None) -> dict[str, object]:
    return {"p50": p50, "p95": p50, "p99": p50, "cosine": 0.999, "bytes": size}


def test_the_page_compares_with_torch(tmp_path: Path) -> None:
    contenders = {
        "torch fp32": row(100.0),
        "fp32": row(80.0, 4_000_000),
        "int8-qdq": row(25.0, 1_000_000),
    }
    result = {
        "about": {"recipe": "base", "rounds": 3, "threads": 2, "cpu": "c", "cores": 2},
        "gemm_gflops": {"fp32": 100.0, "bf16": 300.0},
        "encoders": {"face_encoder": {"gflop": 4.0, "contenders": contenders}},
        "chosen": {"face_encoder": "int8-qdq", "text_encoder": "fp32"},
        "whole": {"torch": row(300.0), "embedded": row(100.0)},
    }
    page = write(result, tmp_path)
    assert "| face_encoder | fp32 | 80.00 | 1.25 | 50% | 4.0 | 0.9990 |" in page
    assert "int8-qdq (taken) | 25.00 | 4.00 |" in page
    assert "as chosen 25.0 ms (4.00x)" in page
    assert "| embedded | 100.0 | 100.0 | 3.00 |" in page
    assert json.loads((tmp_path / "precision.json").read_text()) == result
    assert (tmp_path / "precision.md").read_text() == page
