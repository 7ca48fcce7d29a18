"""The start that pre-training gives a face encoder.

Pre-training and fine-tuning are stages of their own, so that many fine-tunings share one
pre-training; this is the one place where the first hands over to the second.
"""

from __future__ import annotations

from pathlib import Path

from merkit_training.checkpoints import Checkpoint, LoadReport, Target, load_into, open_checkpoint
from merkit_training.encoders.vision.encoder import POSITIONS, FaceEncoder
from merkit_training.encoders.vision.mae import our_key, resized_positions
from merkit_training.runs import MODEL

STAGE = "face_pretraining"
ASIDE = ("decoder.", "pooler.", "classifier.")  # what reading features has no use for


def start_encoder(encoder: FaceEncoder, run: Path) -> bool:
    """Loads what `face_pretraining` learnt into a face encoder.

    Args:
        encoder: of one face's side, changed in place; positions of another side are interpolated.
        run: the run folder.

    Returns:
        False where there is nothing to start from: the stage was skipped, or the encoder is no
        plain ViT.

    Raises:
        InvalidInputError: the pre-trained encoder has other sizes, by name.
        BundleCorruptError: its files are damaged.
    """
    folder = run / STAGE
    if encoder.config.architecture != "vit" or not (folder / MODEL).is_file():
        return False
    load_vit(encoder, open_checkpoint(str(folder)))
    return True


def load_vit(encoder: FaceEncoder, checkpoint: Checkpoint) -> LoadReport:
    """Fills a face encoder from a ViT folder: ViTMAE's (`vit.*`, the decoder set aside), or
    ViT's with or without a head; positions of another side are interpolated."""
    count = encoder.backbone.get_parameter(POSITIONS).shape[1]

    def rename(name: str) -> Target:
        key = our_key(name).removeprefix("vit.")
        if key.startswith(ASIDE):
            return None
        if key == POSITIONS:
            return [(key, lambda table: resized_positions(table, count))]
        return key

    return load_into(encoder.backbone, checkpoint, rename)
