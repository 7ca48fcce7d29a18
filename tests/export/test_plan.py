"""The plan of an export: what shapes say, without a weight."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import REPOSITORY
from random_run import SMALLEST

from merkit_export import plan as planning
from merkit_export.cli import main
from merkit_export.plan import lines, plan
from merkit_training.recipe import Recipe, load_recipe
from merkit_training.runs import write_json


def test_the_papers_encoders_are_planned_from_shapes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = tmp_path / "plan.json"
    recipe = REPOSITORY / "training" / "recipes" / "paper.toml"
    assert main(["plan", str(recipe), "--json", str(machine)]) == 0
    found = json.loads(machine.read_text())
    text, face = found["text_encoder"], found["face_encoder"]
    assert text["parameters"] == 13_264_901_120
    assert text["bytes"]["fp32"] == 4 * text["parameters"] == 2 * text["bytes"]["fp16"]
    assert text["files"] == ["model.onnx", "model.onnx.data"]
    assert text["bytes"]["fp32"] < text["memory"] < 1.25 * text["bytes"]["fp32"]
    assert face["files"] == ["model.onnx"]
    assert found["recognize"]["parameters"] == 220_084_533
    assert found["separate"]["parameters"] == 55_735_410
    assert found["separate"]["operations"] > 2 * 55e6 * 10_000  # frames of 5 seconds
    told = capsys.readouterr().out
    assert "one module is in memory at a time" in told
    sizes = [step["bytes"]["fp32"] for step in found.values()]
    assert sum(sizes) > 100e9
    proof = float(told.partition("one graph or one module at a time: ")[2].partition(" GB")[0])
    assert max(sizes) / 1e9 < proof < 1.1 * max(sizes) / 1e9
    assert "face_encoder_large, text_encoder, joint_encoder" in told


def test_a_dry_run_of_a_build_prints_the_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = REPOSITORY / "training" / "recipes" / "tiny.toml"
    run = tmp_path / "run"
    write_json(run / "recipe.json", load_recipe(tiny).to_json())
    asked: list[Recipe] = []
    monkeypatch.setattr(planning, "plan", lambda recipe: asked.append(recipe) or [])
    monkeypatch.setattr(planning, "lines", lambda steps: [f"{len(steps)} steps"])
    for source in (["--untrained", str(tiny)], [str(run)]):
        assert main(["build", *source, "--dry-run", "--out", "models"]) == 0
    assert asked == [load_recipe(tiny)] * 2
    assert capsys.readouterr().out == "0 steps\n" * 2
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_graphs_are_traced_without_weights() -> None:
    step = next(s for s in plan(SMALLEST, trace=True) if s.step == "face_encoder")
    assert step.nodes is not None
    assert step.nodes > 100
    assert step.graph_bytes is not None
    assert step.graph_bytes > 10_000
    assert any(str(step.nodes) in line for line in lines([step]))
    assert any("holds every graph and module" in line for line in lines([step]))


def test_a_layer_more_is_a_layer_more() -> None:
    tiny = load_recipe(REPOSITORY / "training" / "recipes" / "tiny.toml")
    deeper = replace(tiny, text_encoder=replace(tiny.text_encoder, layers=5))
    before, after = (
        next(s for s in plan(recipe) if s.step == "text_encoder") for recipe in (tiny, deeper)
    )
    assert after.parameters > before.parameters
    assert after.operations > before.operations
