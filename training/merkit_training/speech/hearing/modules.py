"""The chain's ONNX steps as torch modules, with exactly the contract's tensors (seed 2.4, 2.3).

A recogniser, a separator and a punctuator know nothing of each other. What lies between them
(sources at the level at which they add up to the sound, three sounds recognised in one pass) would
be Python code that each runtime writes again, so it stands in the graphs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from merkit_training.speech.punctuation import train as punctuation
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.recognition import train as recognition
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.sanm import valid_frames
from merkit_training.speech.separation import model as separation
from merkit_training.speech.separation.model import Separator

SILENT = 1e-30
"""Energy below which a source has no direction."""
ALIKE = 1e-6
"""Of the energy of two sources' sum (at one scale) what their difference has at least, or the sum
of the difference: with less they cannot be told apart (`rcond` of `merkit.speech.separate`)."""
LOUDEST = 1e4
"""Times full scale; a sample beyond it, or none at all (NaN), is no sound."""


class Separate(nn.Module):
    """The step `separate`: a sound to its two sources."""

    def __init__(self, separator: Separator) -> None:
        super().__init__()
        self.separator = separator

    def forward(self, speech: Tensor, mixture_length: Tensor) -> Tensor:
        """Sources float32 [b, 2, n], finite, at the level and sign at which they add up to the
        sound; zeros beyond `mixture_length`.

        Args:
            speech: float32 [b, n], 16 kHz in -1..1; n may be 0.
            mixture_length: int64 [b, 1], samples to separate; 0: none of this row.
        """
        sources = self.separator(speech, mixture_length)
        sources = torch.where(sources.abs() < LOUDEST, sources, torch.zeros_like(sources))
        real = torch.arange(speech.shape[1], device=speech.device) < mixture_length
        return at_level(sources, torch.where(real, speech, torch.zeros_like(speech)))


def at_level(sources: Tensor, mixture: Tensor) -> Tensor:
    """`merkit.speech.separate.at_level` for two sources in closed form.

    Brought to one scale, the sum and the difference of two sources stand at right angles. So the
    nearest mixture of the sources is the sum of what the mixture has of each of these two, and
    what cannot be told apart (one of the two nearly vanishes) is left out, as the least-squares
    solution of least norm does it.

    Args:
        sources: float32 [b, 2, n].
        mixture: float32 [b, n].

    Returns:
        float32 [b, 2, n]; of sources that cannot be told apart, equal shares.
    """
    energy = sources.square().sum(-1, keepdim=True)
    loud = energy > SILENT
    one, other = (sources * torch.where(loud, energy, 1.0).rsqrt() * loud).unbind(1)
    both = loud[:, 0] & loud[:, 1]
    total, rest = one + other, one - other
    most, least = total.square().sum(-1, keepdim=True), rest.square().sum(-1, keepdim=True)
    along = _share(total, mixture, most, most > ALIKE * least)
    across = _share(rest, mixture, least, (least > ALIKE * most) & both)
    return torch.stack((one * (along + across), other * (along - across)), dim=1)


def _share(direction: Tensor, mixture: Tensor, energy: Tensor, counts: Tensor) -> Tensor:
    """How much of a direction [b, n] lies in the mixture [b, n], [b, 1]; 0 where it does not
    count."""
    product = (direction * mixture).sum(-1, keepdim=True)
    return torch.where(counts, product / torch.where(counts, energy, 1.0), 0.0)


class Recognize(nn.Module):
    """The step `recognize`: a sound, and its sources where there are any, to tokens."""

    def __init__(self, recognizer: Recognizer) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(
        self,
        speech: Tensor,
        speech_length: Tensor,
        sources: Tensor | None = None,
        mixture_length: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Recognises all sounds of all rows in one pass.

        Args:
            speech: float32 [b, n], 16 kHz in -1..1, right padded; n may be 0.
            speech_length: int64 [b, 1], samples.
            sources: float32 [b, 2, n].
            mixture_length: int64 [b, 1], samples of the sources; 0 where there are none.

        Returns:
            token_logs float32 [b, sounds, said, vocabulary], log-probabilities; said is the
            largest count and at least 1, and behind its last token each sound says `</s>`. And
            token_count int64 [b, sounds]; 0 for a sound without samples. The original is the first
            of the sounds.
        """
        sounds, lengths = speech[:, None], speech_length
        if sources is not None and mixture_length is not None:
            sounds = torch.cat((sounds, sources), dim=1)
            lengths = torch.cat((speech_length, mixture_length, mixture_length), dim=1)
        each = sounds.shape[1]
        model = self.recognizer.model
        inputs, counts = self.recognizer.frontend(sounds.flatten(0, 1), lengths.flatten())
        logs, said = model.tokens(*model.encode(inputs, counts))
        rows: Tensor = logs.unflatten(0, (-1, each))  # type: ignore[no-untyped-call]
        return rows, said.reshape(-1, each)


class Punctuate(nn.Module):
    """The step `punctuate`: words to scores of the marks that may follow them."""

    def __init__(self, model: CtTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, word_ids: Tensor, word_count: Tensor) -> Tensor:
        """mark_scores float32 [b, words_said, marks], zeros behind the last word.

        Args:
            word_ids: int64 [b, words_said], right padded with any id.
            word_count: int64 [b, 1].
        """
        scores: Tensor = self.model(word_ids, word_count.squeeze(1))
        return scores * valid_frames(word_count.squeeze(1), word_ids.shape[1])


def load_separate(run: Path) -> Separate:
    """The step of a finished run, in eval mode; errors as `encoders.store.load_module`."""
    return Separate(separation.load(run)).eval()


def load_recognize(run: Path) -> Recognize:
    """The step of a finished run, in eval mode; errors as `recognition.train.load`."""
    return Recognize(recognition.load(run)[0]).eval()


def load_punctuate(run: Path) -> Punctuate:
    """The step of a finished run, in eval mode; errors as `punctuation.train.load`."""
    return Punctuate(punctuation.load(run).model).eval()
