"""The chain's graphs do not run over nothing, and nobody behind them can tell."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import REPOSITORY
from entries import decoded_entry
from numpy.typing import NDArray
from toy import HEARS, write_toy_bundle
from voices import voice

from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.sessions import open_sessions
from merkit.bundle import Bundle, open_bundle
from merkit.contract import canonical
from merkit.presence import MEASURES, nothing
from merkit.serving.runner import StepModel

Arrays = dict[str, NDArray[Any]]
CHAIN = tuple(MEASURES)
PLAIN = replace(HEARS, hearing=replace(HEARS.hearing, joint_hears="original"))


def given(samples: int, clips: int = 2) -> Arrays:
    """What reaches the chain's graphs where there is nothing to hear; of clean sound that is not
    to be separated there are `samples` beside it."""
    none = np.zeros((clips, 1), np.int64)
    return {
        "speech": np.full((clips, samples), 0.1, np.float32),
        "speech_length": none,
        "mixture_length": none,
        "sources": np.zeros((clips, 2, samples), np.float32),
        "word_ids": none,
        "word_count": none,
    }


@pytest.mark.parametrize("samples", [0, 900])
def test_what_stands_for_nothing_is_what_trained_graphs_make_of_it(samples: int) -> None:
    bundle = open_bundle(REPOSITORY / "triton_repo" / "models")
    sessions = open_sessions(bundle, ["cpu"], 1, only=CHAIN)
    for name in CHAIN:
        step = bundle.contract.step(name)
        tensors = {n: given(samples)[n] for n in step.inputs}
        made, computed = nothing(bundle.contract, step, tensors), sessions[name](tensors)
        assert made is not None and made.keys() == computed.keys()
        for output, value in computed.items():
            assert (made[output].shape, made[output].dtype) == (value.shape, value.dtype), output
            if output != "token_logs":  # of which no token is counted
                np.testing.assert_array_equal(made[output], value, err_msg=output)


def test_one_clip_with_something_in_it_is_enough() -> None:
    contract = open_bundle(REPOSITORY / "triton_repo" / "models").contract
    for name, lengths in MEASURES.items():
        for length in lengths:
            tensors = given(900) | {length: np.array([[0], [1]])}
            assert nothing(contract, contract.step(name), tensors) is None
    assert nothing(contract, contract.step("text_encoder"), {}) is None, "no part of the chain"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("plain") / "bundle", chain=PLAIN)


def entry_of(text: str) -> Arrays:
    sound = voice()
    entry = decoded_entry((False, False, False))
    entry |= {"waveform": sound[None], "waveform_length": np.array([[len(sound)]])}
    return entry | {"text": strings(text)}


def test_given_words_cost_no_graph_of_the_chain(bundle: Bundle) -> None:
    steps = set(CHAIN)
    with closing(EmbeddedBackend(bundle, threads=1)) as backend:
        spent: dict[str, float] = {}
        found = backend.infer(entry_of("given words"), spent)
        assert "listen" in spent and not steps & spent.keys()
        assert found["words"].tolist() == [["given words"]]
        assert json.loads(found["hearing"][0, 0])["origin"] == "caller"
        spent.clear()
        backend.infer(entry_of(""), spent)
        assert steps <= spent.keys()


def test_clean_sound_costs_no_separation(tmp_path: Path) -> None:
    """And is told to have been listened to as it was."""
    spares = replace(PLAIN, hearing=replace(PLAIN.hearing, clean_from_db=-10.0))
    bundle = write_toy_bundle(tmp_path / "bundle", chain=spares)
    with closing(EmbeddedBackend(bundle, threads=1)) as backend:
        spent: dict[str, float] = {}
        found = backend.infer(entry_of(""), spent)
        assert "separate" not in spent and {"recognize", "punctuate"} <= spent.keys()
        heard = json.loads(found["hearing"][0, 0])
        assert (heard["origin"], heard["source"]) == ("recognized", "original")
        assert heard["similarities"] is None


def test_the_portable_runner_leaves_them_out_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = SimpleNamespace(
        get_input_tensor_by_name=lambda request, name: SimpleNamespace(
            as_numpy=lambda: request.tensors[name]
        ),
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(  # noqa: ARG005
            outputs=dict(output_tensors)
        ),
        Tensor=lambda name, value: (name, value),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    model, runs = served(bundle, "recognize"), []
    graph = model.compute.__self__  # type: ignore[attr-defined]
    session = graph._session
    graph._session = SimpleNamespace(run=lambda *a: runs.append(1) or session.run(*a))  # type: ignore[func-returns-value]
    idle = answer(model, given(0))
    assert not runs
    assert idle["token_logs"].shape == (2, 3, 1, len_of(bundle, "token_logs"))
    assert not idle["token_count"].any() and idle["token_count"].dtype == np.int64
    busy = given(8000) | {"speech_length": np.array([[0], [8000]])}
    assert answer(model, busy)["token_count"][:, 0].tolist() == [0, 2] and runs == [1]


def answer(model: StepModel, tensors: Arrays) -> Arrays:
    request = SimpleNamespace(
        tensors=tensors,
        requested_output_names=lambda: ["token_logs", "token_count"],
        is_cancelled=lambda: False,
    )
    outputs: Arrays = model.execute([request])[0].outputs
    return outputs


def len_of(bundle: Bundle, tensor: str) -> int:
    return int(bundle.contract.tensors[tensor].shape[-1])


def served(bundle: Bundle, step: str) -> StepModel:
    """The step as Triton starts it."""
    texts = {"contract": canonical(bundle.contract.to_json()).decode(), "step": step}
    parameters = {k: {"string_value": v} for k, v in (texts | {"threads": "1"}).items()}
    model = StepModel()
    model.initialize(
        {
            "model_config": json.dumps({"parameters": parameters}),
            "model_repository": str(bundle.root / step),
            "model_version": "1",
        }
    )
    return model
