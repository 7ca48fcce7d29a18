"""What a host chooses, on a real server: warm-up, queues, priorities and the response cache."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from entries import decoded_entry
from tritonclient.grpc import InferenceServerClient, InferInput

from merkit.backends.base import strings
from merkit.backends.breaker import CircuitBreaker
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.errors import ServerUnavailableError
from merkit.serving import ServeOptions, Server
from merkit.serving.deployment import Deployment, QueuePolicy, StepDeployment
from merkit.serving.lazy_model import CLIPS, NAME
from merkit.serving.tritonserver import Installation

HOST = Deployment(
    max_batch_size=4,
    queue=QueuePolicy(priorities=3),
    warm_up=True,
    steps={
        "fusion": StepDeployment(
            queue=QueuePolicy(max_size=1), queue_delay_us=1_500_000, response_cache=True
        ),
        "voting": StepDeployment(warm_up=False),
    },
)


@pytest.fixture(scope="module")
def server(toy_bundle: Bundle, triton: Installation) -> Iterator[Server]:
    with Server(toy_bundle, ServeOptions(deployment=HOST, verbose=1), triton) as started:
        yield started


def open_backend(server: Server, **options: object) -> TritonBackend:
    patient = CircuitBreaker(threshold=10_000)
    return TritonBackend(server.grpc, deadline=60, breaker=patient, **options)  # type: ignore[arg-type]


def test_steps_have_run_before_the_first_request(server: Server) -> None:
    """Three corners, or one where shapes are fixed; each alone and as a full batch."""
    backend = open_backend(server)
    assert backend.batch_statistics() == {
        "decode": (3, 3),
        "faces": (3, 3),
        "tokenize": (1, 1),
        "preprocess": (3, 3),
        "face_encoder": (1 + 4, 2),
        "face_encoder_large": (1 + 4, 2),
        "audio_encoder": (3 * (1 + 4), 6),
        "text_encoder": (3 * (1 + 4), 6),
        "joint_encoder": (3 * (1 + 4), 6),
        "fusion": (1 + 4, 2),
        "voting": (0, 0),
    }
    backend.close()


def test_a_priority_reaches_the_steps_of_an_ensemble(server: Server) -> None:
    for level in (1, 2):
        backend = open_backend(server, priority=level)
        backend.infer(decoded_entry())
        backend.close()
    log = server.log.read_text()
    seen = re.findall(r"model: face_encoder, .*?priority: (\d+)", log, re.DOTALL)
    assert {"1", "2"} <= set(seen)


def test_the_response_cache_answers_what_it_has_seen(server: Server) -> None:
    backend = open_backend(server)
    first = backend.infer(decoded_entry(seed=7))
    before = backend.batch_statistics()
    second = backend.infer(decoded_entry(seed=7))
    after = backend.batch_statistics()
    np.testing.assert_array_equal(first["scores"], second["scores"])
    assert after["fusion"] == before["fusion"]
    assert after["face_encoder"] > before["face_encoder"]
    backend.close()


def test_a_full_queue_turns_requests_away_in_words(server: Server) -> None:
    """One request waits for others to share its batch with, and there is no room for more."""
    backend = open_backend(server)

    def ask(seed: int) -> str:
        try:
            return str(backend.infer(decoded_entry(seed=seed))["label"].shape)
        except ServerUnavailableError as error:
            return error.found

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(100, 106)))
    assert "(1,)" in answers
    turned_away = [answer for answer in answers if answer != "(1,)"]
    assert turned_away
    assert all("has too much to do" in answer for answer in turned_away)
    assert server.running()
    backend.close()


def test_lazy_voting_has_a_queue_too(toy_bundle: Bundle, triton: Installation) -> None:
    """It takes requests on by itself, so Triton's limits do not hold there; its own one does."""
    patient = StepDeployment(max_batch_size=128, queue=QueuePolicy())
    steps = {"fusion": replace(patient, queue_delay_us=3_000_000), "voting": patient}
    host = Deployment(queue=QueuePolicy(max_size=2), steps=steps)
    text = InferInput("text", [1, 1], "BYTES").set_data_from_numpy(strings("so glad!"))
    answers: queue.Queue[object] = queue.Queue()
    asked = CLIPS + 2 + 30
    with (
        Server(toy_bundle, ServeOptions(deployment=host), triton) as server,
        InferenceServerClient(server.grpc.removeprefix("grpc://")) as client,
    ):
        for _ in range(asked):
            client.async_infer(NAME, [text], lambda result, error: answers.put(error or result))
        found = [answers.get(timeout=240) for _ in range(asked)]
        refused = [str(answer) for answer in found if isinstance(answer, Exception)]
        assert 0 < len(refused) <= 30
        assert all("UNAVAILABLE" in text and "maximum queue size" in text for text in refused)
        assert client.infer(NAME, [text]).as_numpy("label").size == 1
