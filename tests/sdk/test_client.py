"""The client over a canned and over the embedded backend."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from odd_media import gray, movie, tone

import merkit
from merkit.backends.late import LateBackend
from merkit.bundle import Bundle
from merkit.client import Client
from merkit.entry import Clip
from merkit.errors import (
    ClipLimitError,
    ClipNotFoundError,
    ClipUnreadableError,
    ContractMismatchError,
    InferenceError,
    InputError,
    InvalidInputError,
    MerkitError,
    NoEvidenceError,
    ServerUnavailableError,
)
from merkit.media import decode_clip
from merkit.media.limits import Limits
from merkit.results import Prediction
from merkit.testing import CannedBackend

HAPPY = {"happy": 0.7, "sad": 0.3}
DOWN = ServerUnavailableError("nothing answers", "a server", "start it")


@pytest.fixture(scope="module")
def client(toy_bundle: Bundle) -> Iterator[Client]:
    with merkit.load(toy_bundle.root, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grey picture with a tone: no face, but sound."""
    path = tmp_path_factory.mktemp("clips") / "tone.mp4"
    path.write_bytes(movie([gray(90)] * 10, sound=tone(1.0)))
    return path


def test_a_canned_answer_comes_back_as_a_prediction() -> None:
    backend = CannedBackend([HAPPY, {"happy": 0.1, "sad": 0.9}, NoEvidenceError("a", "b", "c")])
    with Client(backend) as client:
        assert client.predict(text="one").label == "happy"
        found = client.predict(text="two")
        assert (found.label, found.source, found.transcript) == ("sad", "text", "two")
        assert found.modalities == ("text",)
        assert found.votes["a+v+j"] is not None
        with pytest.raises(NoEvidenceError):
            client.predict(text="three")
    assert [r["text"][0, 0] for r in backend.requests] == ["one", "two", "three"]


def test_path_bytes_and_decoded_give_the_same_answer(client: Client, clip: Path) -> None:
    decoded = decode_clip(clip, client.backend.contract.preprocessing)
    found = [
        client.predict(clip),
        client.predict(str(clip)),
        client.predict(clip.read_bytes()),
        client.predict(decoded, source="mine"),
    ]
    assert [p.source for p in found] == [str(clip), str(clip), "bytes", "mine"]
    assert all(p.scores == found[0].scores for p in found)
    assert found[0].modalities == ("audio",)
    assert any("no face" in warning for warning in found[0].warnings)
    assert {"decode", "faces", "total"} <= set(found[0].timings_ms)
    assert "decode" in found[0].timings_ms


def test_sending_bytes_gives_what_decoding_here_gives(client: Client, clip: Path) -> None:
    remote = Client(client.backend, decode="server")
    assert remote.predict(clip, "words").scores == client.predict(clip, "words").scores
    assert remote.predict(text="words").scores == client.predict(text="words").scores


def test_several_clips_keep_their_order_and_bad_ones_cost_nothing(
    client: Client, clip: Path
) -> None:
    clips = [clip, "missing.mp4", Clip(clip, "words"), b"", Clip(text="words"), clip] * 3
    found = list(client.predict_many(clips, workers=3))
    kinds = [type(answer) for answer in found]
    expected = [Prediction, ClipNotFoundError, Prediction, None, Prediction, Prediction] * 3
    assert len(kinds) == len(expected)
    for kind, wanted in zip(kinds, expected, strict=True):
        assert kind is wanted if wanted else issubclass(kind, InputError)
    assert found[0].scores == found[5].scores  # type: ignore[union-attr]


def test_an_endless_stream_of_clips_is_taken_a_few_at_a_time() -> None:
    taken = 0

    def clips() -> Iterator[Clip]:
        nonlocal taken
        while True:
            taken += 1
            yield Clip(text=str(taken))

    answers = Client(CannedBackend(HAPPY)).predict_many(clips(), workers=2)
    for _ in range(10):
        assert isinstance(next(answers), Prediction)
    assert taken <= 10 + 2 * 2 + 1
    answers.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("merkit-client")]


