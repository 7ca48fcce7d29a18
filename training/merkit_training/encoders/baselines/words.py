"""Published encoders of words: RoBERTa and its kin, decoder-only LLMs, encoders of translators.

The mean (or MERTools' sum) over the last four layers, then the mean over the words' own tokens:
neither padding nor the marks that a tokeniser adds (<s>, [CLS], [SEP]) are averaged in, as in
MERTools.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from merkit.contract import Preprocessing
from merkit.steps.base import padded
from merkit_training.encoders.baselines.checkpoint import Opened, processor
from merkit_training.encoders.pooling import combined, masked_mean
from merkit_training.features.extractor import Extractor, Feature
from merkit_training.features.material import Material

MOST_TOKENS = 512
RESERVED = 2
"""Positions that RoBERTa keeps below its first one."""


class WordBaseline(Extractor):
    """A model of token ids."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.tokenizer = processor(opened, "AutoTokenizer")
        model = opened.model
        self.encoder: Any = model.get_encoder() if opened.config.is_encoder_decoder else model
        positions = getattr(opened.config, "max_position_embeddings", None) or MOST_TOKENS
        own = min(int(self.tokenizer.model_max_length), positions - RESERVED, MOST_TOKENS)
        self.preprocessing = replace(Preprocessing(), max_text_tokens=own)
        self.pad = self.tokenizer.pad_token_id or 0
        self.name, self.identity = opened.name, opened.identity
        self.reads = frozenset({"text"})
        self.width = int(opened.config.hidden_size)

    def length(self, material: Material) -> int:
        """Tokens, marks included."""
        return len(self._ids(material.text)[0])

    @torch.inference_mode()
    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        """See Extractor."""
        rows = [self._ids(m.text) for m in materials]
        ids = torch.from_numpy(padded([row for row, _ in rows], self.pad))
        valid = torch.from_numpy(padded([np.ones(len(row), np.int64) for row, _ in rows]))
        words = torch.from_numpy(padded([own for _, own in rows]))
        send = self.opened.send
        out = self.encoder(
            input_ids=send(ids), attention_mask=send(valid), output_hidden_states=True
        )
        states = [*out.hidden_states[1:-1], out.last_hidden_state]
        together = combined(states, self.opened.spec.layers).float()
        means = masked_mean(together, send(words)).cpu().numpy()
        series, kept = together.cpu().numpy(), words.numpy()
        return [
            Feature(mean, over_time[own] if frames else None) if own.any() else None
            for mean, over_time, own in zip(means, series, kept, strict=True)
        ]

    def _ids(self, text: str) -> tuple[Any, Any]:
        """Token ids int64 [n] and which of them are words bool [n]."""
        made = self.tokenizer(
            text,
            truncation=True,
            max_length=self.preprocessing.max_text_tokens,
            return_special_tokens_mask=True,
        )
        ids = np.array(made["input_ids"] or [self.pad], np.int64)
        marks = np.array(made["special_tokens_mask"] or [1], bool)
        return ids, ~marks
