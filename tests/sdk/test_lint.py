"""Lint: a good repository broken in one way has exactly that finding."""

from __future__ import annotations

import json
import os
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from google.protobuf import text_format
from lint_cases import (
    CASE,
    CASES,
    GOOD,
    GOOD_ENSEMBLE,
    OPTIONS,
    SOUND,
    Case,
    write_case,
    write_relay,
)
from toy import write_toy_bundle
from tritonclient.grpc import model_config_pb2

from merkit.bundle import Bundle, source_sha256
from merkit.cli import main
from merkit.errors import InvalidInputError, MissingExtraError
from merkit.lint import RULES, Finding, Options, lint, refuse_errors, server_version
from merkit.lint import server_arguments as arguments
from merkit.plans import Sidecar
from merkit.serving.deployment import Deployment, QueuePolicy, StepDeployment
from merkit.serving.render import render

MODEL = "audio_encoder"
Edit = Callable[[Any], object]


def rules(findings: tuple[Finding, ...], model: str | None = None) -> set[str]:
    return {f.rule for f in findings if f.severity != "advice" and model in (None, f.model)}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_broken_model_has_its_finding_and_no_other(case: Case, tmp_path: Path) -> None:
    write_relay(tmp_path)
    write_case(tmp_path, case)
    report = lint(tmp_path, OPTIONS)
    assert rules(report.findings, CASE) == {case.rule}, [str(f) for f in report.findings]
    assert rules(report.findings, "relay") == set()
    assert all(f.found and f.action and f.source for f in report.findings)


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_nothing_is_found_in_sound_models(case: Case, tmp_path: Path) -> None:
    write_relay(tmp_path)
    write_case(tmp_path, case)
    report = refuse_errors(tmp_path, OPTIONS)
    assert report.clean, [str(finding) for finding in report.findings]


@pytest.mark.parametrize("flavour", ["onnxruntime", "python"])
def test_what_merkit_renders_is_clean(flavour: Any, toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "models", Deployment(flavour=flavour))
    report = lint(tmp_path / "models", Options(server_version=(24, 10), gpus=0))
    assert report.clean, [str(finding) for finding in report.findings]
    assert not report.skipped
    assert {"merkit", MODEL} <= set(report.models)


DEPLOYMENTS = {
    "warmed up": Deployment(warm_up=True),
    "cached": Deployment(response_cache=True),
    "queued": Deployment(queue=QueuePolicy(8, 100, "delay", 3, 2)),
    "impatient": Deployment(queue=QueuePolicy(8, 100, "reject", 3)),
    "on a GPU": Deployment(steps={"face_encoder": StepDeployment(kind="gpu", gpus=(0,))}),
    "one by one": Deployment(max_batch_size=0),
    "in Python": Deployment(flavour="python", warm_up=True, max_batch_size=4, views=True),
}


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_every_way_to_deploy_is_clean(name: str, toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "models", DEPLOYMENTS[name])
    report = lint(tmp_path / "models", Options(gpus=1))
    assert report.clean, [str(finding) for finding in report.findings]


def test_bundles_side_by_side_are_clean(toy_bundle: Bundle, tmp_path: Path) -> None:
    other = write_toy_bundle(tmp_path / "other", seed=3)
    for bundle in (toy_bundle, other):
        render(bundle, tmp_path / "models", versioned=True)
    assert lint(tmp_path / "models").clean


def test_the_demonstration_bundle_is_clean() -> None:
    assert lint(REPOSITORY / "triton_repo" / "models").clean


# --- a rendered repository for NVIDIA's container, which no server here can judge ---------------


@pytest.fixture
def rendered(toy_bundle: Bundle, tmp_path: Path) -> Path:
    render(toy_bundle, tmp_path / "models")
    return tmp_path / "models"


def edit(repository: Path, model: str, change: Edit) -> None:
    """Changes a parsed config and writes it back."""
    path = repository / model / "config.pbtxt"
    config = text_format.Parse(path.read_text("utf-8"), model_config_pb2.ModelConfig())
    change(config)
    written = "" if config.max_batch_size else "max_batch_size: 0\n"
    path.write_text(written + text_format.MessageToString(config), "utf-8")


def no_batching(config: Any) -> None:
    config.max_batch_size = 0
    for tensor in (*config.input, *config.output):
        tensor.dims.insert(0, -1)
    config.ClearField("dynamic_batching")


def two_dimensional(config: Any) -> None:
    config.input[0].dims.append(3)


def ragged_without_counts(config: Any) -> None:
    config.ClearField("batch_input")


def batch_dimension_too_much(config: Any) -> None:
    for tensor in (*config.input, *config.output):
        tensor.dims.insert(0, -1)


