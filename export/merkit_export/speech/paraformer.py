"""The recogniser as ONNX in FunASR's layout, which takes features; our own step takes sound.

funasr-onnx and sherpa-onnx run Paraformer from files whose input is normalised stacks of frames.
Users of either can take a recogniser trained here, and our graph can be timed beside theirs; they
compute features in C++, ours are in the graph.

sherpa-onnx reads no token count: it takes every row of the output up to `</s>`. So rows behind a
sound's last token say `</s>` (`Paraformer.forward`). Version 2.0 hears what we hear; older ones do
not repeat the first three frames, and leave out a last stack that lacks frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from torch import Tensor, nn

from merkit import __version__
from merkit.contract import Contract, Preprocessing, StepSpec, TensorSpec
from merkit.speech.vocabulary import Vocabulary
from merkit_export.graphs import export_step
from merkit_export.storage import save
from merkit_training.runs import write_bytes
from merkit_training.speech.recognition.checkpoint import write_facts
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.model import Paraformer, Recognizer

MODEL, TOKENS_TXT = "model.onnx", "tokens.txt"
FUNASR = StepSpec("paraformer", "onnx", ("speech", "speech_lengths"), ("logits", "token_num"))


class FunasrGraph(nn.Module):
    """Paraformer with FunASR's tensors: lengths and counts are int32 [b]."""

    def __init__(self, model: Paraformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, speech: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """logits (log-probabilities) float32 [b, n, vocabulary] and token_num int32 [b]."""
        logs, counts = self.model(speech, speech_lengths.long())
        return logs, counts.int()


def funasr_graph(
    recognizer: Recognizer, config: RecognizerConfig, vocabulary: Vocabulary
) -> onnx.ModelProto:
    """FunASR's layout, with the metadata that sherpa-onnx reads; MerkitError as above."""
    tensors = {
        "speech": TensorSpec("float32", ("batch", "inputs", config.inputs)),
        "speech_lengths": TensorSpec("int32", ("batch",)),
        "logits": TensorSpec("float32", ("batch", "tokens", len(vocabulary))),
        "token_num": TensorSpec("int32", ("batch",)),
    }
    speech = np.random.default_rng(0).standard_normal((2, 30, config.inputs)).astype(np.float32)
    example = {"speech": speech, "speech_lengths": np.array([30, 6], np.int32)}
    graph = FunasrGraph(recognizer.model)
    model = export_step(graph, FUNASR, _alone(FUNASR, tensors), example)
    front = recognizer.frontend
    helper.set_model_props(
        model,
        {
            "model_type": "paraformer",
            "version": "1",
            "model_author": f"merkit {__version__}",
            "vocab_size": str(len(vocabulary)),
            "lfr_window_size": str(config.stacked),
            "lfr_window_shift": str(config.hop),
            "neg_mean": ",".join(map(str, front.shift.tolist())),
            "inv_stddev": ",".join(map(str, front.scale.tolist())),
        },
    )
    return model


def write_model_folder(
    path: Path, recognizer: Recognizer, config: RecognizerConfig, vocabulary: Vocabulary
) -> Path:
    """Writes what funasr-onnx reads (model.onnx, config.yaml, am.mvn, tokens.json) and what
    sherpa-onnx does (model.onnx, tokens.txt); the model last. Returns the model's path.

    Raises:
        MerkitError: torch cannot export it.
    """
    model = funasr_graph(recognizer, config, vocabulary)
    write_facts(path, recognizer, config, vocabulary)
    lines = "".join(f"{token} {i}\n" for i, token in enumerate(vocabulary.tokens))
    write_bytes(path / TOKENS_TXT, lines.encode())
    save(model, path / MODEL)
    return path / MODEL


def _alone(step: StepSpec, tensors: dict[str, TensorSpec]) -> Contract:
    """A contract of nothing but one step, whose graph belongs to no bundle."""
    return Contract((), (), (), Preprocessing(), tensors, (step,))
