"""A bundle is built whole and proven, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from random_run import LABELS, write_random_run

import merkit
from merkit.bundle import Bundle, onnx_steps, open_bundle
from merkit.errors import BundleNotFoundError, InvalidInputError, MerkitError
from merkit_export import build as building
from merkit_export import samples
from merkit_export.build import build
from merkit_export.graphs import step_digest
from merkit_export.origin import Origin, read_origin
from merkit_export.publish import recover
from merkit_export.walk import torch_steps

Tamper = Callable[[Path], None]


def silent(_: str) -> None:
    """Takes progress and says nothing."""


@pytest.fixture
def copied(exported: Bundle, monkeypatch: pytest.MonkeyPatch) -> Callable[[Tamper | None], None]:
    """Replaces the slow export by a copy of what it made before, tampered with if asked."""

    def prepare(tamper: Tamper | None = None) -> None:
        def copy(_: Origin, folder: Path, __: Callable[[str], None]) -> dict[str, str]:
            for name in exported.manifest["content"]:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(exported.root / name, folder / name)
            if tamper:
                tamper(folder)
            return dict(exported.manifest["step_digests"])

        monkeypatch.setattr(building, "export_steps", copy)

    return prepare


def shift_bias(folder: Path) -> None:
    """Adds a little to one vector of the text encoder's weights, as a faulty export would."""
    path = folder / "text_encoder" / "1" / "model.onnx"
    model = onnx.load(path)
    norm = next(t for t in model.graph.initializer if "norm.weight" in t.name)
    norm.CopyFrom(
        numpy_helper.from_array(numpy_helper.to_array(norm) + np.float32(0.01), norm.name)
    )
    onnx.save(model, path)


def test_every_file_carries_the_contract(exported: Bundle) -> None:
    identity = exported.contract.contract_id
    for step in onnx_steps(exported.contract):
        model = onnx.load(exported.model_path(step.name))
        assert {e.key: e.value for e in model.metadata_props}["contract_id"] == identity
    configs = sorted(exported.root.glob("*/config.pbtxt"))
    served = {path.parent.name for path in configs}
    assert served >= {"merkit", "merkit_atv", *(s.name for s in exported.contract.steps)}
    assert all(identity in path.read_text() for path in configs)


def test_the_manifest_states_where_it_comes_from(exported: Bundle, random_run: Path) -> None:
    manifest = exported.manifest
    assert manifest["name"] == "random"
    assert [v["name"] for v in manifest["voters"]] == [v.name for v in exported.contract.voters]
    assert manifest["voters"][0].keys() >= {"groups", "waf", "temperature"}
    assert set(manifest["provenance"]["checkpoints"]) == {
        s.name for s in onnx_steps(exported.contract)
    } - {"preprocess", "voting"}
    assert manifest["provenance"]["export"]["packages"]["torch"] == "2.13.0"
    assert manifest["validation"]["parity"]["steps"]["fusion"]["max_abs"] < 1e-4
    costs = manifest["costs"]
    assert set(costs) == {step.name for step in onnx_steps(exported.contract)}
    assert all(costs[f"{name}_encoder"] > 1e5 for name in ("face", "audio", "text", "joint"))
    text = json.dumps(manifest)
    for path in (random_run, exported.root, Path.home(), Path(__file__).parents[2]):
        assert str(path) not in text


def test_digests_are_those_of_the_files(exported: Bundle) -> None:
    for step in onnx_steps(exported.contract):
        found = step_digest(onnx.load(exported.model_path(step.name)))
        assert found == exported.manifest["step_digests"][step.name]


def test_it_answers(exported: Bundle) -> None:
    with merkit.load(exported.root) as client:
        prediction = client.predict(text="I did not expect that!")
    assert prediction.label in LABELS
    assert sum(prediction.scores.values()) == pytest.approx(1, abs=1e-5)
    assert prediction.modalities == ("text",)


def test_relabelling_changes_the_contract_but_no_encoder(exported: Bundle, tmp_path: Path) -> None:
    relabelled = read_origin(write_random_run(tmp_path, tuple(f"{n}!" for n in LABELS)))
    assert relabelled.contract.contract_id != exported.contract.contract_id
    digests = {}
    steps = torch_steps(relabelled.contract, relabelled.modules)
    example = samples.example(relabelled.contract) | {"text_length": np.full((3, 1), 4)}
    example |= steps["preprocess"](example)
    for name in ("face_encoder", "voting"):
        spec = relabelled.contract.step(name)
        values = example | {"branch_scores": np.full((3, 4, 6), 1 / 6, np.float32)}
        model = building.graphs.export_step(
            relabelled.modules[name], spec, relabelled.contract, values
        )
        digests[name] = step_digest(model)
    assert digests["face_encoder"] == exported.manifest["step_digests"]["face_encoder"]
    assert digests["voting"] != exported.manifest["step_digests"]["voting"]


def test_a_bundle_that_disagrees_is_not_written(
    random_run: Path, tmp_path: Path, copied: Callable[[Tamper | None], None]
) -> None:
    copied(shift_bias)
    out = tmp_path / "models"
    with pytest.raises(MerkitError, match=r"disagree in text_encoder.*nothing was written"):
        build(random_run, out, say=silent)
    assert not list(tmp_path.iterdir())


def test_a_failing_build_keeps_the_former_bundle(
    random_run: Path, tmp_path: Path, copied: Callable[[Tamper | None], None]
) -> None:
    out = tmp_path / "models"
    copied(None)
    former = build(random_run, out, name="former", say=silent)
    copied(shift_bias)
    with pytest.raises(MerkitError):
        build(random_run, out, name="latter", say=silent)
    assert open_bundle(out).manifest == former.manifest
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_building_again_replaces_the_bundle_and_keeps_its_id(
    exported: Bundle, random_run: Path, tmp_path: Path, copied: Callable[[Tamper | None], None]
) -> None:
    copied(None)
    out = tmp_path / "models"
    build(random_run, out, say=silent)
    (out / "stray.txt").write_text("of the former bundle")
    again = build(random_run, out, name="again", say=silent)
    assert again.bundle_id == exported.bundle_id
    assert open_bundle(out).manifest["name"] == "again"
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in exported.root.iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["models"]


def test_what_killed_builds_left_is_put_right(tmp_path: Path) -> None:
    out, gone = tmp_path / "models", 2**22 + 1  # above the largest number of a process
    kept = [".models.1.new", f".other.{gone}.new", f".models.{gone}.new.txt", ".models.precision"]
    for name in (f".models.{gone}.new", f".models.{gone}.old", *kept):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_text(name)
    recover(out)
    assert (out / "bundle.json").read_text() == f".models.{gone}.old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "models"])
    shutil.copytree(out, tmp_path / f".models.{gone}.old")
    (out / "bundle.json").write_text("the new one")
    recover(out)
    assert (out / "bundle.json").read_text() == "the new one"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*kept, "models"])
    recover(tmp_path / "nowhere" / "models")


def test_a_foreign_folder_is_not_replaced(random_run: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InvalidInputError, match=r"holds no bundle\.json"):
        build(random_run, tmp_path, say=silent)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    with pytest.raises(InvalidInputError):
        build(random_run, tmp_path / "thesis.txt", say=silent)


def test_an_unfinished_run_is_named(random_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(random_run, run)
    shutil.rmtree(run / "audio_encoder")
    with pytest.raises(BundleNotFoundError, match="audio_encoder"):
        build(run, tmp_path / "models", say=silent)
    shutil.rmtree(run / "tokenizer")
    with pytest.raises(BundleNotFoundError):
        build(run, tmp_path / "models", say=silent)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