@pytest.mark.parametrize("decode", ["client", "server"])
@pytest.mark.parametrize(
    ("media", "text", "kind"),
    [
        (None, None, InvalidInputError),
        (None, b"words", InvalidInputError),
        (None, "\ud800", InvalidInputError),
        (None, "  \n", NoEvidenceError),
        ("missing.mp4", None, ClipNotFoundError),
        (".", None, ClipUnreadableError),
        (b"", None, ClipUnreadableError),
        (b"no media at all", None, ClipUnreadableError),
        (b"\0" * 30_000, None, InputError),
        (3, None, InvalidInputError),
        (np.zeros(3), None, InvalidInputError),
    ],
)
def test_rubbish_is_one_typed_error(
    client: Client, decode: Any, media: Any, text: Any, kind: type[MerkitError]
) -> None:
    with pytest.raises(kind) as caught:
        Client(client.backend, decode=decode).predict(media, text)
    assert caught.value.found
    assert caught.value.expected


def test_limits_hold_before_bytes_are_sent(clip: Path) -> None:
    backend = CannedBackend(HAPPY)
    remote = Client(backend, decode="server", limits=Limits(max_bytes=100))
    for media in (clip, clip.read_bytes()):
        with pytest.raises(ClipLimitError, match="at most 100"):
            remote.predict(media)
    assert not backend.requests


def test_limits_that_a_server_does_not_know_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="max_bytes"):
        Client(CannedBackend(HAPPY), decode="server", limits=Limits(max_seconds=5))
    Client(CannedBackend(HAPPY), decode="client", limits=Limits(max_seconds=5))


class BrokenDetector:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def detect(self, *_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    "error", [cv2.error("bad argument"), OverflowError("too large"), TypeError(), IndexError("3")]
)
def test_what_a_detector_or_codec_raises_becomes_one_typed_error(
    toy_bundle: Bundle, clip: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with merkit.load(toy_bundle.root, threads=1, detector=BrokenDetector(error)) as client:
        with pytest.raises(InferenceError, match="finding faces failed"):
            client.predict(clip)
        found = list(client.predict_many([clip, Clip(text="words")]))
        assert [type(answer) for answer in found] == [InferenceError, Prediction]
        monkeypatch.setattr("merkit.media.clip.read_sound", BrokenDetector(error).detect)
        with pytest.raises(ClipUnreadableError, match=type(error).__name__):
            client.predict(clip)


def test_one_clips_failure_of_any_kind_costs_the_others_nothing() -> None:
    class Odd(CannedBackend):
        def infer(self, tensors: Any, timings: Any = None) -> Any:
            if tensors["text"][0, 0] == "odd":
                raise ValueError("not merkit's")
            if tensors["text"][0, 0] == "out":
                raise MemoryError
            return super().infer(tensors, timings)

    client = Client(Odd(HAPPY))
    odd, good = client.predict_many([Clip(text="odd"), Clip(text="good")])
    assert isinstance(odd, InferenceError)
    assert "ValueError: not merkit's" in odd.found
    assert isinstance(odd.__cause__, ValueError)
    assert isinstance(good, Prediction)
    with pytest.raises(MemoryError):
        list(client.predict_many([Clip(text="out")]))


def test_frames_are_kept_only_when_asked_for(client: Client, media: Path) -> None:
    assert not client.predict(media / "single_face.mp4").frames
    found = client.predict(media / "single_face.mp4", keep_frames=True)
    assert found.modalities == ("video", "audio")
    assert found.picture is not None
    assert {face.time for face in found.faces} == set(found.frames)
    for x, y, w, h in (face.box for face in found.faces):
        assert 0 < x < x + w < found.picture[0]
        assert 0 < y < y + h < found.picture[1]


@pytest.mark.parametrize(
    ("name", "modalities"),
    [
        ("single_face.mp4", ("video", "audio")),
        ("no_face.mp4", ("audio",)),
        ("jfk.flac", ("audio",)),
        ("single_face.jpg", ("video",)),
    ],
)
def test_real_recordings(
    client: Client, media: Path, name: str, modalities: tuple[str, ...]
) -> None:
    found = client.predict(media / name)
    assert found.modalities == modalities
    assert sum(found.contributions.values()) == pytest.approx(1)
    with_words = client.predict(media / name, "I did not expect that!")
    assert with_words.modalities == (*modalities, "text")


def test_options_that_contradict_each_other_are_refused() -> None:
    backend = CannedBackend(HAPPY)
    with pytest.raises(InvalidInputError, match="decode"):
        Client(backend, decode="elsewhere")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="detector"):
        Client(backend, decode="server", detector=object())  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="at least 1"):
        Client(backend).predict_many([], workers=0)


