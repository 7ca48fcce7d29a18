"""The portable runner: many requests in one run, each answered as if it were alone."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from entries import decoded_entry
from numpy.typing import NDArray
from toy import HEARS, LABELS

from merkit.backends.base import DTYPES, check_sizes, check_tensors, strings
from merkit.bundle import Bundle
from merkit.contract import canonical
from merkit.errors import InputError, InvalidInputError, MerkitError
from merkit.pipeline import GROUPS, standard_contract
from merkit.serving.runner import StepModel
from merkit.steps.tokenize import Tokenize

Arrays = dict[str, NDArray[Any]]


class Tensor:
    def __init__(self, name: str, value: NDArray[Any]) -> None:
        self.name, self.value = name, value

    def as_numpy(self) -> NDArray[Any]:
        return self.value


class Request:
    """What Triton hands over: tensors in shared memory that are read-only to the step."""

    def __init__(self, inputs: Arrays, wanted: list[str]) -> None:
        self.inputs, self.wanted = inputs, wanted
        for value in inputs.values():
            value.flags.writeable = False

    def requested_output_names(self) -> list[str]:
        return self.wanted


def fake_backend() -> SimpleNamespace:
    """The names of `triton_python_backend_utils` that the runner uses."""

    def error(message: str, code: int) -> SimpleNamespace:
        return SimpleNamespace(message=message, code=code)

    error.INVALID_ARG, error.INTERNAL = 3, 2  # type: ignore[attr-defined]
    return SimpleNamespace(
        Tensor=Tensor,
        TritonError=error,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(
            outputs={t.name: t.value for t in output_tensors}, error=error
        ),
        get_input_tensor_by_name=lambda request, name: Tensor(name, request.inputs[name]),
    )


@pytest.fixture(autouse=True)
def _backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", fake_backend())


def model(bundle: Bundle, step: str, threads: int = 1) -> StepModel:
    """The step as Triton starts it, with a count of its graph's runs."""
    texts = {
        "contract": canonical(bundle.contract.to_json()).decode(),
        "step": step,
        "threads": str(threads),
    }
    parameters = {key: {"string_value": value} for key, value in texts.items()}
    made = StepModel()
    made.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(bundle.root / step),
            "model_version": "1",
        }
    )
    return made


@pytest.fixture
def audio(toy_bundle: Bundle) -> Iterator[tuple[StepModel, list[int]]]:
    made, runs = model(toy_bundle, "audio_encoder"), []
    graph = made.compute.__self__  # type: ignore[attr-defined]
    session = graph._session

    def run(names: list[str], feed: Arrays) -> list[NDArray[Any]]:
        runs.append(len(feed["audio_length"]))
        return session.run(names, feed)

    graph._session = SimpleNamespace(run=run)
    yield made, runs


def sound(*lengths: int, width: int = 1600) -> Arrays:
    rng = np.random.default_rng(lengths)
    values = rng.normal(size=(len(lengths), max(width, *lengths))).astype(np.float32)
    return {"audio_values": values, "audio_length": np.array(lengths, np.int64)[:, None]}


def test_one_run_answers_all_as_if_alone(audio: tuple[StepModel, list[int]]) -> None:
    step, runs = audio
    given = [sound(1600), sound(0), sound(9000, 2500), sound(4000)]
    alone = [
        step.execute([Request(one, ["audio_features"])])[0].outputs["audio_features"]
        for one in given
    ]
    runs.clear()
    together = step.execute([Request(one, ["audio_features"]) for one in given])
    assert runs == [5]
    for expected, found in zip(alone, together, strict=True):
        assert found.error is None
        np.testing.assert_allclose(found.outputs["audio_features"], expected, atol=1e-6)
        assert found.outputs["audio_features"].flags.c_contiguous


def test_a_bad_request_fails_alone(audio: tuple[StepModel, list[int]]) -> None:
    step, _ = audio
    good = sound(2000)
    expected = step.execute([Request(good, ["audio_features"])])[0].outputs["audio_features"]
    flat = {**sound(1600), "audio_values": np.zeros(1600, np.float32)}
    typed = {**sound(1600), "audio_length": np.zeros((1, 1), np.float32)}
    uneven = {**sound(1600, 1700), "audio_length": np.array([[1600]], np.int64)}
    missing = {"audio_length": np.array([[1]], np.int64)}
    for bad in (flat, typed, uneven, missing):
        requests = [Request(one, ["audio_features"]) for one in (good, bad, good)]
        first, failed, last = step.execute(requests)
        assert failed.outputs == {}
        error = MerkitError.from_wire(failed.error.message)
        assert "audio_encoder" in str(error)
        for fine in (first, last):
            np.testing.assert_array_equal(fine.outputs["audio_features"], expected)


def test_requests_may_want_different_outputs(toy_bundle: Bundle) -> None:
    step = model(toy_bundle, "voting")
    scores = np.random.default_rng(0).random((3, 1, 4, 6)).astype(np.float32)
    wanted = [["label"], ["scores", "contract_id"], []]
    answers = step.execute(
        [Request({"branch_scores": s}, w) for s, w in zip(scores, wanted, strict=True)]
    )
    assert [list(a.outputs) for a in answers] == [["label"], ["scores", "contract_id"], []]
    whole = step.execute([Request({"branch_scores": scores[1]}, ["label", "scores"])])[0]
    np.testing.assert_array_equal(answers[1].outputs["scores"], whole.outputs["scores"])
    assert answers[0].outputs["label"].shape == (1,)