GRAPH_CASES: list[tuple[str, str, Edit, set[str]]] = [
    ("optional-batched", "face_encoder", lambda c: setattr(c.input[0], "optional", True),
     {"optional-batched", "graph-optional"}),
    ("ragged-rank", MODEL, two_dimensional, {"ragged-rank"}),
    ("ragged-no-counts", MODEL, ragged_without_counts, {"ragged-no-counts", "graph-inputs"}),
    ("graph-inputs", "voting", lambda c: setattr(c.input[0], "name", "scores_of_branches"),
     {"graph-inputs", "map-unknown-input", "map-missing-input"}),
    ("graph-outputs", "voting", lambda c: setattr(c.output[0], "name", "winner"),
     {"graph-outputs", "map-unknown-output"}),
    ("graph-dtype", "face_encoder", lambda c: setattr(c.input[0], "data_type", 10),
     {"graph-dtype", "ensemble-dtype"}),
    ("graph-shape", "face_encoder", batch_dimension_too_much,
     {"graph-shape", "ensemble-shape", "variable-length"}),
    ("graph-shape", "face_encoder", lambda c: setattr(c, "max_batch_size", 0),
     {"graph-shape", "batcher-idle", "ensemble-shape"}),
    ("graph-ragged", "face_encoder", lambda c: setattr(c.input[0], "allow_ragged_batch", True),
     {"graph-ragged", "ragged-rank", "ragged-no-counts"}),
    ("graph-batch-input", MODEL, lambda c: setattr(c.batch_input[0], "data_type", 11),
     {"graph-batch-input"}),
    ("contract-mixed", "voting", lambda c: c.parameters["contract_id"].__setattr__(
        "string_value", "0" * 32), {"contract-mixed", "contract-graph"}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "model", "change", "found"), GRAPH_CASES)
def test_each_broken_rendering_has_its_findings(
    rule: str, model: str, change: Edit, found: set[str], rendered: Path
) -> None:
    edit(rendered, model, change)
    report = lint(rendered)
    assert rule in found
    assert rules(report.findings) == found, [str(finding) for finding in report.findings]


def test_a_graph_with_a_fixed_batch_is_found(rendered: Path) -> None:
    change_graph(rendered, "face_encoder", lambda g: fix_batch(g.input[0]))
    assert rules(lint(rendered).findings) == {"graph-batch"}


def test_a_scalar_tensor_takes_dims_of_one(rendered: Path) -> None:
    def change(graph: Any) -> None:
        graph.input[0].type.tensor_type.shape.ClearField("dim")

    change_graph(rendered, "face_encoder", change)
    edit(rendered, "face_encoder", no_batching)
    assert "graph-shape" in rules(lint(rendered).findings)


def test_a_file_that_is_no_graph_is_found(rendered: Path) -> None:
    path = rendered / "voting" / "1" / "model.onnx"
    path.unlink()
    path.write_bytes(b"\x00not a graph")
    assert rules(lint(rendered).findings) == {"graph-unreadable"}


def test_weights_that_were_left_behind_are_found(rendered: Path) -> None:
    def change(graph: Any) -> None:
        entry = graph.initializer[0].external_data.add()
        entry.key, entry.value = "location", "weights.bin"
        graph.initializer[0].data_location = 1

    change_graph(rendered, "face_encoder", change)
    assert rules(lint(rendered).findings) == {"graph-data-file"}


def test_a_link_to_itself_and_a_pipe_are_told_of(rendered: Path) -> None:
    for model in ("fusion", "voting"):
        (rendered / model / "config.pbtxt").unlink()
    (rendered / "fusion" / "config.pbtxt").symlink_to("config.pbtxt")
    os.mkfifo(rendered / "voting" / "config.pbtxt")
    report = lint(rendered)
    assert {f.model for f in report.errors if f.rule == "config-syntax"} == {"fusion", "voting"}


def test_an_optional_input_with_a_default_is_no_fault(rendered: Path) -> None:
    """The ONNX Runtime backend takes them where nothing batches."""
    import onnx

    def change(graph: Any) -> None:
        default = onnx.helper.make_tensor("face_grid", 1, [1, 3, 128, 128], [0.0] * 3 * 128 * 128)
        graph.initializer.append(default)

    change_graph(rendered, "face_encoder", change)
    edit(rendered, "face_encoder", no_batching)
    edit(rendered, "face_encoder", lambda c: setattr(c.input[0], "optional", True))
    assert rules(lint(rendered).findings) == set()


