"""The front end as a graph equals Kaldi's, sherpa-onnx's kernel of it, and FunASR's stacking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from merkit_training.speech.recognition.frontend import Frontend, frame_count

Wave = NDArray[np.float32]
RATE = 16_000


def sounds() -> dict[str, Wave]:
    rng, time = np.random.default_rng(0), np.arange(20_111) / RATE
    return {
        "noise": (0.3 * rng.standard_normal(len(time))).astype(np.float32),
        "tone beside an offset": (0.5 * np.sin(2 * np.pi * 440 * time) + 0.2).astype(np.float32),
        "quiet": (1e-4 * rng.standard_normal(len(time))).astype(np.float32),
        "silence": np.zeros(len(time), np.float32),
        "full scale": np.sign(np.sin(2 * np.pi * 1000 * time)).astype(np.float32),
    }


def kaldi(wave: Wave) -> NDArray[np.float64]:
    """Kaldi's filterbank from its documentation, frame by frame, in float64."""
    frames = []
    for start in range(0, len(wave) - 399, 160):
        frame = wave[start : start + 400].astype(np.float64) * 32768
        frame = frame - frame.mean()
        frame = np.append(frame[0] - 0.97 * frame[0], frame[1:] - 0.97 * frame[:-1])
        frame *= 0.54 - 0.46 * np.cos(2 * math.pi * np.arange(400) / 399)
        power = np.abs(np.fft.rfft(frame, 512)) ** 2
        bands = []
        mel = [1127 * math.log(1 + f / 700) for f in (20, 8000)]
        step = (mel[1] - mel[0]) / 81
        for band in range(80):
            left, centre, right = (mel[0] + (band + i) * step for i in range(3))
            total = 0.0
            for number in range(256):
                place = 1127 * math.log(1 + number * RATE / 512 / 700)
                if left < place <= centre:
                    total += power[number] * (place - left) / (centre - left)
                elif centre < place < right:
                    total += power[number] * (right - place) / (right - centre)
            bands.append(math.log(max(total, 1.1920928955078125e-07)))
        frames.append(bands)
    return np.array(frames)


def stacked(fbank: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seven frames each six, the first three repeated before the first, the last behind the last,
    one stack at a time."""
    padded = [fbank[0]] * 3 + list(fbank)
    stacks = []
    for first in range(0, len(fbank), 6):
        stack = padded[first : first + 7]
        stacks.append(np.concatenate(stack + [fbank[-1]] * (7 - len(stack))))
    return np.array(stacks)


@pytest.mark.parametrize("name", sounds())
def test_the_graph_is_kaldis_filterbank(name: str) -> None:
    wave = sounds()[name][:4_000]
    found = Frontend().fbank(torch.from_numpy(wave)[None])[0].numpy()
    # of a pure tone the bands far from it hold nothing but the rounding of the loud ones
    np.testing.assert_allclose(found, kaldi(wave), atol=2e-3 if "tone" in name else 3e-4)


@pytest.mark.parametrize("name", sounds())
def test_sherpas_own_kernel_of_kaldi_agrees(name: str) -> None:
    library = pytest.importorskip("kaldi_native_fbank", reason="needs kaldi-native-fbank")
    options = library.FbankOptions()
    options.frame_opts.samp_freq, options.frame_opts.dither = RATE, 0
    options.frame_opts.window_type, options.frame_opts.snip_edges = "hamming", True
    options.mel_opts.num_bins, options.energy_floor = 80, 0
    computer, wave = library.OnlineFbank(options), sounds()[name]
    computer.accept_waveform(RATE, (wave * 32768).tolist())
    expected = np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
    found = Frontend().fbank(torch.from_numpy(wave)[None])[0].numpy()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=2e-3 if "tone" in name else 3e-4)


@pytest.mark.parametrize("frames", [1, 2, 3, 6, 7, 12, 13, 40])
def test_stacks_are_funasrs(frames: int) -> None:
    fbank = np.random.default_rng(frames).standard_normal((frames, 80))
    front = Frontend()
    padded = torch.from_numpy(np.concatenate((fbank, np.full((9, 80), np.nan))))[None]
    stacks, counts = front.stack(padded, torch.tensor([frames]))
    expected = stacked(fbank)
    assert counts.tolist() == [len(expected)]
    np.testing.assert_array_equal(stacks[0, : len(expected)].numpy(), expected)


def test_padding_and_neighbours_do_not_matter() -> None:
    front = Frontend()
    front.shift.normal_()
    front.scale.uniform_(0.5, 2)
    wave = torch.from_numpy(np.stack([sounds()["noise"], sounds()["full scale"]]))
    lengths = torch.tensor([20_111, 7_003])
    both, counts = front(wave, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, count = front(wave[row : row + 1, :length], torch.tensor([length]))
        assert counts[row] == count[0] == alone.shape[1]
        torch.testing.assert_close(both[row, : alone.shape[1]], alone[0], atol=1e-4, rtol=0)
        assert not both[row, alone.shape[1] :].any()


@pytest.mark.parametrize(
    ("samples", "frames"), [(0, 0), (160, 0), (399, 0), (400, 1), (559, 1), (560, 2)]
)
def test_the_shortest_sounds(samples: int, frames: int) -> None:
    assert frame_count(torch.tensor([samples])).tolist() == [frames]
    speech, counts = Frontend()(torch.zeros(1, samples), torch.tensor([samples]))
    assert counts.tolist() == [-(-frames // 6)] and torch.isfinite(speech).all()
