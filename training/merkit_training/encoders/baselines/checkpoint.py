"""A published checkpoint, opened: which kind of model, its weights, and what identifies it.

transformers gives weights that a file lacks random values, and warns. Here that is an error, for
a random encoder yields features that look like any other.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merkit.bundle import sha256_file
from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.features.extractor import EncoderSpec, Kind

VIDEO_TYPES = ("timesformer", "videomae", "vivit")
SPOKEN_TYPES = (
    "data2vec-audio", "hubert", "unispeech", "unispeech-sat", "wav2vec2", "wav2vec2-conformer",
    "wavlm", "whisper",
)  # fmt: skip
WEIGHTS = (".safetensors", ".bin")
TOKENIZERS = (
    "tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model",
)  # fmt: skip
PREPROCESSOR = "preprocessor_config.json"
SPARE = re.compile(r"(^|\.)(pooler\.|masked_spec_embed$|position_ids$)")
"""Weights that pooling here never reads, so that a checkpoint may lack them."""
SUPPORTED = (
    "pictures (a model_type with an image processor, such as clip, dinov2, vit), video "
    f"({', '.join(VIDEO_TYPES)}), sound ({', '.join(SPOKEN_TYPES)}), and words (a model_type of "
    "AutoModel with its tokeniser beside it, such as roberta, bert, qwen3, llama)"
)


@dataclass(frozen=True)
class Opened:
    """A checkpoint's model in eval mode, and where its processor files lie."""

    folder: Path
    name: str
    kind: Kind
    model: Any
    identity: str
    spec: EncoderSpec

    @property
    def config(self) -> Any:
        """transformers' configuration."""
        return self.model.config

    def send(self, tensor: Tensor) -> Tensor:
        """The tensor where the model is, and, if it holds fractions, in its number format."""
        moved = tensor.to(self.model.device)
        return moved.to(self.model.dtype) if tensor.is_floating_point() else moved


def open_baseline(spec: EncoderSpec) -> Opened:
    """Finds, recognises and loads a checkpoint; errors as `make_baseline`."""
    from merkit_training.checkpoints import open_checkpoint

    try:
        checkpoint = open_checkpoint(spec.source, hub=spec.hub)
    except BundleNotFoundError as error:
        raise BundleNotFoundError(
            f"{spec.source!r} is no encoder: {error.found}",
            "RUN:step of a trained run, or a folder with config.json and weights",
            "correct it, or give --hub to fetch an id such as openai/clip-vit-large-patch14",
        ) from None
    folder = checkpoint.folder
    kind = kind_of(checkpoint.config, folder)
    if spec.kind not in (None, kind):
        raise InvalidInputError(
            f"{spec.source} is an encoder of {kind}", f"one of {spec.kind}", "leave out --as"
        )
    name = Path(spec.source).resolve().name if Path(spec.source).is_dir() else spec.source
    model = _load(folder, spec)
    identity = f"{_identity(folder)} layers={spec.layers} bf16={spec.bf16}"
    return Opened(folder, name.rpartition("/")[2], kind, model, identity, spec)


def kind_of(config: dict[str, Any], folder: Path) -> Kind:
    """What a model reads, by the `model_type` of its config.json and the files beside it.

    Raises:
        InvalidInputError: a kind that is not supported; lists those that are.
    """
    from transformers.models.auto.feature_extraction_auto import FEATURE_EXTRACTOR_MAPPING_NAMES
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    model = str(config.get("model_type", ""))
    known = model in MODEL_MAPPING_NAMES
    if known and model in VIDEO_TYPES:
        return "video"
    if known and model in SPOKEN_TYPES:
        return "audio"
    sees = model in IMAGE_PROCESSOR_MAPPING_NAMES or "vision" in model
    if known and sees and (folder / PREPROCESSOR).is_file():
        return "vision"
    if known and not sees and any((folder / name).is_file() for name in TOKENIZERS):
        return "text"
    why = f" without {PREPROCESSOR if sees else 'a tokeniser'}"
    if not known:
        why = ", which transformers does not know"
    elif model in FEATURE_EXTRACTOR_MAPPING_NAMES:
        why = ", whose sound features are not read here"
    raise InvalidInputError(
        f"{folder.name} holds a model of type {model!r}{why}",
        SUPPORTED,
        "add the files that were published with it, or choose another model",
    )


def processor(opened: Opened, auto: str, **options: Any) -> Any:
    """The image processor, feature extractor or tokeniser beside the weights.

    Args:
        opened: the checkpoint.
        auto: transformers' class that finds it.
        options: of its `from_pretrained`.
    """
    import transformers

    try:
        return getattr(transformers, auto).from_pretrained(
            opened.folder, local_files_only=True, **options
        )
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and others
        raise BundleCorruptError(
            f"{opened.folder} has no readable files for {auto} ({_first_line(error)})",
            "the processor or tokeniser files that were published with the weights",
            "fetch the whole checkpoint",
        ) from None


def _load(folder: Path, spec: EncoderSpec) -> Any:
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    dtype = torch.bfloat16 if spec.bf16 else torch.float32
    try:
        model, loaded = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            dtype=dtype,
        )
    except Exception as error:  # transformers raises RuntimeError, OSError, SafetensorError, ...
        raise BundleCorruptError(
            f"the weights in {folder} do not load ({_first_line(error)})",
            "weights of the shapes that config.json states",
            "fetch an unchanged copy of the checkpoint",
        ) from None
    if mismatched := sorted(loaded["mismatched_keys"]):
        key, found, expected = mismatched[0]
        raise BundleCorruptError(
            f"{key!r} in {folder} has the shape {tuple(found)}",
            f"{tuple(expected)}, by its config.json",
            "fetch an unchanged copy of the checkpoint",
        )
    if missing := sorted(key for key in loaded["missing_keys"] if not SPARE.search(key)):
        raise BundleCorruptError(
            f"{folder} lacks the weight {missing[0]!r} and {len(missing) - 1} more",
            f"all weights of {type(model).__name__}",
            "fetch the whole checkpoint; an encoder is never completed with random weights",
        )
    return model.to(spec.device).eval().requires_grad_(False)


def _identity(folder: Path) -> str:
    """A hash of the weights and of the files that say how to use them."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [p for p in files if p.suffix == WEIGHTS[0]] or [
        p for p in files if p.suffix == WEIGHTS[1]
    ]
    small = [p for p in files if p.suffix in (".json", ".txt", ".model")]
    told = "".join(f"{path.name} {sha256_file(path)}\n" for path in weights + small)
    return hashlib.sha256(told.encode()).hexdigest()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = next((line for line in lines if "mismatch" in line.lower()), lines[0] if lines else "")
    return f"{type(error).__name__}: {told[:300]}"
