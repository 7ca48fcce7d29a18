"""The language model that the text encoder and the joint encoder share: a Qwen3 decoder.

transformers builds masks and caches in ways that depend on the inputs' values, which an exported
graph cannot. So the layers are transformers' own (and so are the weights' names), while masks,
positions and the collection of layers are written out here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from merkit_training.encoders.pooling import attention_bias
from merkit_training.encoders.text.config import TextConfig

MAX_POSITIONS = 2048


class Decoder(nn.Module):
    """Causal transformer over embeddings, with tied input and output embeddings."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.model = Qwen3Model(
            Qwen3Config(
                vocab_size=config.vocabulary,
                hidden_size=config.hidden,
                intermediate_size=config.intermediate,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                head_dim=config.hidden // config.heads,
                max_position_embeddings=MAX_POSITIONS,
                attn_implementation="eager",
            )
        )

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [batch, tokens] -> [batch, tokens, hidden]."""
        embedded: Tensor = self.model.embed_tokens(ids)
        return embedded

    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """Each layer's output, the last one normed.

        Args:
            embeddings: [batch, time, hidden].
            visible: bool [batch, time]; no position attends to one that is not visible.
        """
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
        """Scores of the next token: [..., hidden] -> [..., vocabulary]."""
        weight: Tensor = self.model.embed_tokens.weight
        return states @ weight.T
