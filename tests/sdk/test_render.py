"""Rendered repositories: everything follows from the contract, and nothing else lies there."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from merkit.bundle import Bundle, open_bundle
from merkit.contract import Contract
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS, EntryPoint, entry_points, prune, standard_contract
from merkit.plans import Sidecar
from merkit.serving.batching import WIRE_TYPES
from merkit.serving.config import CONSTANTS
from merkit.serving.constants import BATCH
from merkit.serving.deployment import CustomCut, Deployment, QueuePolicy, StepDeployment
from merkit.serving.ensembles import AFTER
from merkit.serving.lazy_model import NAME as LAZY
from merkit.serving.render import render

ENTRIES = entry_points(standard_contract(("a", "b"), dict.fromkeys(GROUPS, 8)))
FLAVOURS = ("onnxruntime", "python")


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


def models(bundle: Bundle) -> set[str]:
    return {step.name for step in bundle.contract.steps} | {*ENTRIES, CONSTANTS, LAZY}


def test_every_step_and_entry_point_has_a_config(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out")
    assert set(configs(tmp_path / "out")) == models(toy_bundle)
    assert all(config.name == name for name, config in configs(tmp_path / "out").items())


def test_nothing_but_models_and_the_manifest_lies_in_the_root(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    render(toy_bundle, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == models(toy_bundle) | {"bundle.json"}


@pytest.mark.parametrize("existed", [False, True])
def test_a_full_disk_leaves_no_half_repository(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existed: bool
) -> None:
    out, copied = tmp_path / "out", []

    def copy(source: Path, target: Path) -> None:
        Path(target).write_bytes(Path(source).read_bytes())
        copied.append(target)
        if len(copied) == 4:
            raise OSError(errno.ENOSPC, "No space left on device")

    if existed:
        out.mkdir()
    with monkeypatch.context() as patched, pytest.raises(OSError, match="No space"):
        patched.setattr(shutil, "copy2", copy)
        render(toy_bundle, out, copy=True)
    assert len(copied) == 4
    assert out.exists() == existed and not list(tmp_path.rglob("*"))[existed:]
    render(toy_bundle, out, copy=True)
    assert open_bundle(out).bundle_id == toy_bundle.bundle_id


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_step_configs_follow_the_contract(toy_bundle: Bundle, tmp_path: Path, flavour: str) -> None:
    three = {"decode": StepDeployment(instances=3)}
    written = render(toy_bundle, tmp_path / "out", Deployment(flavour, 2, steps=three))
    contract = toy_bundle.contract
    for step in contract.steps:
        config = configs(tmp_path / "out")[step.name]
        order = [AFTER] if step.kind == "python" else []
        assert [t.name for t in config.input] == [*step.inputs, *order]
        assert [t.name for t in config.input if t.optional] == order
        assert [t.name for t in config.output] == list(step.outputs)
        for tensor in (*config.input[: len(step.inputs)], *config.output):
            spec = contract.tensors[tensor.name]
            shape = spec.shape[1:] if config.max_batch_size else spec.shape
            assert model_config_pb2.DataType.Name(tensor.data_type) == WIRE_TYPES[spec.dtype]
            assert list(tensor.dims) == [-1 if isinstance(d, str) else d for d in shape or (1,)]
        assert config.backend == ("python" if step.kind == "python" else flavour)
        model_py = tmp_path / "out" / step.name / "1" / "model.py"
        assert model_py.exists() == (config.backend == "python") == (model_py in written)
        assert config.instance_group[0].count == (3 if step.name == "decode" else 1)
        assert config.parameters["contract_id"].string_value == contract.contract_id
        threads = "threads" if config.backend == "python" else "intra_op_thread_count"
        assert config.parameters[threads].string_value == "2"


def test_the_batch_size_is_always_written_out(toy_bundle: Bundle, tmp_path: Path) -> None:
    """protobuf leaves zeros out, and Triton would then guess."""
    for path in render(toy_bundle, tmp_path / "out"):
        assert path.suffix != ".pbtxt" or path.read_text().count("\nmax_batch_size: ") == 1


def test_steps_have_their_own_choices(toy_bundle: Bundle, tmp_path: Path) -> None:
    queue = QueuePolicy(priorities=2)
    steps = {
        "face_encoder": StepDeployment("python", 2, max_batch_size=4, queue=queue),
        "audio_encoder": StepDeployment(kind="gpu", gpus=(1,), response_cache=True),
    }
    render(toy_bundle, tmp_path / "out", Deployment(steps=steps))
    found = configs(tmp_path / "out")
    face, audio, text = (found[f"{name}_encoder"] for name in ("face", "audio", "text"))
    assert (face.backend, audio.backend) == ("python", "onnxruntime")
    assert (face.max_batch_size, audio.max_batch_size) == (4, 16)
    assert face.dynamic_batching.priority_levels == 2
    assert not text.dynamic_batching.priority_levels
    group = model_config_pb2.ModelInstanceGroup
    assert [face.instance_group[0].kind, text.instance_group[0].kind] == [
        group.KIND_CPU,  # a stub runs onnxruntime on the CPU
        group.KIND_AUTO,
    ]
    assert (audio.instance_group[0].kind, list(audio.instance_group[0].gpus)) == (
        group.KIND_GPU,
        [1],
    )
    assert audio.response_cache.enable
    assert not text.response_cache.enable


def test_queues_are_limited_where_triton_bears_it(toy_bundle: Bundle, tmp_path: Path) -> None:
    """A limit on a step that runs beside others kills Triton 24.10 with signal 11."""
    limits = QueuePolicy(max_size=9, timeout_ms=50, priorities=2)
    for parallel in (False, True):
        out = tmp_path / str(parallel)
        render(toy_bundle, out, Deployment(queue=limits, limit_parallel=parallel))
        for name, config in configs(out).items():
            batching = config.dynamic_batching
            if not config.HasField("dynamic_batching"):
                continue
            alone = name in ("fusion", "voting")
            assert batching.default_queue_policy.max_queue_size == (9 if alone or parallel else 0)
            assert batching.default_queue_policy.default_timeout_microseconds == (
                50_000 if alone or parallel else 0
            )
            assert batching.priority_levels == 2
    one = {"audio_encoder": StepDeployment(queue=QueuePolicy(timeout_ms=5))}
    with pytest.raises(InvalidInputError, match="runs beside others"):
        render(toy_bundle, tmp_path / "out", Deployment(steps=one))


@pytest.mark.parametrize("stated", ["fp32; stored small", {"precision": "fp32", "why": "least"}])
def test_a_host_may_insist_on_a_precision(
    toy_bundle: Bundle, tmp_path: Path, stated: object
) -> None:
    manifest = {**toy_bundle.manifest, "precision": {"fusion": stated}}
    bundle = replace(toy_bundle, manifest=manifest)
    render(bundle, tmp_path / "1", Deployment(steps={"fusion": StepDeployment(precision="fp32")}))
    for step, precision in (("fusion", "fp16"), ("voting", "fp32")):
        asked = Deployment(steps={step: StepDeployment(precision=precision)})
        with pytest.raises(InvalidInputError, match=f"stores the step '{step}'"):
            render(bundle, tmp_path / "2", asked)


def plan(bundle: Bundle, step: str, capability: str) -> None:
    """Files such as merkit-export tensorrt leaves beside a model."""
    folder = bundle.root / step / "1"
    stem = f"model.sm_{capability.replace('.', '')}"
    (folder / f"{stem}.plan").write_bytes(b"plan")
    shape = {"face_grid": [[1, 3, 128, 128], [8, 3, 128, 128], [16, 3, 128, 128]]}
    plain = Sidecar(
        step=step,
        step_digest=bundle.manifest["step_digests"][step],
        onnx_sha256="",
        tensorrt="11.0",
        compute_capability=capability,
        platform="linux-x86_64",
        driver="13.0",
        hardware="none",
        flags=(),
        profiles=(shape,),
        settings={},
        plan_sha256="",
        plan_bytes=4,
        seconds=0,
    ).to_json()
    (folder / f"{stem}.json").write_text(json.dumps(plain))


def test_tensorrt_serves_the_plans_that_are_there(own_bundle: Bundle, tmp_path: Path) -> None:
    tensorrt = Deployment(steps={"face_encoder": StepDeployment("tensorrt", kind="gpu")})
    with pytest.raises(InvalidInputError, match="has no TensorRT plan"):
        render(own_bundle, tmp_path / "out", tensorrt)
    assert not (tmp_path / "out").exists()
    for capability in ("8.6", "9.0"):
        plan(own_bundle, "face_encoder", capability)
    render(own_bundle, tmp_path / "out", tensorrt)
    config = configs(tmp_path / "out")["face_encoder"]
    assert config.backend == "tensorrt"
    files = {"8.6": "model.sm_86.plan", "9.0": "model.sm_90.plan"}
    assert dict(config.cc_model_filenames) == files
    assert list(config.instance_group[0].profile) == ["0"]
    for name in files.values():
        assert (tmp_path / "out" / "face_encoder" / "1" / name).read_bytes() == b"plan"
    assert configs(tmp_path / "out")["fusion"].backend == "onnxruntime"


def walk(config: model_config_pb2.ModelConfig, entry: EntryPoint) -> list[str]:
    """The models of an ensemble; each tensor is made once, and before it is read."""
    known = set(entry.inputs)
    for step in config.ensemble_scheduling.step:
        assert set(step.input_map.values()) <= known
        assert not set(step.output_map.values()) & known
        known |= set(step.output_map.values())
    assert set(entry.outputs) <= known
    return [step.model_name for step in config.ensemble_scheduling.step]


@pytest.mark.parametrize("name", ENTRIES)
def test_ensembles_are_cuts(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    render(toy_bundle, tmp_path / "out")
    entry, contract = ENTRIES[name], toy_bundle.contract
    config = configs(tmp_path / "out")[name]
    assert [t.name for t in config.input] == list(entry.inputs)
    assert [t.name for t in config.output] == list(entry.outputs)
    found = prune(contract, entry)
    constants = [CONSTANTS] * bool(found.constants)
    assert sorted(walk(config, entry)) == sorted(constants + [s.name for s in found.steps])
    for step in config.ensemble_scheduling.step:  # each tensor under its one name
        tensors = dict(step.input_map)
        if step.model_name == CONSTANTS:
            assert set(step.output_map) == set(found.constants)
            assert contract.tensors[tensors[BATCH["int64"]]].shape == ("batch", 1)
        else:
            tensors.pop(AFTER, None)
            assert tensors == {n: n for n in contract.step(step.model_name).inputs}
        assert all(key == value for key, value in step.output_map.items())
    assert (tmp_path / "out" / name / "1" / ".gitkeep").read_bytes() == b""


@pytest.mark.parametrize("name", [*ENTRIES, "merkit_view_a", "merkit_view_t", "merkit_view_v"])
def test_no_two_steps_can_start_at_once(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    """Triton deadlocks when the first of two fails before the second is scheduled."""
    render(toy_bundle, tmp_path / "out", Deployment(views=True))
    config = configs(tmp_path / "out")[name]
    given = {tensor.name for tensor in config.input}
    steps = config.ensemble_scheduling.step
    assert len([s for s in steps if set(s.input_map.values()) <= given]) == 1


def test_a_subset_runs_the_encoders_of_its_modalities_alone(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    render(toy_bundle, tmp_path / "out", Deployment(views=True))
    encoders = {
        name: {s.model_name[0] for s in config.ensemble_scheduling.step if "enc" in s.model_name}
        for name, config in configs(tmp_path / "out").items()
    }
    wanted = {"a": "aj", "t": "tj", "v": "f", "at": "atj", "av": "ajf", "tv": "tjf", "atv": "ajtf"}
    for letters, own in wanted.items():
        assert encoders[f"merkit_{letters}"] == set(own)
    assert encoders["merkit"] == set("ajtf")
    assert encoders["merkit_features"] == set()
    assert encoders["merkit_edge"] == set("ajt")
    assert [encoders[f"merkit_view_{letter}"] for letter in "atv"] == [{"a"}, {"t"}, {"f"}]


def test_views_and_ensembles_on_request(toy_bundle: Bundle, tmp_path: Path) -> None:
    mine = {"my_faces": CustomCut(("face_grid",), ("face_features",))}
    render(toy_bundle, tmp_path / "out", Deployment(views=True, ensembles=mine))
    found = configs(tmp_path / "out")
    assert [s.model_name for s in found["my_faces"].ensemble_scheduling.step] == ["face_encoder"]
    assert [t.name for t in found["merkit_view_t"].input] == ["text"]
    assert [t.name for t in found["merkit_view_t"].output] == ["text_features", "presence"]


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "found"),
    [
        ("decode", ("clip",), ("waveform",), "is called 'decode'"),
        ("merkit", ("clip",), ("waveform",), "is called 'merkit'"),
        ("../x", ("clip",), ("waveform",), "is called '../x'"),
        ("mine", ("clips",), ("waveform",), r"\['clips'\]"),
        ("mine", ("text",), ("waveform",), "'clip' is neither given"),
        ("mine", ("face_grid",), ("face_features", "face_features_large"), "at once"),
    ],
)
def test_an_ensemble_that_cannot_be_is_refused(
    toy_bundle: Bundle,
    tmp_path: Path,
    name: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    found: str,
) -> None:
    with pytest.raises(InvalidInputError, match=found):
        custom = {name: CustomCut(inputs, outputs)}
        render(toy_bundle, tmp_path / "out", Deployment(ensembles=custom))
    assert not (tmp_path / "out").exists()


def test_ensembles_carry_the_whole_contract(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out")
    for name in ENTRIES:
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


def test_in_place_it_removes_models_that_are_no_longer_rendered(own_bundle: Bundle) -> None:
    mine = {"my_faces": CustomCut(("face_grid",), ("face_features",))}
    render(own_bundle, own_bundle.root, Deployment(ensembles=mine))
    assert (own_bundle.root / "my_faces").is_dir()
    render(own_bundle, own_bundle.root)
    assert not (own_bundle.root / "my_faces").exists()
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
        Deployment(steps={"decoder": StepDeployment(instances=2)}),
        Deployment(steps={"decode": StepDeployment(instances=0)}),
        Deployment(steps={"decode": StepDeployment(kind="gpu")}),
        Deployment(steps={"face_encoder": StepDeployment("python", kind="gpu", gpus=(0,))}),
        Deployment("python", steps={"face_encoder": StepDeployment(kind="gpu")}),
    ],
)
def test_a_wrong_deployment_is_refused_before_anything_is_written(
    toy_bundle: Bundle, tmp_path: Path, deployment: Deployment
) -> None:
    with pytest.raises(InvalidInputError, match="expected"):
        render(toy_bundle, tmp_path / "out", deployment)
    assert not (tmp_path / "out").exists()
