"""The `preprocess` step: raw faces and sound to what every encoder reads, as one tensor graph.

Preprocessing that differs between training and serving is the commonest cause of silent failure
in deployment. So training calls this module, and its export is the very file that both backends
run. The spectrum is a convolution, because the STFT operator falls back to the CPU elsewhere.

No branch depends on data: no faces, no sound and no words are zero-length or masked tensors.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.audio_utils import mel_filter_bank

from merkit.contract import Heard, Preprocessing
from merkit_training.runs import read_json
from merkit_training.settings import from_table
from merkit_training.speech.hearing.config import HearingConfig

WAVE_VARIANCE_FLOOR = 1e-7  # HuBERT's feature extractor
MEL_FLOOR = 1e-10  # Whisper's, as are the next two
MEL_DYNAMIC_RANGE = 8.0  # decades below the clip's loudest bin
MEL_CENTRE, MEL_SCALE = 4.0, 4.0


class Preprocess(nn.Module):
    """Faces to a grid image, sound to a z-normed waveform and Whisper's log-mel, and presence.

    Args:
        preprocessing: the contract's constants.
        audio_hears: whether `audio_values` are of the sound as it came or as it was cleaned.
        joint_hears: the same of `log_mel`.
    """

    def __init__(
        self,
        preprocessing: Preprocessing | None = None,
        audio_hears: Heard = "original",
        joint_hears: Heard = "original",
    ) -> None:
        super().__init__()
        self.audio_hears, self.joint_hears = audio_hears, joint_hears
        p = preprocessing or Preprocessing()
        self.faces = FaceGrid(p)
        self.sound = SoundNorm(p)
        self.mel = LogMel(p)
        self.min_samples = round(p.min_audio_seconds * p.sample_rate)
        self.min_power = 10 ** (p.silence_dbfs / 10)

    def forward(
        self,
        face_crops: Tensor,
        face_count: Tensor,
        waveform: Tensor,
        waveform_length: Tensor,
        text_length: Tensor,
        cleaned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The step's tensors, in the contract's order (`merkit.pipeline.standard_contract`).

        Args:
            face_crops: uint8 [b, f, side, side, 3] RGB in time order, right padded; f may be 0.
            face_count: int64 [b, 1].
            waveform: float32 [b, s], 16 kHz mono in -1..1, right padded; s may be 0.
            waveform_length: int64 [b, 1], samples.
            text_length: int64 [b, 1], tokens; 0 means no words.
            cleaned: float32 [b, s], what is heard where an encoder hears cleaned sound; None: the
                waveform. Whether there is sound at all, the waveform decides.

        Returns:
            face_grid float32 [b, 3, 2 side, 2 side], audio_values float32 [b, n] with
            n = max(s, min_samples), audio_length int64 [b, 1], log_mel float32
            [b, mels, frames], and presence bool [b, 3] in the order of
            `merkit.contract.MODALITIES`. What padding holds has no influence.
        """
        face_count = face_count.clamp(min=0)
        audio_values, valid, power = self.sound(waveform, waveform_length)
        cleaned = waveform if cleaned is None else cleaned
        if self.audio_hears == "cleaned":
            audio_values = self.sound(cleaned, waveform_length)[0]
        audible = (waveform_length >= self.min_samples) & (power >= self.min_power)
        presence = torch.cat((face_count > 0, audible, text_length > 0), dim=1)
        heard = cleaned if self.joint_hears == "cleaned" else waveform
        log_mel = self.mel(heard, waveform_length)
        grid, audio_length = self.faces(face_crops, face_count), valid.sum(1, keepdim=True)
        return grid, audio_values, audio_length, log_mel, presence