def change_graph(repository: Path, model: str, change: Edit) -> None:
    import onnx

    path = repository / model / "1" / "model.onnx"
    loaded = onnx.load(path)
    change(loaded.graph)
    path.unlink()
    path.write_bytes(loaded.SerializeToString())


def fix_batch(value: Any) -> None:
    value.type.tensor_type.shape.dim[0].ClearField("dim_param")
    value.type.tensor_type.shape.dim[0].dim_value = 1


def test_graphs_that_cannot_be_read_are_said_to_be_skipped(
    rendered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    report = lint(rendered)
    assert report.clean
    assert "onnx" in report.skipped[0]


# --- TensorRT -------------------------------------------------------------------------------


def write_plan(repository: Path, *, batch: int = 4, flags: tuple[str, ...] = ()) -> Path:
    """A TensorRT model with a plan and its sidecar."""
    folder = repository / "plan" / "1"
    folder.mkdir(parents=True)
    config = GOOD.replace('"case"', '"plan"').replace('"python"', '"tensorrt"')
    (folder.parent / "config.pbtxt").write_text(config.replace("KIND_CPU", "KIND_GPU"))
    (folder / "model.plan").write_bytes(b"plan")
    profile = {"IN": ((1, 3), (2, 3), (batch, 3))}
    sidecar = Sidecar(
        "plan",
        "0",
        "0",
        "11.0",
        "9.0",
        "linux-x86_64",
        "13",
        "none",
        flags,
        (profile,),
        {},
        "0",
        4,
        0,
    )
    (folder / "model.json").write_text(json.dumps(sidecar.to_json()))
    return folder.parent


def fp64(config: Any) -> None:
    config.input[0].data_type = model_config_pb2.TYPE_STRING


def on_the_cpu(config: Any) -> None:
    config.instance_group[0].kind = model_config_pb2.ModelInstanceGroup.KIND_CPU


PLAN_CASES: list[tuple[str, Edit]] = [
    ("optional-tensorrt", lambda c: setattr(c.input[0], "optional", True)),
    ("tensorrt-type", fp64),
    ("tensorrt-cpu", on_the_cpu),
    ("profile-batch", lambda c: setattr(c, "max_batch_size", 8)),
    ("profile-shape", lambda c: c.input[0].dims.__setitem__(0, 5)),
    ("profile-index", lambda c: c.instance_group[0].profile.append("1")),
]


@pytest.mark.parametrize(("rule", "change"), PLAN_CASES)
def test_each_broken_plan_has_its_finding(rule: str, change: Edit, tmp_path: Path) -> None:
    write_plan(tmp_path)
    assert lint(tmp_path, Options(gpus=1)).clean
    edit(tmp_path, "plan", change)
    assert rules(lint(tmp_path, Options(gpus=1)).findings) == {rule}


def test_plans_without_weights_or_of_another_graph_are_found(tmp_path: Path) -> None:
    folder = write_plan(tmp_path, flags=("STRIP_PLAN",))
    (folder / "1" / "model.onnx").write_bytes(b"another")
    assert rules(lint(tmp_path).findings) == {"plan-stripped", "plan-stale"}
    (folder / "1" / "model.json").unlink()
    assert [f.rule for f in lint(tmp_path).findings] == ["plan-no-sidecar"]


def test_weights_that_changed_beside_their_graph_are_found(tmp_path: Path) -> None:
    folder = write_plan(tmp_path)
    weights = folder / "1" / "model.onnx.data"
    weights.write_bytes(b"first")
    sidecar = folder / "1" / "model.json"
    weights.with_suffix("").write_bytes(b"graph")
    source = source_sha256(weights.with_suffix(""))
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "onnx_sha256": source}))
    assert lint(tmp_path, Options(gpus=1)).clean
    weights.write_bytes(b"other")
    assert rules(lint(tmp_path, Options(gpus=1)).findings) == {"plan-stale"}


# --- the host -------------------------------------------------------------------------------


def environment(root: Path, python: str = "3.10", **packages: str) -> Path:
    site = root / "env" / "lib" / f"python{python}" / "site-packages"
    site.mkdir(parents=True)
    for name, version in packages.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return root / "env"


@pytest.mark.parametrize(
    ("python", "packages", "server", "found"),
    [
        ("3.10", {"numpy": "1.26.4"}, (24, 10), set()),
        ("3.10", {"numpy": "2.1.0"}, (24, 10), {"numpy-2"}),
        ("3.12", {"numpy": "2.1.0"}, (25, 1), set()),
        ("3.11", {"numpy": "1.26.4"}, (24, 10), {"stub-python"}),
        ("3.10", {}, (24, 10), {"no-numpy"}),
        ("3.11", {"numpy": "2.1.0", "nvidia_pytriton": "0.7.0"}, None, {"numpy-2", "stub-python"}),
        ("3.11", {"numpy": "2.1.0"}, None, set()),
    ],
)
def test_the_environment_of_python_models_is_judged(
    python: str, packages: dict[str, str], server: Any, found: set[str], tmp_path: Path
) -> None:
    write_relay(tmp_path / "models")
    options = Options(server_version=server, environment=environment(tmp_path, python, **packages))
    assert rules(lint(tmp_path / "models", options).findings) == found


