"""The embedded executor: it runs what is wanted, skips what is absent, and fails in our words."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from entries import MIXES, decoded_entry, mix_name
from odd_media import sound_file, tone
from toy import write_toy_bundle

from merkit.backends import sessions
from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle, write_manifest
from merkit.errors import (
    BundleCorruptError,
    ContractMismatchError,
    InferenceError,
    InvalidInputError,
    MissingExtraError,
)
from merkit.pipeline import GROUPS, OUTCOME
from merkit.voting import ranked_mode


@pytest.fixture(scope="module")
def backend(toy_bundle: Bundle) -> Iterator[EmbeddedBackend]:
    opened = EmbeddedBackend(toy_bundle, ["cpu"], 2)
    yield opened
    opened.close()


@pytest.mark.parametrize("mix", MIXES, ids=mix_name)
def test_every_mix_of_modalities_gives_a_sound_outcome(
    backend: EmbeddedBackend, mix: tuple[bool, ...]
) -> None:
    timings: dict[str, float] = {}
    outputs = backend.infer(decoded_entry(mix), timings)
    assert set(outputs) == set(OUTCOME)
    assert outputs["presence"].tolist() == [list(mix)]
    label, scores = ranked_mode(outputs["branch_scores"])
    assert outputs["label"] == label
    np.testing.assert_allclose(outputs["scores"], scores, atol=1e-6)
    np.testing.assert_allclose(outputs["scores"].sum(), 1, atol=1e-5)
    video, audio, text = mix
    ran = {name for name in timings if name.endswith(("encoder", "encoder_large"))}
    assert ("face_encoder" in ran) == ("face_encoder_large" in ran) == video
    assert ("audio_encoder" in ran) == audio
    assert ("text_encoder" in ran) == text
    assert ("joint_encoder" in ran) == (audio or text)
    assert all(ms > 0 for ms in timings.values())


def test_a_skipped_encoder_changes_nothing(backend: EmbeddedBackend) -> None:
    """In a batch of which one clip has everything, all encoders run for the other one too."""
    alone = decoded_entry((False, False, True))
    both = {
        name: np.concatenate(
            [
                value,
                alone_value if value.shape[1:] == alone_value.shape[1:] else np.zeros_like(value),
            ]
        )
        for (name, value), alone_value in zip(decoded_entry().items(), alone.values(), strict=True)
    }
    one, two = backend.infer(alone), backend.infer(both)
    np.testing.assert_allclose(two["branch_scores"][1], one["branch_scores"][0], atol=1e-6)
    assert two["label"][1] == one["label"][0]


def test_nothing_at_all_is_said_to_be_nothing(backend: EmbeddedBackend) -> None:
    outputs = backend.infer(decoded_entry((False, False, False)))
    assert outputs["label"].tolist() == [-1]
    assert not outputs["presence"].any()
    assert np.isfinite(outputs["scores"]).all()


def test_features_in_run_fusion_and_voting_only(backend: EmbeddedBackend) -> None:
    timings: dict[str, float] = {}
    features = {name: np.ones((3, 8), np.float32) for name in GROUPS.values()}
    outputs = backend.infer({**features, "presence": np.ones((3, 3), np.bool_)}, timings)
    assert set(timings) == {"fusion", "voting"}
    assert outputs["scores"].shape == (3, 6)


def test_many_threads_get_the_answers_that_one_gets(backend: EmbeddedBackend) -> None:
    entries = [decoded_entry(mix, seed=k) for k, mix in enumerate(MIXES * 6)]
    expected = [backend.infer(entry)["scores"] for entry in entries]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda entry: backend.infer(entry)["scores"], entries))
    np.testing.assert_array_equal(found, expected)


def test_independent_steps_run_side_by_side(toy_bundle: Bundle) -> None:
    """Two steps that each wait for the other to have started end only if both are running."""
    backend = EmbeddedBackend(toy_bundle, threads=2)
    meeting = threading.Barrier(2, timeout=10)
    plain = backend.run_step

    def run_step(step: Any, given: Any) -> dict[str, Any]:
        if step.name in ("face_encoder", "face_encoder_large"):
            meeting.wait()
        return plain(step, given)

    backend.run_step = run_step  # type: ignore[method-assign]
    backend.infer(decoded_entry((True, False, False)))
    backend.close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("waveform", np.zeros((1, 9), np.float64), "'waveform' of dtype float64; expected float32"),
        ("waveform", np.full((1, 9), np.nan, np.float32), "NaN"),
        ("waveform", np.zeros(9, np.float32), "2 dimensions"),
        ("waveform", [[0.0]], "of type list; expected a numpy array"),
        ("waveform_length", np.array([[25_000]]), "with the value 25000; expected 0 to 24000"),
        ("face_count", np.array([[-1]]), "'face_count'"),
        ("face_crops", np.zeros((1, 8, 32, 64, 3), np.uint8), "'face_crops' of shape"),
        ("face_crops", np.zeros((2, 8, 64, 64, 3), np.uint8), "batch = "),
        ("text", np.array([["words"]]), "object array of str"),
        ("text", np.array([[b"words"]], object), "object array of str"),
        ("sound", np.zeros((1, 1)), "'sound' which the pipeline does not know"),
    ],
)
def test_a_wrong_tensor_is_named(
    backend: EmbeddedBackend, name: str, value: Any, said: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        backend.infer({**decoded_entry(), name: value})
    assert said in str(caught.value)


def test_a_missing_tensor_is_named(backend: EmbeddedBackend) -> None:
    with pytest.raises(InvalidInputError, match="'text' is neither given nor made"):
        backend.infer({"clip": np.zeros((1, 9), np.uint8)})


def test_what_a_runtime_throws_becomes_ours(backend: EmbeddedBackend) -> None:
    step = backend.contract.step("fusion")
    given = {name: np.ones((1, 8), np.float32) for name in step.inputs}
    given["presence"] = np.ones((1, 3), np.bool_)
    given["audio_features"] = np.ones((1, 9), np.float32)
    with pytest.raises(InferenceError, match="the step 'fusion' failed on inputs of shape"):
        backend.run_step(step, given)


def test_a_failing_step_ends_the_request_and_no_other(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = EmbeddedBackend(toy_bundle, threads=1)
    good = backend._sessions["face_encoder"]

    def bad(_tensors: object) -> None:
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setitem(backend._sessions, "face_encoder", bad)
    with pytest.raises(InferenceError, match=r"'face_encoder' failed .*\(boom\)"):
        backend.infer(decoded_entry())
    monkeypatch.setitem(backend._sessions, "face_encoder", good)
    assert backend.infer(decoded_entry())["label"].shape == (1,)
    backend.close()


def test_closing_twice_is_fine_and_use_after_it_is_an_error(toy_bundle: Bundle) -> None:
    before = threading.active_count()
    backend = EmbeddedBackend(toy_bundle)
    backend.infer(decoded_entry())
    backend.close()
    backend.close()
    assert threading.active_count() == before
    with pytest.raises(InferenceError, match="closed"):
        backend.infer(decoded_entry())


def test_closing_between_two_steps_of_a_request_is_said(toy_bundle: Bundle) -> None:
    backend = EmbeddedBackend(toy_bundle, threads=1)

    class Emptied(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            backend.close()
            return backend._sessions[name]

    backend._sessions = Emptied(backend._sessions)
    features = {name: np.ones((1, 8), np.float32) for name in GROUPS.values()}
    with pytest.raises(InferenceError, match="the client is closed"):
        backend.infer({**features, "presence": np.ones((1, 3), np.bool_)})


def _with_steps(bundle: Bundle, *steps: Any) -> Bundle:
    return replace(bundle, contract=replace(bundle.contract, steps=steps))


@pytest.mark.parametrize("missing", ["voting", "fusion", "preprocess"])
def test_steps_that_do_not_lead_to_the_outcome_are_refused(
    toy_bundle: Bundle, missing: str
) -> None:
    left = [step for step in toy_bundle.contract.steps if step.name != missing]
    with pytest.raises(BundleCorruptError, match="incomplete: the tensor"):
        EmbeddedBackend(_with_steps(toy_bundle, *left))


def test_a_bundle_without_a_graph_opens_without_a_provider(toy_bundle: Bundle) -> None:
    steps = [replace(step, kind="python") for step in toy_bundle.contract.steps]
    backend = EmbeddedBackend(_with_steps(toy_bundle, *steps))
    assert "provider" not in backend.identity
    with pytest.raises(InferenceError, match="preprocess"):
        backend.infer(decoded_entry((True, False, False)))
    backend.close()


def test_detail_that_no_step_makes_is_left_out(toy_bundle: Bundle) -> None:
    """Boxes and the like are told when there are any; the outcome does not depend on them."""
    steps = {step.name: step for step in toy_bundle.contract.steps}
    faces = steps["faces"]
    steps["faces"] = replace(faces, outputs=("face_crops", "face_count"))
    backend = EmbeddedBackend(toy_bundle)
    backend.contract = replace(toy_bundle.contract, steps=tuple(steps.values()))
    crops, count = np.zeros((1, 0, 64, 64, 3), np.uint8), np.zeros((1, 1), np.int64)
    backend._python_steps["faces"] = lambda _: {"face_crops": crops, "face_count": count}
    clip = np.frombuffer(sound_file(tone(1.0), "wav", "pcm_s16le", 16_000, "mono"), np.uint8)
    outputs = backend.infer({"clip": clip[None], "text": strings("")})
    assert set(outputs) == {*OUTCOME, "media_info"}
    backend.close()


def test_a_model_of_another_contract_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    stranger = write_toy_bundle(tmp_path / "stranger", labels=("up", "down"))
    mixed = tmp_path / "mixed"
    shutil.copytree(toy_bundle.root, mixed)
    shutil.copy(stranger.model_path("voting"), mixed / "voting" / "1" / "model.onnx")
    bundle = write_manifest(mixed, toy_bundle.contract, {}, {})
    with pytest.raises(ContractMismatchError) as caught:
        EmbeddedBackend(bundle)
    assert stranger.contract.contract_id in caught.value.found
    assert toy_bundle.contract.contract_id in caught.value.expected


def test_a_model_that_is_none_or_has_other_tensors_is_refused(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    root = tmp_path / "broken"
    shutil.copytree(toy_bundle.root, root)
    path = root / "voting" / "1" / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(BundleCorruptError, match="cannot be loaded"):
        EmbeddedBackend(write_manifest(root, toy_bundle.contract, {}, {}))
    shutil.copy(toy_bundle.model_path("text_encoder"), path)
    with pytest.raises(BundleCorruptError, match="has the tensors"):
        EmbeddedBackend(write_manifest(root, toy_bundle.contract, {}, {}))


def test_a_model_without_the_contract_is_refused(toy_bundle: Bundle, tmp_path: Path) -> None:
    root = tmp_path / "anonymous"
    shutil.copytree(toy_bundle.root, root)
    path = root / "fusion" / "1" / "model.onnx"
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    with pytest.raises(ContractMismatchError, match=r"\(none\)"):
        EmbeddedBackend(write_manifest(root, toy_bundle.contract, {}, {}))


def test_an_unknown_provider_and_no_thread_are_refused(toy_bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="CPUExecutionProvider"):
        EmbeddedBackend(toy_bundle, ["abacus"])
    with pytest.raises(InvalidInputError, match="at least 1"):
        EmbeddedBackend(toy_bundle, threads=0)


def test_onnxruntime_missing_or_installed_twice_is_said(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_installed", lambda _name: True)
    with pytest.warns(RuntimeWarning, match=r"onnxruntime and onnxruntime-gpu .* side by side"):
        EmbeddedBackend(toy_bundle).close()
    monkeypatch.setattr(sessions, "_installed", lambda name: name == "onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EmbeddedBackend(toy_bundle).close()
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"merkit\[local\]"):
        EmbeddedBackend(toy_bundle)


def test_text_reaches_the_tokeniser(backend: EmbeddedBackend) -> None:
    entry = decoded_entry((False, False, True))
    one = backend.infer({**entry, "text": strings("one thing")})["branch_scores"]
    other = backend.infer({**entry, "text": strings("另一件事")})["branch_scores"]
    assert not np.array_equal(one, other)
