"""The language model that the text encoder and the joint encoder share, behind one interface.

The seed's two models (Baichuan for words, Qwen for sound and words) are no longer in transformers,
and what is there builds masks and caches in ways that an exported graph cannot. So an encoder
asks a `Decoder` for three things only: embeddings, each layer's output, scores of the next token.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module

from torch import Tensor, nn

from merkit_training.encoders.text.config import Architecture, DecoderSizes

MAKERS: dict[Architecture, str] = {
    "qwen3": "merkit_training.encoders.text.rotary:RotaryDecoder",
    "qwen2": "merkit_training.encoders.text.rotary:RotaryDecoder",
    "llama": "merkit_training.encoders.text.rotary:RotaryDecoder",
    "baichuan": "merkit_training.encoders.text.baichuan:BaichuanDecoder",
    "qwen": "merkit_training.encoders.joint.qwen:QwenDecoder",
    "auto": "merkit_training.encoders.text.auto:AutoDecoder",
}
"""`module:class` of each architecture; imported when one is asked for."""


class Decoder(nn.Module):
    """A causal transformer over embeddings."""

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """int64 [batch, tokens] -> [batch, tokens, hidden]."""

    @abstractmethod
    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """Each layer's output, the last one normed.

        Args:
            embeddings: [batch, time, hidden].
            visible: bool [batch, time]; no position attends to one that is not visible.
        """

    @abstractmethod
    def logits(self, states: Tensor) -> Tensor:
        """Scores of the next token: [..., hidden] -> [..., vocabulary]."""


def make_decoder(sizes: DecoderSizes) -> Decoder:
    """A decoder of the given shape at random weights."""
    module, _, name = MAKERS[sizes.architecture].partition(":")
    made: Decoder = getattr(import_module(module), name)(sizes)
    return made