def test_the_wheel_brings_stubs_of_its_own(tmp_path: Path) -> None:
    write_relay(tmp_path / "models")
    env = environment(tmp_path, "3.11", numpy="1.26.4", nvidia_pytriton="0.7.0")
    stub = env / "lib/python3.11/site-packages/pytriton/tritonserver/python_backend_stubs/3.11"
    stub.mkdir(parents=True)
    (stub / "triton_python_backend_stub").touch()
    assert lint(tmp_path / "models", Options(environment=env)).clean


@pytest.mark.parametrize(
    ("version", "args", "rule"),
    [
        (None, None, "cache-advice"),
        (None, "--log-verbose=1", "cache-flag"),
        (None, "--cache-config local,size=9", None),
        ((26, 4), "--cache-config=local,size=9", "client-shm"),
        ((26, 4), "--cache-config=local,size=9 --allow-client-shm=true", None),
        (None, "--cache-config=local,size=9 --model-control-mode=explicit", "nothing-loaded"),
        (None, "--cache-config=local --model-control-mode explicit --load-model=relay", None),
    ],
)
def test_the_servers_flags_are_judged(
    version: Any, args: str | None, rule: str | None, tmp_path: Path
) -> None:
    write_case(tmp_path, Case("cached", "", GOOD + "response_cache { enable: true }\n"))
    flags = arguments(args) if args is not None else None
    found = [f.rule for f in lint(tmp_path, Options(version, flags)).findings]
    assert [name for name in found if name != "shm-size"] == ([rule] if rule else [])


def test_a_model_without_a_config_is_guessed_at_or_refused(tmp_path: Path) -> None:
    write_case(tmp_path, Case("bare", "", None))
    assert rules(lint(tmp_path).findings) == {"no-config"}
    assert rules(lint(tmp_path, OPTIONS).findings) == {"no-config-strict"}


def test_large_tensors_ask_for_more_shared_memory_than_containers_give(tmp_path: Path) -> None:
    write_case(tmp_path, Case("large", "", GOOD.replace("dims: 3", "dims: 9000000")))
    assert rules(lint(tmp_path).findings) == {"shm-full"}


def test_a_decoupled_step_makes_the_ensemble_decoupled(tmp_path: Path) -> None:
    write_relay(tmp_path)
    write_case(tmp_path, Case("ensemble", "", GOOD_ENSEMBLE, ("1/.gitkeep",)))
    edit(tmp_path, "relay", lambda c: setattr(c.model_transaction_policy, "decoupled", True))
    assert rules(lint(tmp_path).findings) == {"ensemble-decoupled"}


# --- the command and its documentation ---------------------------------------------------------