def test_steps_in_python_answer_one_by_one(toy_bundle: Bundle) -> None:
    step = model(toy_bundle, "tokenize")
    texts = [np.array([[text]], object) for text in (b"one", b"\xff\xfe", b"zwei")]
    first, bad, last = step.execute([Request({"text": t}, ["text_length"]) for t in texts])
    assert first.outputs["text_length"].tolist() == [[3]]
    assert last.outputs["text_length"].tolist() == [[4]]
    assert isinstance(MerkitError.from_wire(bad.error.message), InvalidInputError)
    assert bad.error.code == 3


def test_clips_are_decoded_side_by_side(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that wait for one another end only if both are under way; the third fails alone."""
    step, meeting = model(toy_bundle, "decode", threads=2), threading.Barrier(2, timeout=20)
    alone = step.compute

    def compute(tensors: Arrays, wanted: list[str]) -> Any:
        if tensors["clip"].size == 0:
            meeting.wait()
        return alone(tensors, wanted)

    monkeypatch.setattr(step, "compute", compute)
    clips = [np.zeros((1, 0), np.uint8), np.full((1, 9), 7, np.uint8), np.zeros((1, 0), np.uint8)]
    first, bad, last = step.execute([Request({"clip": c}, ["waveform_length"]) for c in clips])
    assert isinstance(MerkitError.from_wire(bad.error.message), InputError)
    for fine in (first, last):
        assert fine.outputs["waveform_length"].tolist() == [[0]]
    assert model(toy_bundle, "decode").pool is None, "with one thread there is nothing to share"
    assert model(toy_bundle, "tokenize", threads=2).pool is None


def test_steps_whose_inputs_have_no_common_shape_are_not_joined(toy_bundle: Bundle) -> None:
    assert model(toy_bundle, "preprocess").batches is None
    for name in ("text_encoder", "joint_encoder", "face_encoder", "fusion", "voting"):
        assert model(toy_bundle, name).batches is not None


def test_more_than_a_clip_may_hold_and_what_is_no_number_is_refused_before_it_runs(
    toy_bundle: Bundle,
) -> None:
    p = toy_bundle.contract.preprocessing
    most = round(p.max_audio_seconds * p.sample_rate)
    padded = most + round(p.min_audio_seconds * p.sample_rate)
    step = model(toy_bundle, "audio_encoder")
    fine, long = (sound(1600, width=width) for width in (padded, padded + 1))
    answers = step.execute([Request(one, ["audio_features"]) for one in (fine, long)])
    assert answers[0].error is None
    error = MerkitError.from_wire(answers[1].error.message)
    assert isinstance(error, InvalidInputError)
    assert f"at most {padded}" in str(error)

    step, entry = model(toy_bundle, "preprocess"), decoded_entry((True, True, True))
    given = {name: entry[name] for name in step.step.inputs if name in entry}
    given["text_length"] = np.array([[3]], np.int64)
    nan, beyond = np.full_like(given["waveform"], np.inf), np.array([[most]], np.int64)
    for bad in ({"waveform": nan}, {"waveform_length": beyond}, {"face_count": beyond}):
        first, failed = step.execute([Request(g, ["presence"]) for g in (given, given | bad)])
        assert first.error is None
        assert isinstance(MerkitError.from_wire(failed.error.message), InvalidInputError)


@pytest.mark.parametrize("kind", ["text", "joint"])
def test_thousands_of_tokens_are_refused_before_they_hold_an_encoder(
    toy_bundle: Bundle, kind: str
) -> None:
    p, step = toy_bundle.contract.preprocessing, model(toy_bundle, f"{kind}_encoder")
    words = Tokenize(step.contract, toy_bundle.resources("tokenize"))
    longest = words({"text": strings("word " * 10_000)})
    check_sizes(step.contract, longest)
    given = {name: longest[name] for name in (f"{kind}_ids", f"{kind}_length")}
    if kind == "joint":
        mels = step.contract.tensors["log_mel"].shape[1:]
        given |= {"log_mel": np.zeros((1, *mels), np.float32), "presence": np.ones((1, 3), bool)}
    most = p.max_text_tokens + (0 if kind == "text" else 2 * len(p.prompt.encode()))
    for size in (most + 1, 5_000):
        given[f"{kind}_ids"] = np.ones((1, size), np.int64)
        (answer,) = step.execute([Request(given, [f"{kind}_features"])])
        error = MerkitError.from_wire(answer.error.message)
        assert isinstance(error, InvalidInputError) and f"at most {most} " in str(error)


@pytest.mark.parametrize(
    ("name", "most"), [("speech", 320_000), ("token_logs", 2_000), ("word_ids", 2_000)]
)
def test_the_chain_is_given_no_more_than_a_sound_can_hold(name: str, most: int) -> None:
    contract = standard_contract(LABELS, dict.fromkeys(GROUPS, 1), chain=HEARS)
    dtype = DTYPES[contract.tensors[name].dtype]
    for size in (most, most + 1, most * 10):
        given = [size if isinstance(n, str) else n for n in contract.tensors[name].shape[1:]]
        tensors = {name: np.empty((1, *given), dtype)}
        if size == most:
            check_sizes(contract, tensors)
        else:
            with pytest.raises(InvalidInputError, match=f"{name}.* at most {most} "):
                check_sizes(contract, tensors)


def test_truth_values_of_other_bytes_than_0_and_1_are_refused(toy_bundle: Bundle) -> None:
    step = model(toy_bundle, "fusion")
    given: Arrays = {name: np.ones((1, 8), np.float32) for name in GROUPS.values()}
    given["presence"] = np.frombuffer(b"\xff\x00\x01", bool).reshape(1, 3).copy()
    (answer,) = step.execute([Request(given, ["branch_scores"])])
    error = MerkitError.from_wire(answer.error.message)
    assert isinstance(error, InvalidInputError) and "'presence' with bytes other" in str(error)
    with pytest.raises(InvalidInputError, match="bytes other than 0 and 1"):
        check_tensors(step.contract, {"presence": given["presence"]})
