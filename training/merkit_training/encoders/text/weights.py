"""A language model's checkpoint, of whatever family: its shape, and its weights into a decoder.

Encoders of words and of sound and words both start from published language models. Which family
a folder holds stands in its config.json; everything that depends on the answer is here.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.checkpoints import Checkpoint, load_into
from merkit_training.encoders.text import auto, baichuan
from merkit_training.encoders.text.auto import AutoDecoder
from merkit_training.encoders.text.config import DecoderSizes, TextConfig
from merkit_training.encoders.text.decoder import Decoder
from merkit_training.settings import from_table

BUFFERS = (".inv_freq", ".masked_bias", ".logn_tensor")  # recomputed, though some files hold them
OWN = "decoder."  # before our names in the steps `text_pretraining` and `text_encoder`


def decoder_sizes(checkpoint: Checkpoint) -> DecoderSizes:
    """The shape that a checkpoint's config.json states.

    Baichuan, Qwen's first generation and our own steps are built here; the rest is transformers'.

    Raises:
        InvalidInputError: transformers builds no language model from it.
        BundleError: there is no config.json, or it is no JSON.
    """
    config = checkpoint.config
    if "architecture" in config:
        known = {field.name for field in fields(TextConfig)}
        where = str(checkpoint.folder / "config.json")
        return from_table(TextConfig, {k: v for k, v in config.items() if k in known}, where).sizes
    kind = config.get("model_type")
    if kind == "baichuan":
        return baichuan.sizes_of(config)
    if kind == "qwen":
        from merkit_training.encoders.joint.published import qwen_sizes

        return qwen_sizes(checkpoint)
    return auto.sizes_of(config)


def fill_decoder(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into a decoder of `decoder_sizes(checkpoint)`.

    Raises:
        InvalidInputError: a weight is missing, has another shape or no place; it is named.
        BundleError: a file is missing or damaged.
    """
    if isinstance(decoder, AutoDecoder) and "architecture" not in checkpoint.config:
        _fill_auto(decoder, checkpoint)
        return
    tied = not any(name.startswith("lm_head.") for name in decoder.state_dict())

    def rename(name: str) -> str | None:
        name = name.removeprefix(OWN).removeprefix("transformer.")
        set_aside = name.endswith(BUFFERS) or (tied and name == "lm_head.weight")
        return None if set_aside else name

    load_into(decoder, checkpoint, rename)


def _fill_auto(decoder: AutoDecoder, checkpoint: Checkpoint) -> None:
    """Through transformers' own loader, which knows each family's former spellings."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    folder, level = checkpoint.folder, logging.get_verbosity()
    logging.set_verbosity_error()  # what it reports is an error below
    try:
        whole, report = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except Exception as error:  # many types, for damaged files
        raise BundleCorruptError(
            f"{folder} cannot be loaded ({type(error).__name__}: {_first(error)})",
            "a checkpoint of a causal language model",
            "fetch it again",
        ) from None
    finally:
        logging.set_verbosity(level)
    _refuse_gaps(report, checkpoint)
    decoder.model.load_state_dict(whole.base_model.state_dict(), assign=True)
    if not decoder.tied:
        decoder.lm_head.load_state_dict(whole.get_output_embeddings().state_dict(), assign=True)
    decoder.requires_grad_(True)


def _refuse_gaps(report: Any, checkpoint: Checkpoint) -> None:
    folder = checkpoint.folder
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise InvalidInputError(
            f"{name!r} in {folder} has the shape {tuple(found)}",
            str(tuple(expected)),
            "check the sizes in its config.json",
        )
    for name in sorted(report["missing_keys"]):
        raise InvalidInputError(
            f"{folder} has nothing for {name!r}",
            "every weight of its architecture",
            "check that the checkpoint is complete",
        )
    for name in sorted(report["unexpected_keys"]):
        raise InvalidInputError(
            f"{folder} holds {name!r} of shape {checkpoint.shape(name)}, which has no place",
            "only the weights of its architecture",
            "check model_type in its config.json",
        )


def _first(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]
