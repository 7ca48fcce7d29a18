"""Embedded and served must give the same answer: it is the product's first promise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from entries import MIXES, decoded_entry, mix_name
from odd_media import movie, quadrants, sound_file, tone

from merkit.backends.base import strings
from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.client import Client
from merkit.errors import MerkitError
from merkit.opening import connect, load
from merkit.pipeline import BYTES_IN, DETAIL, OUTCOME
from merkit.serving import Server

TOLERANCE = 1e-5  # on probabilities, as the design promises
BOX_TOLERANCE = 0.11  # pixels, which are given to a tenth


@pytest.fixture(scope="module")
def embedded(toy_bundle: Bundle) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend(toy_bundle, threads=1)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def served(toy_server: Server) -> Iterator[TritonBackend]:
    backend = TritonBackend(toy_server.grpc, deadline=60)
    yield backend
    backend.close()


def assert_equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray], names: tuple) -> None:
    for name in names:
        if one[name].dtype == np.object_:
            assert one[name].tolist() == two[name].tolist()
        else:
            assert one[name].dtype == two[name].dtype, name
            np.testing.assert_allclose(one[name], two[name], rtol=0, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mix", MIXES, ids=mix_name)
def test_decoded_tensors(
    embedded: EmbeddedBackend, served: TritonBackend, mix: tuple[bool, ...], batch: int
) -> None:
    entry = decoded_entry(mix, batch)
    outputs = served.infer(entry)
    assert_equal(embedded.infer(entry), outputs, OUTCOME)
    assert outputs["presence"].tolist() == [list(mix)] * batch
    assert len(np.unique(outputs["scores"].round(6))) > 1


CLIPS = {
    "video and sound": lambda: movie([quadrants()] * 20, sound=tone(2)),
    "sound": lambda: sound_file(tone(1.5, 44_100, 2), "wav", "pcm_s16le", 44_100, "stereo"),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("text", ["", "所以 well then"])
@pytest.mark.parametrize("kind", CLIPS)
def test_clip_bytes(embedded: EmbeddedBackend, served: TritonBackend, kind: str, text: str) -> None:
    clip = np.frombuffer(CLIPS[kind](), np.uint8)[None]
    entry = dict(zip(BYTES_IN, (clip, strings(text)), strict=True))
    assert_equal(embedded.infer(entry), served.infer(entry), OUTCOME + DETAIL)


@pytest.mark.parametrize("decode", ["server", "client"])
@pytest.mark.parametrize(
    "name", ["single_face.mp4", "no_face.mp4", "single_face.jpg", "jfk.flac", None]
)
def test_predictions_on_real_recordings(
    toy_bundle: Bundle, toy_server: Server, media: Path, name: str | None, decode: str
) -> None:
    clip = None if name is None else media / name
    text = "hello" if name is None else None
    with (
        load(toy_bundle.root, threads=1) as one,
        connect(toy_server.grpc, decode=decode, deadline=60) as two,
    ):
        here, there = (client.predict(clip, text) for client in (one, two))
    assert_same_prediction(here, there)
    assert (
        here.modalities
        == {
            "single_face.mp4": ("video", "audio"),
            "no_face.mp4": ("audio",),
            "single_face.jpg": ("video",),
            "jfk.flac": ("audio",),
            None: ("text",),
        }[name]
    )


def assert_same_prediction(here, there) -> None:
    assert (here.label, here.modalities, here.transcript) == (
        there.label,
        there.modalities,
        there.transcript,
    )
    assert here.scores == pytest.approx(there.scores, abs=TOLERANCE)
    assert here.contributions == pytest.approx(there.contributions, abs=TOLERANCE)
    assert here.warnings == there.warnings
    assert here.picture == there.picture
    assert list(here.votes) == list(there.votes)
    for one, two in zip(here.votes.values(), there.votes.values(), strict=True):
        assert (one and one.label) == (two and two.label)
        assert (one and one.scores) == (two and pytest.approx(two.scores, abs=TOLERANCE))
    for one, two in zip(here.faces, there.faces, strict=True):
        assert one.time == two.time
        assert one.box == pytest.approx(two.box, abs=BOX_TOLERANCE)
        assert one.confidence == pytest.approx(two.confidence, abs=TOLERANCE)


def test_errors_are_equal_too(toy_bundle: Bundle, toy_server: Server, tmp_path: Path) -> None:
    renamed = tmp_path / "text.mp4"
    renamed.write_text("this is no movie")
    clients: list[Client] = [
        load(toy_bundle.root, threads=1),
        connect(toy_server.grpc, deadline=60),
    ]
    missing = tmp_path / "missing.mp4"
    for clip, text in ((renamed, None), (missing, None), (None, "")):
        errors = []
        for client in clients:
            with pytest.raises(MerkitError) as caught:
                client.predict(clip, text)
            error = caught.value
            errors.append((type(error).__name__, error.found, error.expected, error.action))
        assert errors[0] == errors[1]
    for client in clients:
        client.close()


def test_the_server_tells_what_each_step_cost(
    embedded: EmbeddedBackend, served: TritonBackend
) -> None:
    before = served.step_statistics()
    assert set(before) == {step.name for step in embedded.contract.steps}
    for _ in range(3):
        served.infer(decoded_entry())
    for _ in range(50):  # the server answers before it has counted the last step
        after = served.step_statistics()
        ran = {name: after[name][0] - before[name][0] for name in after}
        if ran["voting"] == 3:
            break
        time.sleep(0.1)
    spent = {name: after[name][1] - before[name][1] for name in after}
    assert ran == dict.fromkeys(after, 3) | {"decode": 0, "faces": 0}
    assert all((0 < ms < 60_000) == (ran[name] > 0) for name, ms in spent.items()), spent
