"""What a pipeline hears, in process and on a real server: the same words, and the same reasons."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from entries import decoded_entry
from numpy.typing import NDArray
from odd_media import float_wav, sound_file
from toy import HEARS, write_toy_bundle
from voices import RATE, SOUNDS, voice

from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.client import Client
from merkit.errors import InvalidInputError, NoEvidenceError
from merkit.opening import connect, load
from merkit.pipeline import HEARD
from merkit.serving import Server
from merkit.serving.tritonserver import Installation

TOLERANCE = 1e-5
Tensors = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("hears") / "bundle", chain=HEARS)


@pytest.fixture(scope="module")
def server(bundle: Bundle, triton: Installation) -> Iterator[Server]:
    with Server(bundle, installation=triton) as running:
        yield running


@pytest.fixture(scope="module")
def embedded(bundle: Bundle) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend(bundle, threads=1)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def served(server: Server) -> Iterator[TritonBackend]:
    backend = TritonBackend(server.grpc, deadline=60)
    yield backend
    backend.close()


def entry_of(sound: NDArray[np.float32], text: str | None, face: bool = False) -> Tensors:
    """A decoded clip; without `text` nobody is to write its words."""
    entry = decoded_entry((face, False, False))
    entry |= {"waveform": sound[None], "waveform_length": np.array([[len(sound)]])}
    del entry["text"]
    return entry if text is None else entry | {"text": strings(text)}


def assert_alike(one: Tensors, two: Tensors) -> None:
    """`hearing` where there is sound to hear: a server may be sent none of what is absent."""
    assert one.keys() == two.keys()
    sound = one["presence"][:, 1]
    for name, value in one.items():
        if name == "hearing":
            assert value[sound].tolist() == two[name][sound].tolist(), name
        elif value.dtype == np.object_:
            assert value.tolist() == two[name].tolist(), name
        else:
            np.testing.assert_allclose(value, two[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("text", ["", "你好 given words", None], ids=["blank", "given", "unheard"])
@pytest.mark.parametrize("name", SOUNDS)
def test_decoded_sound(
    embedded: EmbeddedBackend, served: TritonBackend, name: str, text: str | None
) -> None:
    """With a face beside it, so that there is always something to judge."""
    entry = entry_of(SOUNDS[name](), text, face=True)
    answer = served.infer(entry)
    assert_alike(embedded.infer(entry), answer)
    assert ("hearing" in answer) == (text is not None and (bool(text) or answer["presence"][0, 1]))
    assert answer["presence"][0, 2] == bool(text or (text == "" and name in WORDY))


WORDY = {"voice", "offset"}
"""Sounds in which the toy recogniser finds words."""


def test_a_batch_of_all(embedded: EmbeddedBackend, served: TritonBackend) -> None:
    rows = [(SOUNDS[name](), text) for name in SOUNDS for text in ("", "given")]
    most = max(len(sound) for sound, _ in rows)
    entry = decoded_entry((False, False, False), batch=len(rows)) | {
        "waveform": np.stack([np.pad(sound, (0, most - len(sound))) for sound, _ in rows]),
        "waveform_length": np.array([[len(sound)] for sound, _ in rows]),
        "text": strings(*(text for _, text in rows)),
    }
    answer = served.infer(entry)
    assert_alike(embedded.infer(entry), answer)
    for i, (sound, text) in enumerate(rows):
        alone = embedded.infer(entry_of(sound, text))
        assert_alike(alone, {name: answer[name][i : i + 1] for name in alone})


def test_words_alone(embedded: EmbeddedBackend, served: TritonBackend) -> None:
    entry = {"text": strings("hello")}
    answer = served.infer(entry)
    assert_alike(embedded.infer(entry), answer)
    assert answer["words"].tolist() == [["hello"]]


def wav(sound: NDArray[np.float32]) -> bytes:
    return sound_file(sound[None], rate=RATE)


def holes() -> bytes:
    sound = voice()
    sound[1000:1100] = np.nan
    return float_wav(sound)


CLIPS = {
    "voice": lambda: wav(voice()),
    "10 ms": lambda: wav(SOUNDS["10 ms"]()),
    "clipped": lambda: wav(SOUNDS["clipped"]()),
    "music": lambda: wav(SOUNDS["music"]()),
    "silence": lambda: wav(SOUNDS["silence"]()),
    "NaN": holes,
    "a minute": lambda: wav(np.tile(voice(), 30)),
}


@pytest.mark.parametrize("text", [None, "given words"])
@pytest.mark.parametrize("name", CLIPS)
def test_clips(bundle: Bundle, server: Server, name: str, text: str | None) -> None:
    """The whole way: bytes to the server, tensors to the server, and both in process."""
    clip = CLIPS[name]()
    answers = []
    for client in (
        load(bundle.root, threads=1),
        connect(server.grpc, deadline=60),
        connect(server.grpc, deadline=60, decode="client"),
    ):
        with client:
            try:
                found = client.predict(clip, text)
                answers.append((found.label, found.transcript, found.hearing, found.warnings))
            except NoEvidenceError as error:
                answers.append((str(error),))
    assert answers[0] == answers[1] == answers[2]


def test_lazy_voting_hears_the_same(bundle: Bundle, server: Server) -> None:
    near = EmbeddedBackend(bundle, threads=1, lazy=True)
    far = TritonBackend(server.grpc, deadline=60, lazy=True)
    for text in ("", "given", None):
        entry = entry_of(voice(), text)
        here, there = near.infer(entry), far.infer(entry)
        assert here["label"] == there["label"]
        for name in HEARD:
            assert (name in here) == (name in there) == (text is not None)
            if name in here:
                assert here[name].tolist() == there[name].tolist()
    clip = {"clip": np.frombuffer(wav(voice()), np.uint8)[None], "text": strings("")}
    assert near.infer(clip)["words"].tolist() == far.infer(clip)["words"].tolist()
    near.close()
    far.close()


def test_features_of_a_device_that_heard(embedded: EmbeddedBackend, served: TritonBackend) -> None:
    """The words that the device recognised are the caller's on the server."""
    device, server = Client(embedded), Client(served)
    clip = wav(voice())
    whole = device.predict(clip)
    for faces_only in (False, True):
        features = device.features(clip, faces_only=faces_only)
        answer = server.predict_features(features)
        assert answer.label == whole.label
        assert answer.scores == pytest.approx(whole.scores, abs=TOLERANCE)
        if faces_only:
            assert answer.transcript == whole.transcript
            assert answer.hearing is not None and answer.hearing.origin == "caller"


