"""Published encoders of sound: wav2vec 2.0, HuBERT, WavLM and their kin, and Whisper's encoder.

The layers' mean (or MERTools' sum) over the last four, the last one as published, after its norm;
then the mean over the time that the sound fills. Models whose first layer norms over time change
with padding, mask or not (up to 59 % measured), as do those with convolutions between layers, so
these are given only clips of one length at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merkit.contract import Preprocessing
from merkit.steps.base import padded
from merkit_training.encoders.baselines.checkpoint import Opened, processor
from merkit_training.encoders.pooling import combined, length_mask, masked_mean
from merkit_training.features.extractor import Extractor, Feature
from merkit_training.features.material import Material

PADDING_PROOF = ("hubert", "unispeech-sat", "wav2vec2", "wavlm")
"""Types that, in their large style and with a mask, do not see padding; measured."""


class SoundBaseline(Extractor):
    """A model of waveforms, or Whisper's of spectra."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.processor = processor(opened, "AutoFeatureExtractor")
        self.whisper = opened.config.model_type == "whisper"
        p = Preprocessing()
        longest = p.max_audio_seconds
        if self.whisper:
            longest = min(longest, self.processor.n_samples / self.processor.sampling_rate)
        rate = int(self.processor.sampling_rate)
        self.preprocessing = replace(p, sample_rate=rate, max_audio_seconds=longest)
        self.name, self.identity = opened.name, opened.identity
        self.reads = frozenset({"audio"})
        self.width = int(opened.config.hidden_size)
        layer_norm = getattr(opened.config, "feat_extract_norm", "group") == "layer"
        proof = layer_norm and opened.config.model_type in PADDING_PROOF
        self.padding = 0.25 if proof else 0.0

    def length(self, material: Material) -> int:
        """Samples; Whisper's window is the same for all."""
        return 1 if self.whisper else len(material.waveform)

    @torch.inference_mode()
    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        """See Extractor."""
        waves = [m.waveform for m in materials]
        states, counts = self._spectra(waves) if self.whisper else self._waves(waves)
        together = combined(states, self.opened.spec.layers).float()
        mask = length_mask(counts, together.shape[1])
        means = masked_mean(together, mask).cpu().numpy()
        series = together.cpu().numpy()
        kept = zip(means, series, counts[:, 0].tolist(), strict=True)
        return [
            Feature(mean, over_time[:count].copy() if frames else None) if count else None
            for mean, over_time, count in kept
        ]

    def _waves(self, waves: Sequence[NDArray[np.float32]]) -> tuple[list[Tensor], Tensor]:
        rate = self.preprocessing.sample_rate
        normed = [self.processor(w, sampling_rate=rate)["input_values"][0] for w in waves]
        values = torch.from_numpy(padded([np.asarray(w, np.float32) for w in normed]))
        samples = torch.tensor([[len(w)] for w in waves])
        mask = length_mask(samples, values.shape[1]).long()
        send, model = self.opened.send, self.opened.model
        # without padding no mask: what was trained without one must not be given one
        shown = send(mask) if self.padding else None
        out = model(send(values), attention_mask=shown, output_hidden_states=True)
        counts = model._get_feat_extract_output_lengths(samples).clamp(min=0)
        return [*out.hidden_states[1:-1], out.last_hidden_state], send(counts)

    def _spectra(self, waves: Sequence[NDArray[np.float32]]) -> tuple[list[Tensor], Tensor]:
        rate = self.preprocessing.sample_rate
        made = self.processor(list(waves), sampling_rate=rate, return_tensors="pt")
        encoder = self.opened.model.get_encoder()
        out = encoder(self.opened.send(made["input_features"]), output_hidden_states=True)
        step = 2 * self.processor.hop_length  # its second convolution halves the rate
        counts = torch.tensor([[-(-len(w) // step)] for w in waves])
        last: Tensor = out.last_hidden_state
        counts = counts.clamp(max=last.shape[1])
        return [*out.hidden_states[1:-1], last], self.opened.send(counts)
