"""A run that hears becomes a bundle that hears, and says in ONNX what it says in torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hearing_run import CLEANED, write_hearing_run

import merkit
from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle
from merkit.entry import decoded_entry
from merkit.media.limits import Limits
from merkit_export import samples
from merkit_export.build import build
from merkit_export.reference import TorchBackend
from merkit_training.evaluation.trained import TrainedBackend
from merkit_training.fusion.features import Decoded, Encoder
from merkit_training.runs import read_json


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hearing_run(tmp_path_factory.mktemp("run"), CLEANED)


@pytest.fixture(scope="module")
def bundle(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(run, tmp_path_factory.mktemp("built") / "bundle")


def test_the_bundle_holds_the_chain_and_what_it_reads(bundle: Bundle) -> None:
    content = set(bundle.manifest["content"])
    graphs = {f"{step}/1/model.onnx" for step in ("separate", "recognize", "punctuate")}
    files = {"tokens.json", "language.arpa", "words.json"}
    assert graphs | {f"transcribe/1/{name}" for name in files} <= content
    assert "tokenize/1/words.json" in content
    assert {"transcribe", "tokenize", "separate"} <= set(bundle.manifest["step_digests"])
    costs = bundle.manifest["costs"]
    assert costs["recognize"] > 1e6 and costs["separate"] > 1e6  # of a clip without words
    assert "language_model" in bundle.manifest["provenance"]["checkpoints"]
    assert bundle.contract.hearing is not None and bundle.contract.hearing.cleans


def test_a_recording_is_heard_alike_in_torch_and_onnx(
    bundle: Bundle, run: Path, media: Path
) -> None:
    clip = media / "jfk.flac"
    answers = []
    with merkit.load(bundle.root, providers=["cpu"], threads=1) as client:
        answers.append(client.predict(clip))
    for backend in (TorchBackend(run), TrainedBackend(run)):
        with merkit.Client(backend) as client:
            answers.append(client.predict(clip))
    first = answers[0]
    assert first.hearing is not None and first.hearing.origin == "recognized"
    assert first.transcript
    for other in answers[1:]:
        assert (other.label, other.transcript) == (first.label, first.transcript)
        assert other.hearing is not None and other.hearing.source == first.hearing.source
        np.testing.assert_allclose(
            list(other.scores.values()), list(first.scores.values()), atol=1e-4
        )


def test_fusion_learns_from_the_sound_that_encoders_will_hear(
    bundle: Bundle, run: Path, media: Path
) -> None:
    p = bundle.contract.preprocessing
    request = merkit.Clip(media / "jfk.flac", "ask not")
    given = decoded_entry(request, p, Limits(), None, False).tensors
    backend = EmbeddedBackend(bundle, providers=["cpu"], threads=1)
    wanted = ("cleaned", "audio_features", "joint_features")
    served = backend.compute(given, wanted)
    backend.close()
    encode = Encoder(run, p)
    assert encode.ears is not None
    sound = (torch.from_numpy(given[name]) for name in ("waveform", "waveform_length"))
    _, cleaned = encode.ears(*sound, ["ask not"])
    assert cleaned is not None
    np.testing.assert_allclose(cleaned.numpy(), served["cleaned"], atol=1e-4)
    faces = np.zeros((0, p.face_size, p.face_size, 3), np.uint8)
    made = encode([Decoded(faces, given["waveform"][0])], ["ask not"])
    np.testing.assert_allclose(made["audio_features"].numpy(), served["audio_features"], atol=1e-3)
    np.testing.assert_allclose(
        made["joint_views"][:, 0].numpy(), served["joint_features"], atol=1e-3
    )


def test_made_up_clips_are_worth_recognising(bundle: Bundle) -> None:
    """Else parity would compare nothing: `listen` hears speech in the made-up sound."""
    backend = EmbeddedBackend(bundle, providers=["cpu"], threads=1)
    p = bundle.contract.preprocessing
    (clip,) = samples.unworded([samples.clip(p, 1, 3.0, 4)])
    found = backend.compute(clip, ("speech_length", "token_count", "words"))
    backend.close()
    assert found["speech_length"][0, 0] == 3 * p.sample_rate
    assert found["token_count"].min() > 0
    assert read_json(bundle.root / "bundle.json")["contract"]["hearing"]["audio_hears"] == "cleaned"
