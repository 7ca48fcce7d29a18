"""Lazy voting on a real server: the label of asking everybody, and encoders that did not run."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from entries import MIXES, decoded_entry
from google.protobuf import text_format
from odd_media import movie, quadrants, tone
from tritonclient.grpc.model_config_pb2 import ModelConfig

from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.grpc_errors import translate
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle, open_bundle
from merkit.contract import MODALITIES
from merkit.errors import (
    ClipUnreadableError,
    DeadlineExceededError,
    InvalidInputError,
    MerkitError,
    NoEvidenceError,
)
from merkit.opening import connect, load
from merkit.pipeline import DETAIL, GROUPS, OUTCOME
from merkit.serving import Server
from merkit.serving.config import plain_names
from merkit.serving.lazy_model import CLIPS, LazyModel, RefusedError, lazy_config, raised
from merkit.serving.tritonserver import Installation

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "docs" / "media" / "sample.mp4"
SENT = 42


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(ROOT / "triton_repo" / "models")


@pytest.fixture(scope="module")
def server(bundle: Bundle, triton: Installation) -> Iterator[Server]:
    with Server(bundle, installation=triton) as running:
        yield running


def needed(bundle: Bundle, outcome: dict[str, np.ndarray]) -> set[str]:
    """The encoders that the voters of an outcome read, but for those of absent modalities."""
    contract = bundle.contract
    voted = (outcome["branch_scores"][0] != 0).any(axis=1)
    there = {m for m, here in zip(MODALITIES, outcome["presence"][0], strict=True) if here}
    voters = [v for v, cast in zip(contract.voters, voted, strict=True) if cast]
    reads = {GROUPS[g] for voter in voters for g in voter.groups}
    return {
        step.name
        for step in contract.steps
        if step.needs and step.outputs[0] in reads and there & set(step.needs)
    }


def test_the_server_ran_no_encoder_that_no_vote_needed(bundle: Bundle, server: Server) -> None:
    entries = [decoded_entry(MIXES[i % len(MIXES)], seed=i) for i in range(SENT)]
    near, far = EmbeddedBackend(bundle, threads=1), TritonBackend(server.grpc, 120, lazy=True)
    try:
        eager = [near.infer(entry) for entry in entries]
        before = far.batch_statistics()
        with ThreadPoolExecutor(6) as pool:
            lazy = list(pool.map(far.infer, entries))
        time.sleep(0.5)  # the server answers before it has counted the last step
        after = far.batch_statistics()
    finally:
        near.close()
        far.close()
    assert [o["label"].tolist() for o in lazy] == [o["label"].tolist() for o in eager]
    expected = Counter(name for outcome in lazy for name in needed(bundle, outcome))
    everything = Counter(name for outcome in eager for name in needed(bundle, outcome))
    ran = {name: after[name][0] - before[name][0] for name in everything}
    assert ran == {name: expected[name] for name in everything}
    assert expected.total() < 0.9 * everything.total(), (expected, everything)


def test_predictions_say_who_was_not_asked(bundle: Bundle, server: Server) -> None:
    with (
        load(bundle.root, lazy=True) as near,
        connect(server.grpc, lazy=True, deadline=60) as far,
        connect(server.grpc, lazy=True, decode="client", deadline=60) as edge,
    ):
        here, there, crops = (c.predict(SAMPLE, "well, this is it") for c in (near, far, edge))
        assert here.not_asked and here.not_asked == there.not_asked == crops.not_asked
        assert here.label == there.label == crops.label
        assert there.scores == pytest.approx(here.scores, abs=1e-5)
        assert there.faces and len(there.faces) == len(here.faces)
        assert far.predict(text="so glad!").modalities == ("text",)


def test_errors_reach_the_caller_as_they_are(server: Server) -> None:
    with connect(server.grpc, lazy=True, deadline=60) as far:
        with pytest.raises(ClipUnreadableError):
            far.predict(b"no movie at all")
        with pytest.raises(NoEvidenceError):
            far.predict(movie([quadrants()] * 4, sound=0 * tone(1)))
        answers = list(far.predict_many([b"no movie"] * 40, workers=8))
        assert {type(answer) for answer in answers} == {ClipUnreadableError}


def test_what_a_model_says_instead_of_an_answer(bundle: Bundle) -> None:
    """A full queue stays Triton's own refusal, which clients understand and send again."""
    step = bundle.contract.step("fusion")
    typed = ClipUnreadableError("no movie")
    assert type(raised(step, f"Failed: {typed.to_wire()}")) is ClipUnreadableError
    for words in ("Exceeds maximum queue size", "Request timeout expired"):
        assert isinstance(raised(step, f"[request id: 1] {words}"), RefusedError)
    assert "'fusion' did not answer" in str(raised(step, "out of memory"))