class FaceGrid(nn.Module):
    """Single face and multi-frame image in one (seed Fig. 2): one face fills every tile."""

    def __init__(self, p: Preprocessing) -> None:
        super().__init__()
        self.grid, self.size = p.grid, p.face_size
        self.register_buffer("mean", 255 * torch.tensor(p.face_mean).view(1, 3, 1, 1), False)
        self.register_buffer("std", 255 * torch.tensor(p.face_std).view(1, 3, 1, 1), False)
        self.mean: Tensor
        self.std: Tensor

    def forward(self, face_crops: Tensor, face_count: Tensor) -> Tensor:
        """float32 [b, 3, grid*side, grid*side], normalised; zeros where there is no face.

        Tile i, in time order row by row, shows face floor((i + 0.5) * count / tiles).
        """
        batch, faces = face_crops.shape[:2]
        tiles = self.grid**2
        blank = face_crops.new_zeros(batch, 1, self.size, self.size, 3)
        flat = torch.cat((face_crops, blank), dim=1).flatten(2).flatten(0, 1)
        odd = 2 * torch.arange(tiles, device=face_crops.device) + 1
        chosen = torch.minimum(odd * face_count // (2 * tiles), face_count.new_full((), faces))
        rows = torch.arange(batch, device=face_crops.device)[:, None] * (faces + 1)
        picked = flat.index_select(0, (rows + chosen).flatten())
        image = picked.view(batch, self.grid, self.grid, self.size, self.size, 3)
        image = image.permute(0, 5, 1, 3, 2, 4)  # [b, colour, tile row, y, tile column, x]
        side = self.grid * self.size
        normal = (image.reshape(batch, 3, side, side).float() - self.mean) / self.std
        return torch.where((face_count > 0)[:, :, None, None], normal, torch.zeros_like(normal))


class SoundNorm(nn.Module):
    """Waveform to zero mean and unit variance over its valid part (HuBERT, seed 2.2.2)."""

    def __init__(self, p: Preprocessing) -> None:
        super().__init__()
        self.min_samples = round(p.min_audio_seconds * p.sample_rate)

    def forward(self, waveform: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Values float32 [b, n] and mask int64 [b, n], n = max(s, min_samples), and the mean
        power float32 [b, 1] of the valid part (0 where there is none)."""
        samples = torch.sym_max(waveform.shape[1], self.min_samples)  # type: ignore[no-untyped-call]
        padded = F.pad(waveform, (0, samples - waveform.shape[1]))
        valid = torch.arange(samples, device=waveform.device) < length
        zeros = torch.zeros_like(padded)
        wave = torch.where(valid, padded, zeros)
        count = valid.sum(1, keepdim=True).clamp(min=1).float()
        power = wave.square().sum(1, keepdim=True) / count
        centred = torch.where(valid, wave - wave.sum(1, keepdim=True) / count, zeros)
        variance = centred.square().sum(1, keepdim=True) / count
        return centred * torch.rsqrt(variance + WAVE_VARIANCE_FLOOR), valid.long(), power


class LogMel(nn.Module):
    """Whisper's log-mel of the middle window of a clip, zero-padded where it is shorter."""

    def __init__(self, p: Preprocessing) -> None:
        super().__init__()
        self.window = round(p.joint_window_seconds * p.sample_rate)
        self.fft, self.hop = p.sample_rate // 40, p.sample_rate // 100  # 25 ms, 10 ms
        bins = self.fft // 2 + 1
        angle = 2 * math.pi * torch.arange(bins)[:, None] * torch.arange(self.fft) / self.fft
        angle = angle.double()
        waves = torch.cat((angle.cos(), angle.sin())) * torch.hann_window(self.fft).double()
        filters = mel_filter_bank(
            bins, p.mel_bins, 0.0, p.sample_rate / 2, p.sample_rate, norm="slaney",
            mel_scale="slaney",
        )  # fmt: skip
        self.register_buffer("waves", waves.float()[:, None], False)  # [2 bins, 1, fft]
        self.register_buffer("filters", torch.tensor(filters.T, dtype=torch.float32), False)
        self.waves: Tensor
        self.filters: Tensor  # [mels, bins]

    def forward(self, waveform: Tensor, length: Tensor) -> Tensor:
        """float32 [b, mels, frames]; the same as WhisperFeatureExtractor's with a chunk of
        `joint_window_seconds`."""
        start = (length - self.window).clamp(min=0) // 2
        at = start + torch.arange(self.window, device=waveform.device)  # [b, window]
        chunk = F.pad(waveform, (0, self.window)).gather(1, at)
        chunk = torch.where(at < length, chunk, torch.zeros_like(chunk))
        padded = F.pad(chunk[:, None], (self.fft // 2, self.fft // 2), mode="reflect")
        spectrum = F.conv1d(padded, self.waves, stride=self.hop)[..., :-1]  # Whisper drops one
        real, imaginary = spectrum.chunk(2, dim=1)
        mel = self.filters @ (real.square() + imaginary.square())
        log = mel.clamp(min=MEL_FLOOR).log10()
        loudest = log.amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log, loudest - MEL_DYNAMIC_RANGE) + MEL_CENTRE) / MEL_SCALE


def load(run: Path) -> Preprocess:
    """The step as the run's recipe configures it."""
    recipe = read_json(run / "recipe.json")
    p = from_table(Preprocessing, recipe.get("preprocessing", {}), "recipe.json [preprocessing]")
    hearing = from_table(HearingConfig, recipe.get("hearing", {}), "recipe.json [hearing]")
    return Preprocess(p, hearing.audio_hears, hearing.joint_hears)
