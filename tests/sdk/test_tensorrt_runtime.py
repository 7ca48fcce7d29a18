"""Plans run in process and answer as ONNX Runtime does; what cannot run falls back and says so."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fake_tensorrt
import numpy as np
import pytest
from entries import decoded_entry

from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle, open_bundle
from merkit.cuda import Cuda
from merkit.errors import BundleCorruptError, InferenceError, InvalidInputError
from merkit.plans import Host, Sidecar, admits, read_sidecar
from merkit_export.tensorrt.options import BuildOptions
from merkit_export.tensorrt.plans import build_plans
from merkit_export.tensorrt.profiles import profiles_of

ENTRY = decoded_entry((True, True, True))


@pytest.fixture
def planned(toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    return _planned(toy_bundle, tmp_path, monkeypatch, BuildOptions())


def _planned(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: BuildOptions
) -> Bundle:
    fake_tensorrt.install(monkeypatch)
    shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    of = profiles_of(bundle, None, 2, ())
    build_plans(bundle, of, options, cache=tmp_path / "cache", say=lambda _: None)
    return bundle


def test_plans_answer_as_onnx_runtime_does(toy_bundle: Bundle, planned: Bundle) -> None:
    expected = EmbeddedBackend(toy_bundle, ["cpu"], 1).infer(ENTRY)
    backend = EmbeddedBackend(planned, ["tensorrt"], 1)
    assert "TensorRT 11.4.0.106" in backend.identity["provider"]
    assert "fell_back" not in backend.identity
    for _ in range(2):
        outputs = backend.infer(ENTRY)
        for name, value in expected.items():
            np.testing.assert_allclose(outputs[name], value, atol=1e-6)
    assert fake_tensorrt.MEMORY
    backend.close()
    backend.close()
    assert not fake_tensorrt.MEMORY


@pytest.mark.parametrize(
    "options",
    [{"strip_plan": True}, {"version_compatible": True}, {"weight_streaming": True}],
    ids=str,
)
def test_plans_of_each_kind_run(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    bundle = _planned(toy_bundle, tmp_path, monkeypatch, BuildOptions(**options))  # type: ignore[arg-type]
    backend = EmbeddedBackend(bundle, ["tensorrt"], 1)
    assert "fell_back" not in backend.identity
    backend.infer(ENTRY)
    backend.close()


def test_a_batch_that_no_profile_takes_runs_on_onnx_runtime(planned: Bundle) -> None:
    backend = EmbeddedBackend(planned, ["tensorrt"], 1)
    three = {name: np.concatenate([value] * 3) for name, value in ENTRY.items()}
    single, tripled = backend.infer(ENTRY), backend.infer(three)
    np.testing.assert_allclose(tripled["scores"][2], single["scores"][0], atol=1e-6)
    backend.close()


def test_sixteen_threads_share_a_plan(planned: Bundle) -> None:
    backend = EmbeddedBackend(planned, ["tensorrt"], 2)
    expected = backend.infer(ENTRY)["scores"]
    wrong: list[object] = []

    def ask() -> None:
        for _ in range(3):
            if not np.allclose(backend.infer(ENTRY)["scores"], expected, atol=1e-6):
                wrong.append(1)

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    backend.close()


def _raiser(error: Exception) -> Callable[..., None]:
    def raising(*_: object) -> None:
        raise error

    return raising


CAUSES = ["gpu", "version", "none", "plan", "sidecar", "weights", "runtime", "folder"]


@pytest.mark.parametrize("cause", CAUSES)
def test_what_cannot_run_falls_back_and_says_why(
    planned: Bundle, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    path = planned.root / "fusion" / "1" / "model.sm_90.plan"
    said = {
        "gpu": "compute capability 9.0, and this GPU has 8.0",
        "version": "built by TensorRT 11.4.0.106, and this is 11.5.0.1 (the very same is needed)",
        "none": "the package 'tensorrt' is not installed",
        "plan": "is not the plan that its sidecar describes",
        "sidecar": "cannot be read",
        "weights": "it has no plan",
        "runtime": "needs a runtime that this driver does not start",
        "folder": "model.sm_90.plan cannot be read",
    }[cause]
    if cause == "gpu":
        monkeypatch.setattr(fake_tensorrt, "DEVICES", ["8.0"])
    elif cause == "version":
        monkeypatch.setattr(fake_tensorrt, "__version__", "11.5.0.1")
    elif cause == "none":
        monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    elif cause == "plan":
        path.write_bytes(path.read_bytes() + b" ")
    elif cause == "sidecar":
        path.with_suffix(".json").write_text("{}")
    elif cause == "runtime":
        null = TypeError("pybind11::init(): factory function returned nullptr")
        monkeypatch.setattr(fake_tensorrt.Runtime, "__init__", _raiser(null))
    else:
        path.unlink()
        if cause == "folder":
            path.mkdir()
    backend = EmbeddedBackend(planned, ["tensorrt"], 1)
    assert said in backend.identity["fell_back"]
    assert "fusion on cpu" in backend.identity["fell_back"] or cause in (
        "gpu", "version", "none", "runtime",
    )  # fmt: skip
    backend.infer(ENTRY)
    backend.close()


def test_tensorrt_comes_first_or_not_at_all(toy_bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="tensorrt"):
        EmbeddedBackend(toy_bundle, ["cpu", "tensorrt"], 1)


def test_the_driver_fails_in_our_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_tensorrt.install(monkeypatch)
    cuda = Cuda()
    assert (cuda.compute_capability, cuda.driver) == ("9.0", "13.0")
    with pytest.raises(InferenceError, match=r"cuMemAlloc_v2 failed with error 2 \(out of memory"):
        cuda.allocate(1 << 40)


def _sidecar(planned: Bundle) -> Sidecar:
    return read_sidecar(planned.root / "fusion" / "1" / "model.sm_90.json")


def test_a_sidecar_knows_where_its_plan_runs(planned: Bundle) -> None:
    sidecar = _sidecar(planned)
    host = Host(sidecar.tensorrt, "9.0", sidecar.platform)
    digest = sidecar.step_digest
    assert sidecar.refusal(host, digest) is None
    assert "other weights" in str(sidecar.refusal(host, "0" * 64))
    assert "linux-riscv" in str(sidecar.refusal(replace(host, platform="linux-riscv"), digest))
    wide = replace(sidecar, hardware="ampere_plus", flags=("VERSION_COMPATIBLE",))
    assert wide.refusal(Host("11.9.0.1", "12.0", sidecar.platform), digest) is None
    assert wide.refusal(Host("11.9.0.1", "7.5", sidecar.platform), digest) is not None
    assert wide.refusal(Host("11.3.0.1", "9.0", sidecar.platform), digest) is not None
    assert wide.refusal(Host("12.0.0.1", "9.0", sidecar.platform), digest) is not None


def test_a_profile_takes_shapes_within_it() -> None:
    profile = {"a": ((1, 3), (2, 3), (4, 3)), "read by nobody": ((1,), (1,), (1,))}
    assert admits(profile, {"a": (4, 3)})
    for shape in ((0, 3), (5, 3), (2, 2), (2,), (2, 3, 1)):
        assert not admits(profile, {"a": shape})


def test_a_sidecar_of_another_shape_is_refused(planned: Bundle) -> None:
    path = planned.root / "fusion" / "1" / "model.sm_90.json"
    for text in ("", "[]", '{"step": 1}', path.read_text().replace('"presence"', "7")):
        path.write_text(text)
        with pytest.raises(BundleCorruptError, match="cannot be read"):
            read_sidecar(path)
