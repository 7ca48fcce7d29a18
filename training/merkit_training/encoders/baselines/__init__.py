"""Published encoders for comparison (seed Tables 2-3): CLIP, VideoMAE, wav2vec 2.0, RoBERTa, any
other of transformers.

A comparison is worth what its preprocessing is worth. Each model is fed by the processor files in
its own checkpoint, and all are pooled by the same rules, so that what differs is the encoder.
"""

from __future__ import annotations

from merkit_training.encoders.baselines.checkpoint import open_baseline
from merkit_training.features.extractor import EncoderSpec, Extractor


def make_baseline(spec: EncoderSpec) -> Extractor:
    """The checkpoint `spec.source` as an extractor; its kind is what config.json says.

    Raises:
        BundleNotFoundError: no such checkpoint.
        BundleCorruptError: its files are damaged or incomplete.
        InvalidInputError: a kind of model that is not supported, or that is not `spec.kind`.
    """
    opened = open_baseline(spec)
    if opened.kind in ("vision", "video"):
        from merkit_training.encoders.baselines.pictures import PictureBaseline

        return PictureBaseline(opened)
    if opened.kind == "audio":
        from merkit_training.encoders.baselines.sound import SoundBaseline

        return SoundBaseline(opened)
    from merkit_training.encoders.baselines.words import WordBaseline

    return WordBaseline(opened)
