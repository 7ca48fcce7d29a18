"""Decoders with rotary positions, of Qwen3's, Qwen2's or Llama's layers: the small language models.

transformers builds masks and caches in ways that depend on the inputs' values, which an exported
graph cannot. So the layers are transformers' own (and so are the weights' names), while masks,
positions and the collection of layers are written out here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from merkit_training.encoders.pooling import attention_bias
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.encoders.text.decoder import Decoder

FAMILIES = {
    "qwen3": (Qwen3Config, Qwen3Model),
    "qwen2": (Qwen2Config, Qwen2Model),
    "llama": (LlamaConfig, LlamaModel),
}


class RotaryDecoder(Decoder):
    """Qwen3, Qwen2 or Llama."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        config, model = FAMILIES[sizes.architecture]
        self.model = model(
            config(
                vocab_size=sizes.vocabulary,
                hidden_size=sizes.hidden,
                intermediate_size=sizes.intermediate,
                num_hidden_layers=sizes.layers,
                num_attention_heads=sizes.heads,
                num_key_value_heads=sizes.kv_heads or sizes.heads,
                head_dim=sizes.head_dim or sizes.hidden // sizes.heads,
                max_position_embeddings=sizes.positions,
                rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
                rms_norm_eps=sizes.norm_eps,
                attn_implementation="eager",
            )
        )
        if not sizes.tied:
            self.lm_head = nn.Linear(sizes.hidden, sizes.vocabulary, bias=False)
        self.tied = sizes.tied

    def embed(self, ids: Tensor) -> Tensor:
        """See Decoder."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """See Decoder."""
        time = embeddings.shape[1]
        positions = torch.arange(time, device=embeddings.device).unsqueeze(0)
        causal = positions.transpose(0, 1) >= positions  # [query, key]
        bias = attention_bias(causal[None, None] & visible[:, None, None, :])
        rotary = self.model.rotary_emb(embeddings, positions)
        states, hidden = [], embeddings
        for layer in self.model.layers:
            hidden = layer(hidden, attention_mask=bias, position_embeddings=rotary)
            states.append(hidden)
        states[-1] = self.model.norm(hidden)
        return states

    def logits(self, states: Tensor) -> Tensor:
        """See Decoder."""
        head = self.model.embed_tokens if self.tied else self.lm_head
        return nn.functional.linear(states, head.weight)
