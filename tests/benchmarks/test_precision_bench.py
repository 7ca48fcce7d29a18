"""The precision benchmark's page: every row against PyTorch of the same run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

from merkit.bundle import Bundle
from merkit_bench.precision import _files
from merkit_bench.precision_page import write
from merkit_export.precision.choose import Choice, Plan
from merkit_export.precision.kinds import target
from merkit_export.precision.search import Trial
from merkit_export.precision.variants import Maker


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


def test_candidates_of_a_run_before_are_not_timed(toy_bundle: Bundle, tmp_path: Path) -> None:
    plan, step = Plan("cpu", threads=1), toy_bundle.contract.step("fusion")
    maker = Maker(toy_bundle, target("cpu"), plan.calibration, lambda _: [], tmp_path, 1)
    own = maker.path("fusion", "int8-qdq")
    for path in (own, tmp_path / "fusion" / "int8-qdq-ffffffff" / "model.onnx"):
        path.parent.mkdir(parents=True)
        path.touch()
    trials = (Trial("fusion", "int8-qdq"), Trial("fusion", "int4-weight", refused="too small"))
    choice = Choice({}, {}, SimpleNamespace(trials=trials))  # type: ignore[arg-type]
    found = _files(toy_bundle, choice, step, plan, tmp_path)
    assert found == {"fp32": toy_bundle.model_path("fusion"), "int8-qdq": own}
