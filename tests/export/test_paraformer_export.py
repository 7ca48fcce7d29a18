"""The recogniser's graphs at lengths never traced, and the same tokens from sherpa-onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from merkit.contract import Hearing
from merkit.pipeline import Chain
from merkit.speech.decode import greedy
from merkit.speech.vocabulary import Vocabulary
from merkit_export.cli import main
from merkit_export.speech.chain import step_graph
from merkit_export.speech.paraformer import write_model_folder
from merkit_training.speech.funasr import FunasrFolder
from merkit_training.speech.hearing.modules import Recognize
from merkit_training.speech.recognition.checkpoint import load_folder, write_folder
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.model import Recognizer

RATE = 16_000
CLOSE: dict[str, float] = {"atol": 1e-4, "rtol": 1e-4}  # of log-probabilities
VOCABULARY = Vocabulary(
    (
        "<blank>",
        "<s>",
        "</s>",
        *"我你他很好高兴难过今天",
        "an@@",
        "gry",
        "sad",
        "hap@@",
        "py",
        "<unk>",
    )
)


def recognizer(ctc: bool) -> tuple[Recognizer, RecognizerConfig]:
    """At random weights that say something: tokens differ, and `</s>` ends a sound."""
    config = RecognizerConfig(
        hidden=16, layers=2, heads=2, intermediate=24, decoder_layers=2, decoder_attending=1,
        decoder_heads=2, decoder_intermediate=24, ctc=ctc, ctc_weight=0.3 * ctc,
    )  # fmt: skip
    torch.manual_seed(5)
    made = Recognizer(config, len(VOCABULARY)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.frontend.shift.uniform_(-14, -10)
    made.frontend.scale.uniform_(0.2, 0.4)
    return made, config


def sound(seed: int, samples: int) -> NDArray[np.float32]:
    """Tones that change each tenth of a second, in some noise."""
    rng = np.random.default_rng(seed)
    pitches = np.repeat(rng.uniform(100, 3000, samples // 1600 + 1), 1600)[:samples]
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(pitches) / RATE) * rng.uniform(0.1, 1)
    return (wave + 0.01 * rng.standard_normal(samples)).astype(np.float32)


@pytest.fixture(scope="module")
def graph() -> tuple[Recognizer, onnxruntime.InferenceSession]:
    made, _ = recognizer(ctc=True)
    model = step_graph("recognize", Recognize(made), Chain(Hearing(), len(VOCABULARY)))
    onnx.checker.check_model(model, full_check=True)
    return made, onnxruntime.InferenceSession(model.SerializeToString())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recognizer, Path]:
    made, config = recognizer(ctc=False)
    path = tmp_path_factory.mktemp("paraformer")
    write_model_folder(path, made, config, VOCABULARY)
    return made, path


@pytest.mark.parametrize("samples", [5, 400, 9_599, 16_000, 47_123, 160_000])
@pytest.mark.parametrize("batch", [1, 3])
def test_sound_to_tokens_is_torchs_at_any_length(
    samples: int, batch: int, graph: tuple[Recognizer, onnxruntime.InferenceSession]
) -> None:
    made, session = graph
    waves = np.stack([sound(seed, samples) for seed in range(batch)])
    lengths = np.array([[samples // (row + 1)] for row in range(batch)])
    with torch.no_grad():
        logs, counts, *_ = made(torch.from_numpy(waves), torch.from_numpy(lengths))
    found = session.run(None, {"speech": waves, "speech_length": lengths})
    np.testing.assert_array_equal(found[1], counts.numpy())
    np.testing.assert_allclose(found[0][:, 0], logs.numpy(), **CLOSE)
    assert samples < 16_000 or int(found[1].max()) > 1  # it says something


def test_neighbours_and_padding_do_not_matter(
    graph: tuple[Recognizer, onnxruntime.InferenceSession],
) -> None:
    _, session = graph
    rng, lengths = np.random.default_rng(0), np.array([[20_000], [33_333], [12_345]])
    waves = rng.standard_normal((3, 40_000)).astype(np.float32)  # loud behind each end
    for row, length in enumerate(lengths[:, 0]):
        waves[row, :length] = sound(row, length)
    logs, counts = session.run(None, {"speech": waves, "speech_length": lengths})
    for row, length in enumerate(lengths[:, 0]):
        feed = {
            "speech": waves[row : row + 1, :length],
            "speech_length": lengths[row : row + 1],
        }
        alone, count = session.run(None, feed)
        assert count[0] == counts[row]
        n = count[0, 0]
        np.testing.assert_allclose(logs[row, 0, :n], alone[0, 0, :n], atol=1e-4)


def test_funasrs_layout_is_what_its_tools_expect(folder: tuple[Recognizer, Path]) -> None:
    made, path = folder
    assert {p.name for p in path.iterdir()} == {
        "model.onnx", "config.yaml", "am.mvn", "tokens.json", "tokens.txt"
    }  # fmt: skip
    model = onnx.load(path / "model.onnx")
    kinds: dict[str, Any] = {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [d.dim_value or "?" for d in value.type.tensor_type.shape.dim],
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    assert kinds == {
        "speech": ("FLOAT", ["?", "?", 560]),
        "speech_lengths": ("INT32", ["?"]),
        "logits": ("FLOAT", ["?", "?", len(VOCABULARY)]),
        "token_num": ("INT32", ["?"]),
    }
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (facts["lfr_window_size"], facts["lfr_window_shift"]) == ("7", "6")
    assert int(facts["vocab_size"]) == len(VOCABULARY)
    shift = np.array(facts["neg_mean"].split(","), np.float32)
    np.testing.assert_allclose(shift, made.frontend.shift.numpy(), rtol=1e-6)
    np.testing.assert_array_equal(FunasrFolder(path).cmvn[0], made.frontend.shift.numpy())
    lines = (path / "tokens.txt").read_text("utf-8").splitlines()
    assert lines[2] == "</s> 2" and len(lines) == len(VOCABULARY)


def test_features_to_tokens_is_torchs_at_any_length(folder: tuple[Recognizer, Path]) -> None:
    made, path = folder
    session = onnxruntime.InferenceSession(str(path / "model.onnx"))
    for batch, time in ((1, 1), (1, 77), (4, 50), (2, 300)):
        rng = np.random.default_rng(time)
        speech = rng.standard_normal((batch, time, 560)).astype(np.float32)
        lengths = np.array([max(time - 7 * row, 1) for row in range(batch)], np.int32)
        with torch.no_grad():
            logs, counts = made.model(torch.from_numpy(speech), torch.from_numpy(lengths))
        found = session.run(None, {"speech": speech, "speech_lengths": lengths})
        np.testing.assert_array_equal(found[1], counts.numpy())
        np.testing.assert_allclose(found[0], logs.numpy(), **CLOSE)


def test_sherpa_onnx_says_the_same(folder: tuple[Recognizer, Path]) -> None:
    """Its own front end in C++, our file: the same tokens, alone and in a batch."""
    sherpa = pytest.importorskip("sherpa_onnx", reason="needs the package sherpa-onnx")
    made, path = folder
    recognizer = sherpa.OfflineRecognizer.from_paraformer(
        paraformer=str(path / "model.onnx"), tokens=str(path / "tokens.txt"), num_threads=1
    )
    waves = [sound(seed, samples) for seed, samples in enumerate((16_000, 41_234, 9_000, 64_001))]
    streams = []
    for wave in waves:
        streams.append(recognizer.create_stream())
        streams[-1].accept_waveform(RATE, wave)
    recognizer.decode_streams(streams)
    said = []
    for wave, stream in zip(waves, streams, strict=True):
        with torch.no_grad():
            logs, count = made(torch.from_numpy(wave)[None], torch.tensor([[len(wave)]]))
        ids = greedy(logs[0].numpy(), int(count), end=VOCABULARY.end).ids
        assert stream.result.tokens == [VOCABULARY.tokens[i] for i in ids]
        assert stream.result.text.strip() == VOCABULARY.decode(
            i for i in ids if VOCABULARY.tokens[i] not in ("<blank>", "<s>", "<unk>")
        ) or {0, 1, len(VOCABULARY) - 1} & set(ids)
        said.append(tuple(ids))
    assert len(set(said)) > 1 and max(map(len, said)) > 3


def test_the_command_takes_folders_and_writes_either_kind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, config = recognizer(ctc=True)
    write_folder(tmp_path / "given", made, config, VOCABULARY)
    given, out = str(tmp_path / "given"), tmp_path / "out"
    assert main(["paraformer", given, "--out", str(out), "--torch"]) == 0
    assert f"{len(VOCABULARY)} tokens" in capsys.readouterr().out
    again, *_ = load_folder(out)
    assert torch.equal(again.frontend.shift, made.frontend.shift)
    assert main(["paraformer", str(tmp_path / "none"), "--out", str(out)]) == 2
    assert "config.yaml" in capsys.readouterr().err
