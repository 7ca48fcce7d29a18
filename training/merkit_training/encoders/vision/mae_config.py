"""How the face transformer is pre-trained, readable without importing torch.

The transformer itself is [face_encoder]'s: only its decoder, which pre-training alone uses, has
sizes here, so that the two tables cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass

from merkit_training.settings import Amount, Count, Natural, Share, divides


@dataclass(frozen=True)
class MaeConfig:
    """Masked autoencoding (He et al. 2022) of face images, from scratch (seed 2.2.1, 3.2)."""

    epochs: Natural = 0  # 0: no pre-training
    checkpoint: str = ""  # a ViTMAE folder (or a hub's id) to go on from, with its decoder sizes
    sources: tuple[str, ...] = ()  # what `merkit-train gather` wrote, beside the corpus
    corpus: bool = True  # whether the corpus' own training faces are learnt from too
    side: Natural = 0  # of the image in pixels; 0: that of a face crop
    mask: Share = 0.75  # of the patches, hidden from the encoder
    decoder_hidden: Count = 64
    decoder_layers: Count = 2
    decoder_heads: Count = 4
    norm_pixels: bool = True  # each patch is to be told relative to its own mean and spread
    whitened: bool = True  # start from whitened patches, as the fine-tuning does without MAE
    least_area: Share = 0.5  # of the face that a random crop keeps at least
    batch_size: Count = 128
    accumulate: Count = 1  # batches summed up to one step of the optimiser
    lr: Amount = 1e-3  # peak rate
    weight_decay: Amount = 0.05
    warmup: Share = 0.05  # of all steps
    betas: tuple[Share, Share] = (0.9, 0.95)  # of AdamW
    bf16: bool = False  # train under bfloat16 autocast
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.decoder_hidden, self.decoder_heads)
        if self.decoder_hidden % 4:
            raise ValueError("decoder_hidden must be a multiple of 4, as sine positions are")
        if self.mask in (0, 1):
            raise ValueError("mask must lie between 0 and 1: something is hidden, something seen")
        if not self.least_area:
            raise ValueError("least_area must be above 0")
        if self.checkpoint and not self.epochs:
            raise ValueError("a checkpoint to take as it is belongs into [face_encoder]")
        if not self.corpus and not self.sources and self.epochs:
            raise ValueError("there is nothing to learn from: give sources, or set corpus")
