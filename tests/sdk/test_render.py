"""Rendered repositories: everything follows from the contract, and nothing else lies there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from merkit.bundle import Bundle, open_bundle
from merkit.contract import Contract
from merkit.errors import InvalidInputError
from merkit.pipeline import cut
from merkit.serving.render import AFTER, ENSEMBLES, FLAVOURS, WIRE_TYPES, Deployment, render


@pytest.fixture
def own_bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the toy bundle that a test may change."""
    return open_bundle(shutil.copytree(toy_bundle.root, tmp_path / "own"))


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def configs(root: Path) -> dict[str, model_config_pb2.ModelConfig]:
    return {
        path.parent.name: text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
        for path in root.glob("*/config.pbtxt")
    }


def test_every_step_and_entry_point_has_a_config(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out")
    names = {step.name for step in toy_bundle.contract.steps} | set(ENSEMBLES)
    assert set(configs(tmp_path / "out")) == names
    assert all(config.name == name for name, config in configs(tmp_path / "out").items())


def test_nothing_but_models_and_the_manifest_lies_in_the_root(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    render(toy_bundle, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {s.name for s in toy_bundle.contract.steps} | set(ENSEMBLES) | {"bundle.json"}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_step_configs_follow_the_contract(toy_bundle: Bundle, tmp_path: Path, flavour: str) -> None:
    written = render(toy_bundle, tmp_path / "out", Deployment(flavour, 2, {"decode": 3}))
    contract = toy_bundle.contract
    for step in contract.steps:
        config = configs(tmp_path / "out")[step.name]
        order = [AFTER] if step.kind == "python" else []
        assert [t.name for t in config.input] == [*step.inputs, *order]
        assert [t.name for t in config.input if t.optional] == order
        assert [t.name for t in config.output] == list(step.outputs)
        for tensor in (*config.input[: len(step.inputs)], *config.output):
            spec = contract.tensors[tensor.name]
            assert model_config_pb2.DataType.Name(tensor.data_type) == WIRE_TYPES[spec.dtype]
            assert list(tensor.dims) == [-1 if isinstance(d, str) else d for d in spec.shape]
        assert config.backend == ("python" if step.kind == "python" else flavour)
        model_py = tmp_path / "out" / step.name / "1" / "model.py"
        assert model_py.exists() == (config.backend == "python") == (model_py in written)
        assert config.instance_group[0].count == (3 if step.name == "decode" else 1)
        assert config.parameters["contract_id"].string_value == contract.contract_id
        threads = "threads" if config.backend == "python" else "intra_op_thread_count"
        assert config.parameters[threads].string_value == "2"


def test_zero_batch_size_is_written_out(toy_bundle: Bundle, tmp_path: Path) -> None:
    """protobuf leaves zeros out, and Triton would then guess."""
    for path in render(toy_bundle, tmp_path / "out"):
        assert path.suffix != ".pbtxt" or "\nmax_batch_size: 0\n" in path.read_text()


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_are_cuts(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    render(toy_bundle, tmp_path / "out")
    inputs, outputs = ENSEMBLES[name]
    config = configs(tmp_path / "out")[name]
    steps = config.ensemble_scheduling.step
    assert {s.model_name for s in steps} == {
        s.name for s in cut(toy_bundle.contract.steps, inputs, outputs)
    }
    assert [t.name for t in config.input] == list(inputs)
    assert [t.name for t in config.output] == list(outputs)
    known = set(inputs)
    for step in steps:  # in an order in which they can run, each tensor under its one name
        wanted = toy_bundle.contract.step(step.model_name).inputs
        tensors = dict(step.input_map)
        assert tensors.pop(AFTER, None) in {None, *known} - set(inputs)
        assert tensors == {name: name for name in wanted}
        assert set(tensors) <= known
        known |= set(step.output_map)
    assert set(outputs) <= known
    assert (tmp_path / "out" / name / "1" / ".gitkeep").read_bytes() == b""


@pytest.mark.parametrize("name", ENSEMBLES)
def test_no_two_steps_can_start_at_once(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    """Triton deadlocks when the first of two fails before the second is scheduled."""
    render(toy_bundle, tmp_path / "out")
    given = set(ENSEMBLES[name][0])
    steps = configs(tmp_path / "out")[name].ensemble_scheduling.step
    assert len([s for s in steps if set(s.input_map.values()) <= given]) == 1


def test_ensembles_carry_the_whole_contract(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out")
    for name in ENSEMBLES:
        parameters = configs(tmp_path / "out")[name].parameters
        found = Contract.from_json(json.loads(parameters["contract"].string_value))
        assert found == toy_bundle.contract
        assert parameters["bundle_id"].string_value == toy_bundle.bundle_id
        assert parameters["contract_id"].string_value == toy_bundle.contract.contract_id


def test_equal_input_gives_equal_bytes(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "one")
    render(toy_bundle, tmp_path / "two")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_in_place_it_replaces_another_flavour_and_leaves_content_alone(own_bundle: Bundle) -> None:
    before = tree(own_bundle.root)
    render(own_bundle, own_bundle.root, Deployment("onnxruntime"))
    fresh = tree(own_bundle.root)
    render(own_bundle, own_bundle.root, Deployment("python", 1))
    assert tree(own_bundle.root) != fresh
    render(own_bundle, own_bundle.root, Deployment("onnxruntime"))
    assert tree(own_bundle.root) == fresh
    assert before.items() <= fresh.items()
    assert open_bundle(own_bundle.root).manifest == own_bundle.manifest


def test_elsewhere_it_links_to_the_content(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out")
    for name in toy_bundle.manifest["content"]:
        link = tmp_path / "out" / name
        assert link.is_symlink()
        assert link.resolve() == (toy_bundle.root / name).resolve()
    assert open_bundle(tmp_path / "out").bundle_id == toy_bundle.bundle_id


def test_where_links_fail_it_copies(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    render(toy_bundle, tmp_path / "out")
    assert not (tmp_path / "out" / "fusion" / "1" / "model.onnx").is_symlink()
    assert open_bundle(tmp_path / "out").bundle_id == toy_bundle.bundle_id


def test_a_folder_with_something_else_in_it_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InvalidInputError, match="not an empty folder"):
        render(toy_bundle, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "deployment",
    [
        Deployment("tensorflow"),  # type: ignore[arg-type]
        Deployment(threads=-1),
        Deployment(instances={"decoder": 2}),
        Deployment(instances={"decode": 0}),
    ],
)
def test_a_wrong_deployment_is_refused_before_anything_is_written(
    toy_bundle: Bundle, tmp_path: Path, deployment: Deployment
) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        render(toy_bundle, tmp_path / "out", deployment)
    assert not (tmp_path / "out").exists()
