"""CT-Transformer: which mark follows each word, under FunASR's parameter names.

It reads as far ahead as its window goes and decides all words at once; that it may be cut off
anywhere, and go on later, is the business of `merkit.speech.punctuate`. Our own code; the
architecture is Chen et al. 2020 (arXiv:2003.01309) in the form that FunASR publishes.
"""

from __future__ import annotations

from torch import Tensor, nn

from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.sanm import SanmEncoder, SanmSizes, valid_frames


class CtTransformer(nn.Module):
    """Words to scores of marks."""

    def __init__(self, config: PunctuatorConfig, words: int, marks: int) -> None:
        super().__init__()
        c = config
        self.embed = nn.Embedding(words, c.embedded)
        self.encoder = SanmEncoder(
            SanmSizes(
                c.embedded, c.hidden, c.layers, c.heads, c.intermediate, c.kernel, c.shift,
                c.dropout, c.attention_dropout,
            )
        )  # fmt: skip
        self.decoder = nn.Linear(c.hidden, marks)

    def forward(self, inputs: Tensor, text_lengths: Tensor) -> Tensor:
        """Scores the marks that may follow each word.

        Args:
            inputs: integers [b, t], ids of words, right padded with any id.
            text_lengths: integers [b], how many of them are words.

        Returns:
            float32 [b, t, marks]; behind the last word they mean nothing.
        """
        valid = valid_frames(text_lengths, inputs.shape[1])
        scores: Tensor = self.decoder(self.encoder(self.embed(inputs), valid))
        return scores
