"""Plans are built once, found again by all that decides them, and never left half-written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fake_tensorrt
import pytest

from merkit.bundle import Bundle, open_bundle
from merkit.errors import BackendError, InvalidInputError, MerkitError, MissingExtraError
from merkit.plans import plans_of, read_sidecar, triton_fields
from merkit_export.cli import main
from merkit_export.tensorrt.options import BuildOptions
from merkit_export.tensorrt.plans import Built, build_plans, default_cache
from merkit_export.tensorrt.profiles import profiles_of

STEPS = ["face_encoder", "audio_encoder", "fusion"]


@pytest.fixture
def bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake_tensorrt.install(monkeypatch)
    monkeypatch.setenv("MERKIT_CACHE", str(tmp_path / "cache"))


def build(bundle: Bundle, options: BuildOptions = BuildOptions(), **more: object) -> list[Built]:  # noqa: B008
    profiles = profiles_of(bundle, None, None, ())
    more = {"steps": STEPS, "say": lambda _: None, **more}
    return build_plans(bundle, profiles, options, **more)  # type: ignore[arg-type]


def test_plans_lie_beside_their_graphs_and_the_bundle_still_opens(bundle: Bundle) -> None:
    built = build(bundle)
    assert [b.path.name for b in built] == ["model.sm_90.plan"] * 3
    assert [len(b.sidecar.profiles) for b in built] == [1, 4, 1]
    open_bundle(bundle.root)
    (sidecar,) = plans_of(bundle.root, "audio_encoder").values()
    assert sidecar.step_digest == bundle.manifest["step_digests"]["audio_encoder"]
    assert sidecar.plan_bytes == built[1].path.stat().st_size
    assert not list(bundle.root.glob(".*"))


def test_what_was_built_is_taken_from_the_cache(bundle: Bundle) -> None:
    build(bundle)
    again = build(bundle)
    assert all(b.from_cache for b in again)
    assert len(fake_tensorrt.BUILDS) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"version_compatible": True},
        {"hardware": "ampere_plus"},
        {"tf32": True},
        {"level": 5},
        {"workspace_mib": 64},
    ],
    ids=str,
)
def test_another_choice_is_another_plan(bundle: Bundle, change: dict[str, object]) -> None:
    build(bundle, steps=["fusion"])
    (built,) = build(bundle, BuildOptions(**change), steps=["fusion"])  # type: ignore[arg-type]
    assert not built.from_cache


def test_another_gpu_version_or_size_is_another_plan(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle, steps=["fusion"])
    monkeypatch.setattr(fake_tensorrt, "DEVICES", ["8.9"])
    assert not build(bundle, steps=["fusion"])[0].from_cache
    monkeypatch.setattr(fake_tensorrt, "__version__", "11.5.0.1")
    assert not build(bundle, steps=["fusion"])[0].from_cache
    of = profiles_of(bundle, None, 4, ())
    (built,) = build_plans(bundle, of, BuildOptions(), steps=["fusion"], say=lambda _: None)
    assert not built.from_cache
    assert set(plans_of(bundle.root, "fusion")) == {"8.9", "9.0"}


def test_the_flags_reach_the_builder_and_tf32_is_off(bundle: Bundle) -> None:
    build(bundle, steps=["fusion"])
    options = BuildOptions(True, "same_compute_capability", True, True, False, True, 64, 4)
    build(bundle, options, steps=["fusion"])
    plain, chosen = fake_tensorrt.BUILDS
    assert (plain["flags"], plain["hardware"], plain["level"]) == ([], "NONE", 3)
    assert chosen["flags"] == ["REFIT", "TF32", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"]
    assert chosen["hardware"] == "SAME_COMPUTE_CAPABILITY"
    assert (chosen["level"], chosen["pools"]) == (4, {"WORKSPACE": 64 << 20})


def test_timings_of_one_build_help_the_next(bundle: Bundle) -> None:
    build(bundle)
    (cache,) = default_cache().glob("timings-*")
    assert cache.name == f"timings-{fake_tensorrt.__version__}-sm_90.cache"
    assert cache.read_bytes() == b"+++"


def test_a_refused_node_is_named(bundle: Bundle) -> None:
    fake_tensorrt.REFUSED_OPERATORS.add("Tanh")
    fake_tensorrt.REFUSED_OPERATORS.add("Softmax")
    with pytest.raises(MerkitError, match=r"Softmax\): no importer.*preflight"):
        build(bundle, steps=["fusion"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_build_that_is_stopped_leaves_nothing(bundle: Bundle, error: type[BaseException]) -> None:
    def stop() -> None:
        raise error

    before = sorted(bundle.root.rglob("*"))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "%" in line:
            stop()

    with pytest.raises(error):
        build(bundle, steps=["fusion"], say=say)
    assert sorted(bundle.root.rglob("*")) == before
    assert not list(default_cache().iterdir())
    assert any("%" in line for line in said)


def test_a_damaged_plan_in_the_cache_is_built_again(bundle: Bundle) -> None:
    build(bundle, steps=["fusion"])
    (kept,) = default_cache().glob("*.plan")
    kept.write_bytes(kept.read_bytes()[:-1])
    assert not build(bundle, steps=["fusion"])[0].from_cache


def test_without_tensorrt_or_gpu_one_message_says_so(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake_tensorrt, "DEVICES", [])
    with pytest.raises(BackendError, match=r"sees no GPU.*preflight runs anywhere"):
        build(bundle)
    monkeypatch.setattr(fake_tensorrt, "__version__", "10.16.1")
    with pytest.raises(BackendError, match=r"10\.16\.1 is installed; expected TensorRT 11"):
        build(bundle)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"merkit\[tensorrt\]"):
        build(bundle)


def test_plans_go_into_a_rendered_repository(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    (out / "fusion" / "1").mkdir(parents=True)
    build(bundle, steps=["fusion"], out=out)
    assert set(plans_of(out, "fusion")) == {"9.0"}
    with pytest.raises(InvalidInputError, match="no step 'audio_encoder'"):
        build(bundle, steps=["audio_encoder"], out=out)


def test_a_config_lists_the_plans_by_gpu(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="no TensorRT plan"):
        triton_fields(bundle.root, "audio_encoder")
    build(bundle)
    monkeypatch.setattr(fake_tensorrt, "DEVICES", ["8.6"])
    build(bundle, BuildOptions(hardware="ampere_plus"))
    fields = triton_fields(bundle.root, "audio_encoder")
    assert fields["cc_model_filenames"] == {"8.6": "model.sm_86.plan", "9.0": "model.sm_90.plan"}
    assert fields["default_model_filename"] == "model.sm_86.plan"
    assert fields["profiles"] == ["0", "1", "2", "3"]
    build(bundle, BuildOptions(strip_plan=True), steps=["fusion"])
    with pytest.raises(InvalidInputError, match="holds no weights"):
        triton_fields(bundle.root, "fusion")


def test_the_tensorrt_flavour_serves_plans_and_leaves_the_rest_to_onnx_runtime(
    bundle: Bundle,
) -> None:
    assert main(["render", str(bundle.root), "--flavour", "tensorrt"]) == 2  # no plans yet
    build(bundle, steps=None)
    assert main(["render", str(bundle.root), "--flavour", "tensorrt"]) == 0
    configs = {p.parent.name: p.read_text() for p in bundle.root.glob("*/config.pbtxt")}
    backends = {
        name: word
        for name, text in configs.items()
        for word in ("tensorrt", "onnxruntime")
        if f'backend: "{word}"' in text
    }
    assert backends.pop("preprocess") == backends.pop("voting") == "onnxruntime"
    assert len(backends) == 6
    assert set(backends.values()) == {"tensorrt"}
    assert 'key: "9.0"' in configs["audio_encoder"]
    assert 'value: "model.sm_90.plan"' in configs["audio_encoder"]
    assert configs["audio_encoder"].count("profile: ") == 4


def test_the_command_line(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(bundle.root)
    arguments = ["--step", "fusion", "--max-batch", "4", "--version-compatible"]
    assert main(["tensorrt", root, *arguments]) == 0
    assert "1 plans; now run: merkit-export render" in capsys.readouterr().out
    sidecar = json.loads((bundle.root / "fusion" / "1" / "model.sm_90.json").read_text())
    assert sidecar["flags"] == ["VERSION_COMPATIBLE"]
    assert sidecar["profiles"][0]["presence"] == [[1, 3], [2, 3], [4, 3]]
    assert read_sidecar(bundle.root / "fusion" / "1" / "model.sm_90.json").to_json() == sidecar
    for wrong in (["--step", "decode"], ["--level", "9"], ["--max-batch", "0"]):
        assert main(["tensorrt", root, *wrong]) == 2
    assert capsys.readouterr().err.count("merkit-export: ") == 3
