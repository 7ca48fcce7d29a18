"""The precision benchmark: what it keeps, what it takes, and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY

from merkit.bundle import Bundle, onnx_steps
from merkit.contract import StepSpec
from merkit.errors import InvalidInputError
from merkit_bench.precision import fastest
from merkit_bench.precision_page import write
from merkit_bench.precision_parts import (
    Candidate,
    best,
    held,
    kept,
    reference,
    untrained,
    without_chain,
)
from merkit_export import shards
from merkit_training.recipe import load_recipe
from merkit_training.runs import write_json

BASE = REPOSITORY / "training" / "recipes" / "base.toml"


def row(p50: float) -> dict[str, float]:
    return {"p50": p50, "p95": p50, "p99": p50, "base": 100.0, "cosine": 0.999}


def encoder() -> dict[str, Any]:
    made = [
        Candidate("fp32", 4_000_000),
        Candidate("fp32-fused", 4_000_000, 1.0),
        Candidate("int8-qdq", 1_000_000, 0.998),
        Candidate("int8-weight", 1_100_000, 0.9),
        Candidate("int4-weight", refused="too small"),
    ]
    times = {"torch fp32": 100.0, "torch bf16": 50.0, "fp32": 80.0, "fp32-fused": 75.0}
    times |= {"int8-qdq": 25.0, "int8-weight": 20.0}
    return {
        "gflop": 4.0,
        "gemm_gflops": {"fp32": 100.0, "bf16": 300.0},
        "contenders": {name: row(ms) for name, ms in times.items()},
        "candidates": {c.precision: {**vars(c), "passes": c.passes} for c in made},
    }


def test_the_fastest_that_passes_is_taken() -> None:
    found = encoder()
    assert fastest(found) == "int8-qdq"  # weights alone are faster, and bend features too far
    found["contenders"]["int8-qdq"]["cosine"] = 0.99  # on the clip that is timed
    assert fastest(found) == "fp32-fused"
    found["contenders"]["int8-qdq"] = row(90.0)
    assert fastest(found) == "fp32-fused"


def test_the_page_compares_with_torch(tmp_path: Path) -> None:
    about = {"recipe": "base", "corpus": None, "rounds": 3, "threads": 2, "cpu": "c", "cores": 2}
    result = {
        "about": {**about, "torch": "2", "onnxruntime": "1"},
        "encoders": {"face_encoder": encoder()},
        "chosen": {"face_encoder": "int8-qdq"},
        "whole": {
            "torch": {**row(300.0), "peak_mb": 9.0},
            "embedded": {**row(100.0), "peak_mb": 3.0},
        },
    }
    page = write(result, tmp_path)
    assert "| face_encoder | fp32 | 80.00 | 1.25 | 50% | 4.0 | 0.9990 | 1.0000 |  |" in page
    assert (
        "| face_encoder | int8-qdq | 25.00 | 4.00 | 160% | 1.0 | 0.9990 | 0.9980 | **taken** |"
        in page
    )
    assert "| 0.9000 | below the gate's cosine |" in page
    assert "| face_encoder | int4-weight | | | | | | | too small |" in page
    assert "torch bf16 50 ms (2.00x), fp32 as exported 80 ms (1.25x)" in page
    assert "the faster float32 of each 75 ms (1.33x), as chosen 25 ms (4.00x)" in page
    assert "| embedded | 100.0 | 100.0 | 3.00 | 3 |" in page
    assert json.loads((tmp_path / "precision.json").read_text()) == result
    assert (tmp_path / "precision.md").read_text() == page
    assert "decoding included" not in write({**result, "whole": {}}, tmp_path)


def test_what_was_measured_is_read_while_the_facts_are_the_same(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure() -> dict[str, int]:
        asked.append(1)
        return {"ms": len(asked)}

    path = tmp_path / "measured" / "face_encoder.json"
    for facts, want in (({"rounds": 3}, 1), ({"rounds": 3}, 1), ({"rounds": 4}, 2)):
        assert kept(path, facts, measure, lambda _: None) == {"ms": want}
    assert held(path, {"rounds": 4}) == {"ms": 2}
    assert held(path, {"rounds": 3}) is None
    assert held(tmp_path / "never.json", {}) is None


def test_the_chain_is_left_out_on_both_sides() -> None:
    recipe = load_recipe(BASE)
    left = without_chain(recipe)
    for name in ("recognizer", "separator", "punctuator", "language_model"):
        assert getattr(recipe, name).asked
        assert not getattr(left, name).asked
    assert left.joint_encoder == recipe.joint_encoder


def test_a_work_folder_belongs_to_one_recipe(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    recipe = without_chain(load_recipe(BASE))
    write_json(tmp_path / "recipe.json", recipe.to_json())
    assert untrained(BASE, tmp_path) == tmp_path
    other = replace(recipe, face_encoder=replace(recipe.face_encoder, layers=3))
    write_json(tmp_path / "recipe.json", other.to_json())
    with pytest.raises(InvalidInputError, match="another recipe"):
        untrained(BASE, tmp_path)


def test_the_bundle_as_chosen_says_so(toy_bundle: Bundle, tmp_path: Path) -> None:
    source = toy_bundle.model_path("fusion")
    before = source.read_bytes()
    copy = tmp_path / "fusion.onnx" / "model.onnx"
    copy.parent.mkdir()
    copy.write_bytes(before)
    made = best(toy_bundle, {"fusion": copy}, {"fusion": "int8-qdq"}, tmp_path / "best")
    assert made.manifest["precision"]["fusion"]["precision"] == "int8-qdq"
    assert made.model_path("fusion").stat().st_ino != source.stat().st_ino
    assert made.model_path("voting").stat().st_ino == toy_bundle.model_path("voting").stat().st_ino
    assert source.read_bytes() == before


def test_graphs_that_were_written_are_not_written_again(
    random_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def export(_: Any, step: StepSpec, *arguments: Any) -> shards.Exported:
        if len(written) == 2 and not (tmp_path / "goes on").exists():
            raise KeyboardInterrupt
        written.append(step.name)
        arguments[-1].parent.mkdir(parents=True, exist_ok=True)
        arguments[-1].write_bytes(b"a graph")
        return shards.Exported(f"digest of {step.name}", 1, 1)

    monkeypatch.setattr(shards, "export", export)
    out = tmp_path / "reference"
    with pytest.raises(KeyboardInterrupt):
        reference(random_run, out, lambda _: None)
    assert not (out / "bundle.json").exists()
    (tmp_path / "goes on").touch()
    made = reference(random_run, out, lambda _: None)
    assert written == [step.name for step in onnx_steps(made.contract)]
    assert made.manifest["step_digests"]["fusion"] == "digest of fusion"
    assert "digests.json" not in {path.name for path in out.iterdir()}
    assert reference(random_run, out, lambda _: None).bundle_id == made.bundle_id