def test_other_clients_may_leave_out_what_is_not_there(bundle: Bundle, server: Server) -> None:
    """The model's inputs are optional: words alone, bytes, or any of the decoded subsets."""
    client = pytest.importorskip("tritonclient.grpc").InferenceServerClient(server.grpc[7:])
    make = pytest.importorskip("tritonclient.grpc").InferInput
    text = strings("so glad!")
    words = make("text", [1, 1], "BYTES").set_data_from_numpy(text)
    answer = client.infer("merkit_lazy", [words])
    near = EmbeddedBackend(bundle, threads=1, lazy=True)
    try:
        expected = near.infer({"text": text})
    finally:
        near.close()
    assert answer.as_numpy("label").reshape(-1).tolist() == expected["label"].tolist()
    names = {tensor.name for tensor in answer.get_response().outputs}
    assert set(OUTCOME) <= names and not names & set(DETAIL)
    times = make("face_times", [1, 1], "FP32").set_data_from_numpy(np.zeros((1, 1), "f4"))
    with pytest.raises(Exception, match="face_times"):
        client.infer("merkit_lazy", [times])
    times = make("waveform_length", [1, 1], "INT64").set_data_from_numpy(np.ones((1, 1), "i8"))
    with pytest.raises(Exception, match=InvalidInputError.__name__):
        client.infer("merkit_lazy", [times])
    client.close()


class Sender:
    """Triton's way to answer a request later; notes what it was sent."""

    def __init__(self, cancelled: bool = False) -> None:
        self.cancelled, self.sent = cancelled, []

    def is_cancelled(self) -> bool:
        return self.cancelled

    def send(self, response: SimpleNamespace, flags: int) -> None:
        assert flags == 1
        self.sent.append(response)


@pytest.fixture
def model(toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[LazyModel]:
    """The model with room for two clips beside those under way, without a server around it."""

    def error(message: str, code: int) -> SimpleNamespace:
        return SimpleNamespace(message=message, code=code)

    error.INVALID_ARG, error.INTERNAL, error.UNAVAILABLE = 3, 2, 5  # type: ignore[attr-defined]
    stub = SimpleNamespace(
        TritonError=error,
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        InferenceResponse=lambda output_tensors, error=None: SimpleNamespace(
            tensors=output_tensors, error=error
        ),
    )
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    text = lazy_config(toy_bundle, plain_names(toy_bundle.contract), waiting=2)
    parameters = text_format.Parse(text, ModelConfig()).parameters
    stated = {key: {"string_value": value.string_value} for key, value in parameters.items()}
    made = LazyModel()
    made.initialize({"model_config": json.dumps({"parameters": stated})})
    yield made
    made.finalize()


def request(sender: Sender) -> SimpleNamespace:
    return SimpleNamespace(get_response_sender=lambda: sender, requested_output_names=list)


def test_no_more_clips_are_taken_on_than_there_is_room_for(model: LazyModel) -> None:
    free, begun = threading.Event(), threading.Semaphore(0)

    def infer(_: object) -> dict[str, np.ndarray]:
        begun.release()
        assert free.wait(30)
        raise ClipUnreadableError("no movie")

    model.infer, model._inputs = infer, lambda *_: {}  # type: ignore[assignment, method-assign]
    senders = [Sender() for _ in range(CLIPS + 5)]
    model.execute([request(sender) for sender in senders])
    for _ in range(CLIPS):
        assert begun.acquire(timeout=30)
    refused = senders[CLIPS + 2 :]
    assert not any(sender.sent for sender in senders[: CLIPS + 2])
    for sender in refused:
        (answer,) = sender.sent
        assert (answer.error.code, answer.error.message) == (
            5, f"Exceeds maximum queue size: merkit_lazy has {CLIPS + 2}",
        )  # fmt: skip
    assert "too much to do" in translate(UnavailableError(answer.error.message), "url", 1).found
    free.set()
    model.finalize()
    for sender in senders[: CLIPS + 2]:
        (answer,) = sender.sent
        assert type(MerkitError.from_wire(answer.error.message)) is ClipUnreadableError


def test_room_is_given_back_and_who_has_gone_is_not_worked_for(model: LazyModel) -> None:
    ran = []
    model.infer = lambda tensors: ran.append(tensors) or {}  # type: ignore[assignment, method-assign]
    model._inputs = lambda *_: {}  # type: ignore[assignment, method-assign]
    for _ in range(3):
        senders = [Sender(cancelled=i % 2 == 0) for i in range(CLIPS)]
        model.execute([request(sender) for sender in senders])
        while not all(sender.sent for sender in senders):
            time.sleep(0.01)
        errors = [sender.sent[0].error for sender in senders]
        assert [error is None for error in errors] == [i % 2 == 1 for i in range(CLIPS)]
        error = MerkitError.from_wire(errors[0].message)
        assert type(error) is DeadlineExceededError
    assert len(ran) == 3 * CLIPS // 2


class UnavailableError(Exception):
    """As tritonclient tells it."""

    def status(self) -> str:
        return "StatusCode.UNAVAILABLE"

    def message(self) -> str:
        return str(self.args[0])
