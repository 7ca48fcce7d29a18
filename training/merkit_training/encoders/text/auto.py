"""Any other decoder of transformers (Llama, Qwen3, Mistral, ...), as its checkpoint describes it.

Which language model is best for emotional words changes each year. This adapter takes whatever
`AutoModelForCausalLM` can build: the checkpoint's own config.json travels in the step's
configuration, so that a finished run needs neither the checkpoint nor a hub.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from merkit.errors import InvalidInputError
from merkit_training.encoders.pooling import attention_bias
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.encoders.text.decoder import Decoder


def sizes_of(config: Mapping[str, Any]) -> DecoderSizes:
    """The shape that a checkpoint's config.json states.

    Raises:
        InvalidInputError: transformers knows no language model of that kind.
    """
    built = _built(config)
    return DecoderSizes(
        architecture="auto",
        vocabulary=built.vocab_size,
        hidden=built.hidden_size,
        layers=built.num_hidden_layers,
        heads=built.num_attention_heads,
        head_dim=getattr(built, "head_dim", None) or built.hidden_size // built.num_attention_heads,
        tied=bool(built.tie_word_embeddings),
        published=json.dumps(dict(config), sort_keys=True),
    )


class AutoDecoder(Decoder):
    """A language model of transformers behind our interface."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        config = _config(json.loads(sizes.published))
        whole = AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
        self.model = whole.base_model
        self.tied = sizes.tied
        if not sizes.tied:
            self.lm_head = whole.get_output_embeddings()

    def embed(self, ids: Tensor) -> Tensor:
        """See Decoder."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def states(self, embeddings: Tensor, visible: Tensor) -> list[Tensor]:
        """See Decoder. The mask is handed over whole, so that none is built from values."""
        positions = torch.arange(visible.shape[1], device=visible.device).unsqueeze(0)
        causal = positions.transpose(0, 1) >= positions  # [query, key]
        found = self.model(
            inputs_embeds=embeddings,
            attention_mask=attention_bias(causal[None, None] & visible[:, None, None, :]),
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        )
        return [*found.hidden_states[1:-1], found.last_hidden_state]

    def logits(self, states: Tensor) -> Tensor:
        """See Decoder."""
        head = self.model.get_input_embeddings() if self.tied else self.lm_head
        return nn.functional.linear(states, head.weight, getattr(head, "bias", None))


def _config(published: Mapping[str, Any]) -> Any:
    plain = {k: v for k, v in published.items() if k not in ("auto_map", "quantization_config")}
    return AutoConfig.for_model(**{**plain, "model_type": str(published.get("model_type"))})


def _built(published: Mapping[str, Any]) -> Any:
    """The configuration, once transformers has built a model from it, on no device."""
    try:
        config = _config(published)
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)
        return config.get_text_config()
    except Exception as error:  # transformers raises many types for what it does not know
        raise InvalidInputError(
            f"transformers builds no language model of model_type "
            f"{published.get('model_type')!r} "
            f"({type(error).__name__}: {(str(error).strip() or '-').splitlines()[0]})",
            "config.json of a causal language model",
            "check the checkpoint; models with code of their own are not run",
        ) from None
