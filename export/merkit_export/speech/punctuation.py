"""The punctuator as ONNX in FunASR's layout, which funasr-onnx and sherpa-onnx run.

Both feed int32 and read words and marks from beside the graph (tokens.json, config.yaml) or from
its metadata.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from merkit import __version__
from merkit.contract import Contract, Preprocessing, StepSpec, TensorSpec
from merkit.errors import InvalidInputError
from merkit.speech.punctuate import UNKNOWN
from merkit_export.graphs import export_step
from merkit_export.storage import save
from merkit_training.speech.punctuation.checkpoint import PunctuationModel, write_facts

MODEL = "model.onnx"
SEPARATOR = "|"  # between words in the metadata
FUNASR = StepSpec("punctuator", "onnx", ("inputs", "text_lengths"), ("logits",))


def funasr_graph(known: PunctuationModel) -> onnx.ModelProto:
    """FunASR's layout, with the metadata that sherpa-onnx reads.

    Raises:
        InvalidInputError: a word holds what separates words there.
        MerkitError: torch cannot export it.
    """
    if any(SEPARATOR in word for word in known.tokens):
        raise InvalidInputError(f"a word holds {SEPARATOR!r}", "words without it", "remove it")
    tensors = {
        "inputs": TensorSpec("int32", ("batch", "words")),
        "text_lengths": TensorSpec("int32", ("batch",)),
        "logits": TensorSpec("float32", ("batch", "words", len(known.marks))),
    }
    example = {"inputs": _words(known), "text_lengths": np.array([7, 4], np.int32)}
    model = export_step(known.model, FUNASR, _alone(FUNASR, tensors), example)
    facts = {
        "model_type": "ct_transformer",
        "version": "1",
        "model_author": f"merkit {__version__}",
        "vocab_size": str(len(known.tokens)),
        "tokens": SEPARATOR.join(known.tokens),
        "punctuations": SEPARATOR.join(known.marks),
        "unk_symbol": UNKNOWN,
    }
    helper.set_model_props(model, facts)
    return model


def write_model_folder(path: Path, known: PunctuationModel) -> Path:
    """Writes what funasr-onnx reads (model.onnx, config.yaml, tokens.json) and sherpa-onnx does
    (model.onnx); the model last. Returns the model's path. Errors as of `funasr_graph`."""
    model = funasr_graph(known)
    write_facts(path, known)
    save(model, path / MODEL)
    return path / MODEL


def _words(known: PunctuationModel) -> np.ndarray:
    return (np.arange(14).reshape(2, 7) % len(known.tokens)).astype(np.int32)


def _alone(step: StepSpec, tensors: dict[str, TensorSpec]) -> Contract:
    """A contract of nothing but one step, whose graph belongs to no bundle."""
    return Contract((), (), (), Preprocessing(), tensors, (step,))