def test_who_sends_whole_clips_is_listened_to(served: TritonBackend, server: Server) -> None:
    with connect(server.grpc, deadline=60) as client:
        with pytest.raises(InvalidInputError, match="hear=False"):
            client.predict(wav(voice()), hear=False)
        found = client.predict(wav(voice()), "given words", hear=False)
        assert found.transcript == "given words"
    with pytest.raises(InvalidInputError, match="NaN"):
        served.infer(entry_of(np.full(RATE, np.nan, np.float32), ""))


def test_a_hail_of_bad_clips_leaves_the_server_alive(server: Server) -> None:
    with connect(server.grpc, deadline=60) as client:
        answers = list(client.predict_many([b"no movie"] * 100, workers=4))
        assert {type(answer).__name__ for answer in answers} == {"ClipUnreadableError"}
        assert client.predict(wav(voice())).transcript


def test_the_checked_json(embedded: EmbeddedBackend) -> None:
    """One answer read by eye, so that both sides cannot be wrong alike."""
    answer = embedded.infer(entry_of(voice(), ""))
    heard = json.loads(answer["hearing"][0, 0])
    assert heard["origin"] == "recognized"
    assert heard["flags"] == [] and heard["warnings"] == []
    assert 0 < heard["confidence"] < 1
    assert answer["words"][0, 0].endswith((".", "?", "。"))


def test_real_speech(bundle: Bundle, server: Server, media: Path) -> None:
    with load(bundle.root, threads=1) as near, connect(server.grpc, deadline=60) as far:
        here, there = (client.predict(media / "jfk.flac") for client in (near, far))
    assert here.transcript and here.transcript == there.transcript
    assert here.hearing is not None and here.hearing.speech
    assert here.hearing == there.hearing
