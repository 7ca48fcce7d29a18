"""Baichuan-13B, the seed's language model (2.2.3), which transformers never took in.

Its remote code builds a mask for the longest sequence once and keeps it, which no graph of dynamic
size can; and its projections are fused. Here the weights keep their published names and shapes
(`W_pack` is query, key and value in one), and ALiBi's bias is computed from the positions at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training.encoders.pooling import MASK_FILL
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.encoders.text.decoder import Decoder

INIT_STD = 0.02


def sizes_of(config: Mapping[str, Any]) -> DecoderSizes:
    """The shape that a checkpoint's config.json states.

    Raises:
        InvalidInputError: a key is missing, or it is one of the 7B models, which have rotary
            positions in ALiBi's place.
    """
    if "max_position_embeddings" in config:
        raise InvalidInputError(
            "the checkpoint's config.json states max_position_embeddings: a Baichuan-7B",
            "a Baichuan with ALiBi (13B, of the first or second series)",
            "for a 7B, convert the checkpoint to Llama's layout",
        )
    try:
        return DecoderSizes(
            architecture="baichuan",
            vocabulary=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            intermediate=config["intermediate_size"],
            positions=config["model_max_length"],
            norm_eps=config["rms_norm_eps"],
            tied=bool(config.get("tie_word_embeddings", False)),
            normed_head="z_loss_weight" in config,  # stated by the second series alone
        )
    except KeyError as error:
        raise InvalidInputError(
            f"the checkpoint's config.json lacks {error}", "the configuration of a Baichuan-13B"
        ) from None


def slopes(heads: int) -> list[float]:
    """ALiBi's slope of each head: 2^(-8/n), 2^(-16/n), ... for n heads.

    Where n is no power of two, the slopes of the power of two below come first; the rest are
    every other one of those for twice that power.
    """
    power = 2 ** math.floor(math.log2(heads))
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    if power == heads:
        return first
    return first + slopes(2 * power)[0::2][: heads - power]


class RMSNorm(nn.Module):
    """Scales each vector to unit mean square, then by a learnt gain."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] -> the same; computed in float32."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)


class Attention(nn.Module):
    """Self-attention with a bias in place of positions."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.W_pack = nn.Linear(sizes.hidden, 3 * sizes.hidden, bias=False)
        self.o_proj = nn.Linear(sizes.hidden, sizes.hidden, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """[batch, time, hidden] with bias [batch, heads, time, time] -> [batch, time, hidden]."""
        packed = self.W_pack(x).unflatten(-1, (3, self.heads, -1))
        query, key, value = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1]) + bias
        weights = scores.float().softmax(-1).to(value.dtype)
        mixed: Tensor = self.o_proj((weights @ value).transpose(1, 2).flatten(2))
        return mixed


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        gated: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return gated


class Layer(nn.Module):
    """Attention and MLP, each normed before and added."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = GatedMLP(sizes)
        self.input_layernorm = RMSNorm(sizes.hidden, sizes.norm_eps)
        self.post_attention_layernorm = RMSNorm(sizes.hidden, sizes.norm_eps)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """See Attention."""
        x = x + self.self_attn(self.input_layernorm(x), bias)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Stack(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = RMSNorm(sizes.hidden, sizes.norm_eps)


class BaichuanDecoder(Decoder):
    """Baichuan-13B, or Baichuan2-13B with `normed_head`."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.slopes, self.normed_head = slopes(sizes.heads), sizes.normed_head
        self.model = Stack(sizes)
        if not sizes.tied:
            self.lm_head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        self.tied = sizes.tied
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    def embed(self, ids: Tensor) -> Tensor:
        """See Decoder."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """See Decoder."""
        bias = self._bias(visible).to(embeddings.dtype)
        states, hidden = [], embeddings
        for layer in self.model.layers:
            hidden = layer(hidden, bias)
            states.append(hidden)
        states[-1] = self.model.norm(hidden)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """See Decoder."""
        weight = (self.model.embed_tokens if self.tied else self.lm_head).weight
        return F.linear(states, F.normalize(weight) if self.normed_head else weight)

    def _bias(self, visible: Tensor) -> Tensor:
        """Float32 [batch, heads, query, key]: nearer keys weigh more, later ones nothing."""
        positions = torch.arange(visible.shape[1], device=visible.device)
        distance = positions[None, :] - positions[:, None]  # [query, key], 0 and less
        steep = torch.tensor(self.slopes, device=visible.device)[:, None, None]
        allowed = (distance <= 0) & visible[:, None, None, :]
        return torch.where(allowed, steep * distance, MASK_FILL)