def test_the_command_reports_and_fails_on_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_relay(tmp_path)
    assert main(["lint", str(tmp_path), "--strict"]) == 0
    assert "1 models: 0 errors, 0 warnings" in capsys.readouterr().out
    write_case(tmp_path, Case("broken", "", GOOD + "dynamic_batching { priority_levels: 2 }\n"))
    assert main(["lint", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "error    case: dynamic_batching.priority_levels" in out
    assert "[priority-level]" in out
    assert main(["lint", str(tmp_path), "--json", "--server-version", "24.10"]) == 1
    found = json.loads(capsys.readouterr().out)["findings"]
    assert (found[0]["rule"], found[0]["model"]) == ("priority-level", CASE)


def test_warnings_alone_fail_only_a_strict_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path, Case("warned", "", GOOD.replace("max_batch_size: 4\n", "")))
    assert main(["lint", str(tmp_path)]) == 0
    assert main(["lint", str(tmp_path), "--strict"]) == 1
    assert "[max-batch-omitted]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["nowhere"], "there is no folder nowhere"),
        ([__file__], "is no folder"),
        ([".", "--server-version", "2.51"], "the server version '2.51'"),
        ([".", "--server-args", "'"], "No closing quotation"),
        ([".", "--gpus", "-1"], "--gpus -1"),
        ([".", "--env", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_wrong_arguments_are_told(
    command: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["lint", *command]) == 1
    assert message in capsys.readouterr().err


def test_a_models_folder_is_no_repository(tmp_path: Path) -> None:
    write_relay(tmp_path)
    with pytest.raises(InvalidInputError, match="give its parent"):
        lint(tmp_path / "relay")


def test_a_pointer_is_no_model(tmp_path: Path) -> None:
    write_case(tmp_path, Case("pointer", "", GOOD))
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    (tmp_path / CASE / "1" / "model.py").write_bytes(pointer)
    assert rules(lint(tmp_path).findings) == {"lfs-pointer"}


def test_links_out_of_the_repository_are_told(tmp_path: Path) -> None:
    write_relay(tmp_path / "models")
    file = tmp_path / "models" / "relay" / "1" / "model.py"
    file.rename(tmp_path / "elsewhere.py")
    file.symlink_to(tmp_path / "elsewhere.py")
    assert "links-outside" in [f.rule for f in lint(tmp_path / "models").findings]
    (tmp_path / "elsewhere.py").unlink()
    assert rules(lint(tmp_path / "models").findings) == {"no-model-file"}


def test_a_server_that_completes_configs_may_be_left_to_it(tmp_path: Path) -> None:
    config = 'name: "case"\nbackend: "python"\n'
    write_case(tmp_path, Case("short", "", config))
    assert lint(tmp_path).clean
    assert rules(lint(tmp_path, OPTIONS).findings) == {"max-batch-omitted", "no-tensors"}


def test_without_tritonclient_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tritonclient", "tritonclient.grpc", "google.protobuf"):
        monkeypatch.setitem(sys.modules, name, None)
    write_relay(tmp_path)
    with pytest.raises(MissingExtraError, match=r"merkit\[triton\]"):
        lint(tmp_path)


def test_an_empty_repository_serves_nothing(tmp_path: Path) -> None:
    assert rules(lint(tmp_path).findings) == {"no-models"}


def test_a_config_of_other_bytes_is_a_finding(tmp_path: Path) -> None:
    write_relay(tmp_path)
    (tmp_path / "relay" / "config.pbtxt").write_bytes(b"\xff\xfe\x00")
    assert rules(lint(tmp_path).findings) == {"config-syntax"}


def test_no_config_however_garbled_ends_lint(tmp_path: Path) -> None:
    """Tokens dropped, doubled and replaced: lint finds something or nothing, and says so."""
    rng = random.Random(7)
    odd = ["-1", "0", "99999999999", "TYPE_STRING", '"relay"', '""', "{ }", '"tensorrt"', "1e9"]
    write_relay(tmp_path)
    write_case(tmp_path, Case("garbled", "", GOOD))
    for _ in range(150):
        tokens = re.findall(r'"[^"]*"|\S+|\s+', rng.choice(CASES + SOUND).config or GOOD)
        for place in rng.choices(range(len(tokens)), k=rng.randint(1, 3)):
            tokens[place] = rng.choice(["", tokens[place] * 2, rng.choice(odd), rng.choice(tokens)])
        (tmp_path / CASE / "config.pbtxt").write_text("".join(tokens))
        assert {"case", "relay"} == set(lint(tmp_path, OPTIONS).models)


def test_errors_refuse_a_repository_and_name_the_first(tmp_path: Path) -> None:
    write_case(tmp_path, Case("broken", "", GOOD + "dynamic_batching { priority_levels: 2 }\n"))
    with pytest.raises(InvalidInputError, match=r"case/dynamic_batching.*\[priority-level\]"):
        refuse_errors(tmp_path)


def test_server_versions_and_arguments_are_read() -> None:
    assert server_version("24.10-py3") == (24, 10)
    assert arguments("tritonserver --a=1 --b 'x y' --c --a=2") == {"a": "1\n2", "b": "x y", "c": ""}


def test_every_rule_is_broken_somewhere_in_these_tests() -> None:
    told = {case.rule for case in CASES} | {case[0] for case in GRAPH_CASES}
    told |= {rule for rule, _ in PLAN_CASES}
    text = Path(__file__).read_text("utf-8")
    assert not [name for name in RULES if name not in told and f'"{name}"' not in text]


def test_the_page_lists_every_rule_and_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "lint.md").read_text("utf-8")
    for rule in RULES.values():
        assert f"| `{rule.id}` | {rule.severity} | {rule.says} |" in page
        assert f"{rule.source} |\n" in page
    assert len(re.findall(r"^\| `[a-z0-9-]+` \|", page, re.MULTILINE)) == len(RULES)
    assert main(["lint", "--rules"]) == 0
    assert set(
        re.findall(r"^(?:error|warning|advice) +(\S+)", capsys.readouterr().out, re.M)
    ) == set(RULES)
