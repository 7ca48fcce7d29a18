"""Sizes and schedule of the recogniser, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from merkit_training.settings import Amount, Count, Natural, Share, divides

SIZES = (
    "mels", "stacked", "hop", "hidden", "layers", "heads", "intermediate", "kernel", "shift",
    "decoder_layers", "decoder_attending", "decoder_heads", "decoder_intermediate",
    "decoder_kernel", "decoder_shift", "tail", "smooth", "noise_floor", "ctc", "end_counts",
)  # fmt: skip
"""The keys of `RecognizerConfig` that weights are made for; a FunASR folder states them."""


@dataclass(frozen=True)
class RecognizerConfig:
    """Paraformer (seed 2.4.1); FunASR's keys in brackets. The defaults are the tiny shape."""

    # A FunASR folder: config.yaml, am.mvn, tokens.json, model.pt. It then states vocabulary and
    # sizes: the keys from `mels` down to `end_counts` are ignored.
    checkpoint: str = ""
    mels: Count = 80  # [n_mels]
    stacked: Count = 7  # frames of 10 ms in one input [lfr_m]
    hop: Count = 6  # frames from one input to the next [lfr_n]
    hidden: Count = 128  # [output_size]
    layers: Count = 6  # of the encoder [num_blocks]
    heads: Count = 4
    intermediate: Count = 512  # [linear_units]
    kernel: Count = 11  # inputs that a memory spans [kernel_size]
    shift: Natural = 0  # [sanm_shfit]
    decoder_layers: Count = 3  # [num_blocks]
    decoder_attending: Count = 3  # those of them that listen to the encoder [att_layer_num]
    decoder_heads: Count = 4
    decoder_intermediate: Count = 512
    decoder_kernel: Count = 11
    decoder_shift: Natural = 0
    tail: Share = 0.45  # weight that the end of the sound counts for [tail_threshold]
    smooth: Amount = 1.0  # factor of the weights [smooth_factor]
    noise_floor: Amount = 0.0  # taken from the weights [noise_threshold]
    ctc: bool = True  # a CTC head on the encoder: it teaches, and offers decoding of its own
    end_counts: bool = True  # the end mark is a token to predict [predictor_bias]
    word_pieces: Natural = 300  # pieces of English words, learnt from the corpus; letters apart
    epochs: Natural = 0  # over the utterances; 0 without a checkpoint: no recogniser
    lr: Amount = 2e-3
    batch_size: Count = 32  # utterances, of like length
    dropout: Share = 0.1
    attention_dropout: Share = 0.0
    ctc_weight: Share = 0.3  # of CTC beside the decoder; as published: 0
    quantity_weight: Amount = 1.0  # of the number of tokens [predictor_weight]
    sampling: Share = 0.75  # of wrong tokens that training shows the decoder [sampling_ratio]
    label_smoothing: Share = 0.1  # [lsm_weight]
    hide_mels: Natural = 12  # widest band hidden in training [freq_mask_width_range]
    hide_inputs: Natural = 4  # longest stretch hidden in training [time_mask_width_range]
    # "": training hears the corpus as it is; "noise": what [noise] says of ambience, voices, rooms
    augment: Literal["", "noise"] = ""
    bf16: bool = False
    threads: Count = 2

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
        divides(self.hidden, self.decoder_heads)
        if self.mels * self.stacked % 2:
            raise ValueError(f"mels x stacked ({self.mels} x {self.stacked}) must be even")
        if not 1 <= self.decoder_attending <= self.decoder_layers:
            raise ValueError(
                f"decoder_attending ({self.decoder_attending}) must be at most decoder_layers"
                f" ({self.decoder_layers})"
            )
        for name in ("shift", "decoder_shift"):
            kernel = self.kernel if name == "shift" else self.decoder_kernel
            if getattr(self, name) > kernel // 2:
                raise ValueError(f"{name} ({getattr(self, name)}) is beyond its kernel")
        if self.ctc_weight > 0 and not self.ctc:
            raise ValueError("ctc_weight is set and there is no ctc head")

    @property
    def asked(self) -> bool:
        """Whether the recipe wants a recogniser: it trains one, or takes a checkpoint as it is."""
        return self.epochs > 0 or bool(self.checkpoint)

    def sized(self, sizes: dict[str, Any]) -> RecognizerConfig:
        """The same schedule with other sizes; without a CTC head there, CTC teaches nothing."""
        weight = self.ctc_weight if sizes.get("ctc", self.ctc) else 0.0
        return replace(self, **sizes, ctc_weight=weight)

    @property
    def inputs(self) -> int:
        """Width of one input of the encoder."""
        return self.mels * self.stacked


LARGE: dict[str, Any] = {
    "hidden": 512, "layers": 50, "heads": 4, "intermediate": 2048, "decoder_layers": 16,
    "decoder_attending": 16, "decoder_heads": 4, "decoder_intermediate": 2048, "ctc": False,
    "ctc_weight": 0.0,
}  # fmt: skip
"""Paraformer-large, as published."""
LARGE_TOKENS = 8404
"""Of its vocabulary."""