def test_the_fall_back_answers_when_the_server_does_not() -> None:
    broken = InferenceError("a step failed", "success", "")
    server = CannedBackend([HAPPY, DOWN, broken])
    spare = Client(CannedBackend({"happy": 0.2, "sad": 0.8}))
    client = Client(server, fallback=spare)
    assert client.predict(text="a").label == "happy"
    second = client.predict(text="b")
    assert second.label == "sad"
    assert "nothing answers" in second.warnings[-1]
    with pytest.raises(InferenceError):
        client.predict(text="c")


def test_a_fall_back_of_another_contract_is_refused() -> None:
    spare = Client(CannedBackend({"up": 1.0, "down": 0.0}))
    with pytest.raises(ContractMismatchError, match="fall-back"):
        Client(CannedBackend(HAPPY), fallback=spare)


def test_a_late_backend_is_opened_once_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    ready, attempts = False, 0
    backend = CannedBackend(HAPPY)

    def open_backend() -> CannedBackend:
        nonlocal attempts
        attempts += 1
        if not ready:
            raise DOWN
        return backend

    late = LateBackend(open_backend, backend.contract)
    client = Client(late, fallback=Client(CannedBackend({"happy": 0.2, "sad": 0.8})))
    assert client.predict(text="a").label == "sad"
    assert client.predict(text="a").label == "sad"
    assert attempts == 1, "tried again within the pause"
    monkeypatch.setattr("merkit.backends.late.PAUSE", 0)
    late._next = 0
    ready = True
    assert client.predict(text="a").label == "happy"
    assert client.predict(text="a").bundle["backend"] == "canned"
    assert attempts == 2
    late.close()
    with pytest.raises(InferenceError, match="closed"):
        late.infer({})


def test_connecting_with_a_fall_back_while_the_server_is_down(toy_bundle: Bundle) -> None:
    url = "grpc://127.0.0.1:9"
    with merkit.connect(url, fallback=toy_bundle.root, deadline=1.0) as client:
        found = client.predict(text="words")
    assert found.bundle["backend"] == "embedded"
    assert "did not answer" in found.warnings[-1]
    with pytest.raises(ServerUnavailableError):
        merkit.connect(url, deadline=1.0)
    with pytest.raises(ContractMismatchError, match="fall-back"):
        merkit.connect(url, fallback=toy_bundle.root, contract_id="0" * 32, deadline=1.0)


def test_a_pipe_or_device_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    client = Client(CannedBackend([HAPPY]), decode="server")
    for path in (tmp_path / "pipe.mp4", "/dev/zero", tmp_path):
        with pytest.raises(ClipUnreadableError, match="is not a file"):
            client.predict(path)


def test_providers_given_as_a_string_are_refused(toy_bundle: Bundle) -> None:
    with pytest.raises(InvalidInputError, match="a list"):
        merkit.load(toy_bundle.root, providers="cpu")
