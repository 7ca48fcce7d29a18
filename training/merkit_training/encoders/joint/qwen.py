"""The language model of Qwen-Audio, the seed's own (2.3): Qwen's first generation.

transformers does not have it, and the code beside its weights fails with current versions. So its
layers are written out here, under the names that its checkpoints use: fused `c_attn` with a bias,
no other biases, rotary positions over halves, and an MLP in which `w2` gates `w1`.

Two of its tricks act only on sequences longer than it was trained on (2048): rotary bases that
grow and attention scaled by the logarithm of the length. Ours are shorter, so they are left out.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merkit_training.encoders.pooling import attention_bias
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.encoders.text.decoder import Decoder

INIT_STD = 0.02  # of random weights, as published


class RmsNorm(nn.Module):
    """Root mean square normalisation, in float32 as published."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., width] -> the same."""
        exact = hidden.float()
        normed = exact * torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return normed.type_as(hidden) * self.weight


class Attention(nn.Module):
    """Self-attention with one fused projection."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.heads = sizes.heads
        self.c_attn = nn.Linear(sizes.hidden, 3 * sizes.hidden)
        self.c_proj = nn.Linear(sizes.hidden, sizes.hidden, bias=False)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """[batch, time, hidden] -> the same; `bias` is added to the scores."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.c_attn(hidden).chunk(3, dim=-1)
        )
        query, key = turned(query, rotary), turned(key, rotary)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + bias
        mixed = scores.softmax(-1).type_as(value) @ value
        out: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(2))
        return out


class Mlp(nn.Module):
    """The gated MLP: `w1` times silu of `w2`."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.w1 = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.w2 = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.c_proj = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[batch, time, hidden] -> the same."""
        out: Tensor = self.c_proj(self.w1(hidden) * F.silu(self.w2(hidden)))
        return out


class Block(nn.Module):
    """Attention and MLP, each normed before and added to what came in."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.ln_1 = RmsNorm(sizes.hidden, sizes.norm_eps)
        self.attn = Attention(sizes)
        self.ln_2 = RmsNorm(sizes.hidden, sizes.norm_eps)
        self.mlp = Mlp(sizes)

    def forward(self, hidden: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor) -> Tensor:
        """[batch, time, hidden] -> the same."""
        hidden = hidden + self.attn(self.ln_1(hidden), rotary, bias)
        out: Tensor = hidden + self.mlp(self.ln_2(hidden))
        return out


class QwenDecoder(Decoder):
    """Qwen's first generation; `sizes.intermediate` is the width that the MLP really has, half of
    the number in its config.json."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.wte = nn.Embedding(sizes.vocabulary, sizes.hidden)
        self.h = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.ln_f = RmsNorm(sizes.hidden, sizes.norm_eps)
        self.lm_head = None if sizes.tied else nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        self.theta, self.turns = sizes.rope_theta, sizes.hidden // sizes.heads // 2
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def embed(self, ids: Tensor) -> Tensor:
        """See Decoder."""
        embedded: Tensor = self.wte(ids)
        return embedded

    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """See Decoder."""
        positions = torch.arange(embeddings.shape[1], device=embeddings.device)
        causal = positions[:, None] >= positions
        bias = attention_bias(causal[None, None] & visible[:, None, None, :])
        rotary = self._rotary(positions)
        states, hidden = [], embeddings
        for block in self.h:
            hidden = block(hidden, rotary, bias)
            states.append(hidden)
        states[-1] = self.ln_f(hidden)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """See Decoder."""
        head = self.wte if self.lm_head is None else self.lm_head
        return F.linear(states, head.weight)

    def _rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [time, head width] of each position's angles."""
        steps = torch.arange(self.turns, device=positions.device) / self.turns
        angles = positions[:, None] * self.theta**-steps
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def turned(part: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Queries or keys [batch, heads, time, head width], turned by their positions' angles."""
    cos, sin = rotary
    first, second = part.chunk(2, dim=-1)
    exact = part.float() * cos + torch.cat((-second, first), dim=-1).float() * sin
    return exact.type_as(part)
