"""Entry points on a real server: each answers as the embedded pipeline, and runs no more than it
has to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from entries import MIXES, decoded_entry, mix_name

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle
from merkit.client import Client
from merkit.contract import MODALITIES
from merkit.errors import InvalidInputError, NoEvidenceError
from merkit.pipeline import GROUP_MODALITIES, GROUPS, OUTCOME
from merkit.serving import Server

ENCODERS = {
    "a": "audio_encoder",
    "t": "text_encoder",
    "v": "face_encoder",
    "j": "joint_encoder",
    "V": "face_encoder_large",
}


@pytest.fixture(scope="module")
def served(toy_server: Server) -> Iterator[TritonBackend]:
    backend = TritonBackend(toy_server.grpc, deadline=60)
    yield backend
    backend.close()


@pytest.fixture(scope="module")
def embedded(toy_bundle: Bundle) -> Iterator[EmbeddedBackend]:
    backend = EmbeddedBackend(toy_bundle)
    yield backend
    backend.close()


def runs(backend: TritonBackend) -> dict[str, int]:
    """How often each encoder has run."""
    return {step: count for step, (count, _) in backend.step_statistics().items()}


def assert_alike(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    for name in OUTCOME:
        assert found[name].shape == expected[name].shape
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_allclose(
            found[name].astype(float), expected[name].astype(float), rtol=0, atol=1e-5
        )
    assert (found["label"] == expected["label"]).all()


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mix", MIXES, ids=mix_name)
def test_what_a_clip_lacks_is_not_run(
    served: TritonBackend, embedded: EmbeddedBackend, mix: tuple[bool, ...], batch: int
) -> None:
    entry = decoded_entry(mix, batch)
    before = runs(served)
    answer = served.infer(entry)
    ran = {step for step, count in runs(served).items() if count > before[step]}
    assert_alike(answer, embedded.infer(entry))
    present = {m for m, here in zip(MODALITIES, mix, strict=True) if here}
    for group, encoder in ENCODERS.items():
        assert (encoder in ran) == bool(present & set(GROUP_MODALITIES[group])), encoder


def test_a_batch_runs_what_any_clip_of_it_holds(
    served: TritonBackend, embedded: EmbeddedBackend
) -> None:
    entry = decoded_entry((False, True, True), batch=2)
    entry["waveform_length"][0] = 0
    entry["text"][1] = " "
    before = runs(served)
    assert_alike(served.infer(entry), embedded.infer(entry))
    after = runs(served)
    assert after["face_encoder"] == before["face_encoder"]
    assert after["audio_encoder"] > before["audio_encoder"]
    assert after["text_encoder"] > before["text_encoder"]


def test_silence_and_blanks_are_not_sent(served: TritonBackend, embedded: EmbeddedBackend) -> None:
    entry = decoded_entry((True, True, False))
    entry["waveform"] *= 0
    entry["text"][0] = " \n"
    before = runs(served)
    assert_alike(served.infer(entry), embedded.infer(entry))
    assert runs(served)["audio_encoder"] == before["audio_encoder"]


def test_nothing_at_all_is_no_evidence_wherever(
    served: TritonBackend, embedded: EmbeddedBackend
) -> None:
    entry = decoded_entry((False, False, False))
    assert_alike(served.infer(entry), embedded.infer(entry))
    with pytest.raises(NoEvidenceError):
        Client(served).predict(text=" ")


@pytest.mark.parametrize("faces_only", [False, True])
@pytest.mark.parametrize("mix", MIXES, ids=mix_name)
def test_features_in_place_of_a_clip(
    served: TritonBackend, embedded: EmbeddedBackend, mix: tuple[bool, ...], faces_only: bool
) -> None:
    entry = decoded_entry(mix)
    point = "merkit_edge" if faces_only else "merkit_features"
    device, server = Client(embedded), Client(served)
    device._entry = lambda *_, **__: type("Entry", (), {"tensors": entry})  # type: ignore[assignment, method-assign]
    features = device.features(text="", faces_only=faces_only)
    assert ("face_crops" in features, "waveform" in features) == (False, faces_only), point
    before = runs(served)
    answer = server.predict_features(features)
    expected = embedded.infer(entry)
    scores = [answer.scores[label] for label in embedded.contract.labels]
    np.testing.assert_allclose(scores, expected["scores"][0], atol=1e-5)
    here = device.predict_features(features)
    assert here.label == answer.label
    np.testing.assert_allclose(list(here.scores.values()), scores, atol=1e-5)
    ran = {step for step, count in runs(served).items() if count > before[step]}
    assert not ran & {"faces", "face_encoder", "face_encoder_large", "decode"}
    assert ("audio_encoder" in ran) == faces_only


def test_features_are_sent_whole_or_not_at_all(
    served: TritonBackend, embedded: EmbeddedBackend
) -> None:
    with pytest.raises(InvalidInputError, match="a client that asks a server"):
        Client(served).features(text="hello")
    features = Client(embedded).features(text="hello")
    assert set(features) == {*GROUPS.values(), "presence"}
    wide = {**features, "face_features": np.zeros((1, 9), np.float32)}
    for wrong in ({**features, "more": features["presence"]}, {}, wide):
        for backend in (served, embedded):
            with pytest.raises(InvalidInputError):
                Client(backend).predict_features(wrong)
    assert Client(served).predict_features(features).modalities == ("text",)


def test_other_tensors_are_refused(served: TritonBackend) -> None:
    entry = decoded_entry()
    del entry["face_count"]
    with pytest.raises(InvalidInputError, match="give one of these sets"):
        served.infer(entry)
