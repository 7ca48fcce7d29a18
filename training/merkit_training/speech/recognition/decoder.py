"""Paraformer's decoder: all tokens at once, each from what was heard of it and its neighbours."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from merkit_training.speech.sanm import LayerNorm, Memory, attend


@dataclass(frozen=True)
class DecoderSizes:
    """The sizes of a decoder; keys of FunASR's `decoder_conf` in brackets."""

    vocabulary: int  # tokens
    hidden: int  # as wide as the encoder
    layers: int  # [num_blocks]
    attending: int  # layers that listen to the encoder, the first ones [att_layer_num]
    heads: int  # [attention_heads]
    intermediate: int  # [linear_units]
    kernel: int = 11  # [kernel_size]
    shift: int = 0  # [sanm_shfit]
    dropout: float = 0.1  # [dropout_rate]
    attention_dropout: float = 0.1  # [self_attention_dropout_rate, src_attention_dropout_rate]


class NormedFeedForward(nn.Module):
    """Linear, ReLU, norm, linear without a bias."""

    def __init__(self, hidden: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.w_1 = nn.Linear(hidden, intermediate)
        self.w_2 = nn.Linear(intermediate, hidden, bias=False)
        self.norm = LayerNorm(intermediate)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor) -> Tensor:
        """Same shape as `values`."""
        changed: Tensor = self.w_2(self.norm(self.dropout(self.w_1(values).relu())))
        return changed


class Listening(nn.Module):
    """Attention of tokens over the encoder's frames."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = nn.Linear(hidden, hidden)
        self.linear_k_v = nn.Linear(hidden, 2 * hidden)
        self.linear_out = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, heard: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, n, hidden]."""
        key, value = self.linear_k_v(heard).chunk(2, dim=-1)
        query = self.linear_q(tokens)
        out: Tensor = self.linear_out(attend(query, key, value, valid, self.heads, self.dropout))
        return out


class DecoderLayer(nn.Module):
    """Feed-forward first, then the memory of neighbouring tokens, then listening, if it does."""

    def __init__(self, sizes: DecoderSizes, shift: int, listens: bool) -> None:
        super().__init__()
        width, lost = sizes.hidden, sizes.attention_dropout
        self.feed_forward = NormedFeedForward(width, sizes.intermediate, sizes.dropout)
        self.norm1, self.norm2 = LayerNorm(width), LayerNorm(width)
        self.self_attn = Memory(width, sizes.kernel, shift, lost)
        self.src_attn = Listening(width, sizes.heads, lost) if listens else None
        self.norm3 = LayerNorm(width) if listens else None
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, tokens: Tensor, real: Tensor, heard: Tensor, valid: Tensor) -> Tensor:
        """float32 [b, n, hidden]; `real` float32 [b, n, 1] and `valid` float32 [b, t, 1] are 1 on
        tokens and frames, 0 on padding."""
        changed = self.norm2(self.feed_forward(self.norm1(tokens)))
        out: Tensor = tokens + self.dropout(self.self_attn(changed, real))
        if self.src_attn is not None and self.norm3 is not None:
            out = out + self.dropout(self.src_attn(self.norm3(out), heard, valid))
        return out


class LastLayer(nn.Module):
    """A norm and a feed-forward, without a residual."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.feed_forward = NormedFeedForward(sizes.hidden, sizes.intermediate, sizes.dropout)
        self.norm1 = LayerNorm(sizes.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """float32 [b, n, hidden]."""
        changed: Tensor = self.feed_forward(self.norm1(tokens))
        return changed


class ParaformerDecoder(nn.Module):
    """FunASR's `ParaformerSANMDecoder`."""

    def __init__(self, sizes: DecoderSizes) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Embedding(sizes.vocabulary, sizes.hidden))
        self.decoders = nn.ModuleList(
            DecoderLayer(sizes, sizes.shift, True) for _ in range(sizes.attending)
        )
        self.decoders2 = nn.ModuleList(
            DecoderLayer(sizes, 0, False) for _ in range(sizes.layers - sizes.attending)
        )
        self.decoders3 = nn.ModuleList([LastLayer(sizes)])
        self.after_norm = LayerNorm(sizes.hidden)
        self.output_layer = nn.Linear(sizes.hidden, sizes.vocabulary)

    def forward(self, tokens: Tensor, real: Tensor, heard: Tensor, valid: Tensor) -> Tensor:
        """Scores float32 [b, n, vocabulary] of tokens float32 [b, n, hidden]; `real` and `valid`
        as of `DecoderLayer`."""
        for layer in (*self.decoders, *self.decoders2):
            tokens = layer(tokens, real, heard, valid)
        scores: Tensor = self.output_layer(self.after_norm(self.decoders3[0](tokens)))
        return scores
