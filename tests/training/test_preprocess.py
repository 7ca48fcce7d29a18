"""The preprocess step: against published extractors, padding, and its own export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from merkit.contract import Preprocessing
from merkit.pipeline import GROUPS, standard_contract
from merkit_training.preprocess import Preprocess

STEP = standard_contract("ab", dict.fromkeys(GROUPS, 4)).step("preprocess")
Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def step() -> Preprocess:
    return Preprocess().eval()


def _sound(seconds: float, level: float = 0.1, seed: int = 0) -> np.ndarray[Any, Any]:
    """Something with pitch, pauses and noise."""
    rng = np.random.default_rng(seed)
    t = np.arange(round(16_000 * seconds)) / 16_000
    voice = np.sin(2 * np.pi * (140 + 30 * np.sin(3 * t)) * t) * (np.sin(5 * t) > -0.3)
    return (level * (voice + 0.1 * rng.normal(size=len(t)) + 0.05)).astype(np.float32)


def _faces(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


def _case(clips: list[tuple[int, float, int]], padding: float = 0.0) -> Case:
    """A batch of clips of (faces, seconds, tokens), right padded with `padding`."""
    faces = max(c[0] for c in clips)
    sounds = [_sound(c[1], seed=i) for i, c in enumerate(clips)]
    samples = max(map(len, sounds))
    crops = np.full((len(clips), faces, 64, 64, 3), round(padding * 99), np.uint8)
    wave = np.full((len(clips), samples), padding, np.float32)
    for i, (count, _, _) in enumerate(clips):
        crops[i, :count] = _faces(count, seed=i)
        wave[i, : len(sounds[i])] = sounds[i]
    column = [[len(s)] for s in sounds]
    return (
        torch.from_numpy(crops),
        torch.tensor([[c[0]] for c in clips]),
        torch.from_numpy(wave),
        torch.tensor(column),
        torch.tensor([[c[2]] for c in clips]),
    )


@pytest.mark.parametrize("seconds", [0.05, 1.7, 3.999, 4.0])
def test_log_mel_is_whispers(step: Preprocess, seconds: float) -> None:
    sound = _sound(seconds)
    extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=4)
    expected = extractor(sound, sampling_rate=16_000, return_tensors="np").input_features
    found = step.mel(torch.from_numpy(sound)[None], torch.tensor([[len(sound)]]))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)


def test_log_mel_takes_the_middle_of_longer_sound(step: Preprocess) -> None:
    sound = torch.from_numpy(_sound(7.0))[None]
    middle = sound[:, 24_000:88_000]
    found = step.mel(sound, torch.tensor([[112_000]]))
    assert torch.equal(found, step.mel(middle, torch.tensor([[64_000]])))


def test_audio_values_are_huberts(step: Preprocess) -> None:
    case = _case([(0, 2.0, 0), (0, 0.7, 0)], padding=0.5)
    _, values, length, _, _ = step(*case)
    sounds = [case[2][i, : case[3][i, 0]].numpy() for i in range(2)]
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)
    expected = extractor(sounds, sampling_rate=16_000, padding=True, return_tensors="np")
    np.testing.assert_allclose(values.numpy(), expected["input_values"], atol=2e-5)
    np.testing.assert_array_equal(length.numpy()[:, 0], expected["attention_mask"].sum(1))


@pytest.mark.parametrize(
    ("count", "shown"),
    [(1, (0, 0, 0, 0)), (2, (0, 0, 1, 1)), (3, (0, 1, 1, 2)), (4, (0, 1, 2, 3)), (8, (1, 3, 5, 7))],
)
def test_tiles_show_the_stated_faces_in_time_order(
    step: Preprocess, count: int, shown: tuple[int, ...]
) -> None:
    crops = _faces(count)
    grid = step.faces(torch.from_numpy(crops)[None], torch.tensor([[count]]))[0].numpy()
    for tile, face in enumerate(shown):
        row, column = divmod(tile, 2)
        part = grid[:, 64 * row : 64 * row + 64, 64 * column : 64 * column + 64]
        np.testing.assert_allclose(part, crops[face].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


def test_mean_and_std_are_each_colours_own() -> None:
    p = Preprocessing(face_mean=(0.1, 0.2, 0.3), face_std=(0.4, 0.5, 0.6))
    crops = _faces(1)
    grid = Preprocess(p).faces(torch.from_numpy(crops)[None], torch.tensor([[1]]))[0, :, :64, :64]
    expected = (crops[0] / 255 - np.array(p.face_mean)) / np.array(p.face_std)
    np.testing.assert_allclose(grid.numpy(), expected.transpose(2, 0, 1), atol=1e-6)


def test_presence(step: Preprocess) -> None:
    quiet = 10 ** (-75 / 20)
    rows = [
        (1, 1, np.full(1600, 1.01 * quiet), [True, True, True]),
        (0, 0, np.full(1600, 0.99 * quiet), [False, False, False]),
        (3, 64, np.full(1599, 0.1), [True, False, True]),
        (0, 5, np.zeros(0), [False, False, True]),
    ]
    for faces, tokens, sound, expected in rows:
        *_, presence = step(
            torch.zeros(1, faces, 64, 64, 3, dtype=torch.uint8),
            torch.tensor([[faces]]),
            torch.from_numpy(sound.astype(np.float32))[None],
            torch.tensor([[len(sound)]]),
            torch.tensor([[tokens]]),
        )
        assert presence[0].tolist() == expected


MIXED = [(3, 1.0, 2), (0, 0.0, 0), (8, 4.6, 0), (1, 0.05, 1)]


def test_neighbours_and_padding_change_nothing(step: Preprocess) -> None:
    together = step(*_case(MIXED, padding=0.7))
    whole = _case(MIXED)
    for i, (faces, _, _) in enumerate(MIXED):
        samples = int(whole[3][i])
        alone = step(
            whole[0][i : i + 1, :faces], whole[1][i : i + 1], whole[2][i : i + 1, :samples],
            whole[3][i : i + 1], whole[4][i : i + 1],
        )  # fmt: skip
        for name, one, many in zip(STEP.outputs, alone, together, strict=True):
            row = many[i : i + 1]
            if name == "audio_values":
                assert not row[:, one.shape[1] :].any()
                row = row[:, : one.shape[1]]
            torch.testing.assert_close(one, row, atol=1e-5, rtol=0, msg=f"{name} of clip {i}")


def test_nothing_at_all_is_finite_and_blank(step: Preprocess) -> None:
    grid, values, length, mel, presence = step(*_case([(0, 0.0, 0)]))
    assert not grid.any() and not values.any() and not length.any() and not presence.any()
    assert values.shape == (1, 1600)
    assert torch.equal(mel, torch.full_like(mel, -1.5))  # ten decades below full scale


def test_the_export_equals_the_module(step: Preprocess, tmp_path: Path) -> None:
    dynamic = {
        "face_crops": {0: "batch", 1: "faces"},
        "face_count": {0: "batch"},
        "waveform": {0: "batch", 1: "samples"},
        "waveform_length": {0: "batch"},
        "text_length": {0: "batch"},
    }
    program = torch.onnx.export(
        step, _case([(3, 0.3, 1), (2, 0.2, 0)]), dynamo=True, opset_version=20, verbose=False,
        input_names=list(STEP.inputs), output_names=list(STEP.outputs), dynamic_shapes=dynamic,
    )  # fmt: skip
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for clips in (MIXED, [(0, 0.0, 0)], [(1, 6.0, 1)], [(0, 0.0, 1), (0, 0.0, 0)]):
        case = _case(clips, padding=0.3)
        feed = {name: t.numpy() for name, t in zip(STEP.inputs, case, strict=True)}
        found = session.run(list(STEP.outputs), feed)
        for name, got, wanted in zip(STEP.outputs, found, step(*case), strict=True):
            assert got.dtype == wanted.numpy().dtype, name
            np.testing.assert_allclose(got, wanted.numpy(), atol=1e-5, rtol=0, err_msg=name)
