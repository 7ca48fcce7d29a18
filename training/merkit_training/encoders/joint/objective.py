"""What the joint encoder learns by: the emotion as the next word, or as a class (seed 2.3).

The seed's LLM answers in words. `label_word` trains that: cross-entropy over the whole vocabulary
on each token of the class's word. `label_tokens` is its case of one token for each class, by a
softmax over these alone: less to unlearn for a small model. `head` reads the feature with a linear
layer that is no part of the step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training.encoders.joint.config import Objective
from merkit_training.encoders.joint.data import Inputs
from merkit_training.encoders.joint.encoder import JointEncoder
from merkit_training.encoders.pooling import masked_mean

IGNORED = -100  # of cross_entropy's targets


class JointLearner(nn.Module):
    """The encoder with its objective."""

    def __init__(self, encoder: JointEncoder, objective: Objective, answers: Tensor) -> None:
        """`answers`: of `answer_tokens`."""
        super().__init__()
        self.encoder, self.objective = encoder, objective
        self.register_buffer("answers", answers, persistent=False)
        self.answers: Tensor
        self.head = nn.Linear(encoder.width, len(answers)) if objective == "head" else None

    def loss(self, inputs: Inputs, labels: Tensor, smoothing: float) -> Tensor:
        """Cross-entropy of a batch; inputs and labels may lie on another device."""
        inputs, labels = self._here(inputs), labels.to(self.answers.device)
        if self.objective != "label_word":
            return F.cross_entropy(self._one_step(inputs), labels, label_smoothing=smoothing)
        words = self.answers[labels]
        logits = self._spoken(inputs, words).flatten(0, 1)
        return F.cross_entropy(logits, words.flatten(), label_smoothing=smoothing)

    def scores(self, inputs: Inputs) -> Tensor:
        """A score of each class, [batch, classes]. Of words it is the log-probability; where their
        first tokens differ, that of the first, which decides as the LLM would in speaking."""
        inputs = self._here(inputs)
        first = self.answers[:, 0]
        if self.objective != "label_word" or len(set(first.tolist())) == len(first):
            return self._one_step(inputs)
        found = []
        for word in self.answers:
            words = word.expand(len(inputs[0]), -1)
            logits = self._spoken(inputs, words)
            losses = F.cross_entropy(logits.flatten(0, 1), words.flatten(), reduction="none")
            found.append(-losses.view_as(words).sum(1))
        return torch.stack(found, dim=1)

    def _one_step(self, inputs: Inputs) -> Tensor:
        """Scores of the classes after the sequence: [batch, classes]."""
        if self.head is not None:
            logits: Tensor = self.head(self.encoder(*inputs))
            return logits
        states, _, at_end = self.encoder.states(*inputs)
        return self.encoder.decoder.logits(masked_mean(states[-1], at_end))[:, self.answers[:, 0]]

    def _spoken(self, inputs: Inputs, words: Tensor) -> Tensor:
        """Scores of each token of the words [batch, tokens], each seeing those before it:
        [batch, tokens, vocabulary]."""
        log_mel, ids, lengths, presence = inputs
        steps = torch.arange(words.shape[1], device=ids.device)
        ids = F.pad(ids, (0, words.shape[1])).scatter(1, lengths + steps, words.clamp(min=0))
        lengths_after = lengths + (words != IGNORED).sum(1, keepdim=True)
        states, _, _ = self.encoder.states(log_mel, ids, lengths_after, presence)
        hidden = self.encoder.after_sound(states[-1])
        places = (lengths - 1 - self.encoder.audio_at + steps)[:, :, None].expand(
            -1, -1, hidden.shape[-1]
        )
        return self.encoder.decoder.logits(hidden.gather(1, places))

    def _here(self, inputs: Inputs) -> Inputs:
        log_mel, ids, lengths, presence = (part.to(self.answers.device) for part in inputs)
        return log_mel, ids, lengths, presence


def answer_tokens(
    tokenizer: Any, objective: Objective, classes: Sequence[str], words: Sequence[str] = ()
) -> Tensor:
    """Tokens of each class's answer, int64 [classes, longest], filled with -100.

    Args:
        tokenizer: a `tokenizers.Tokenizer`.
        objective: `label_tokens` wants a token `<class>` of each class; `label_word` its word.
        classes: names, in order.
        words: instead of the names, in the same order.

    Raises:
        InvalidInputError: another number of words than classes, words that are no tokens or that
            two classes share, or a tokeniser without label tokens.
    """
    if words and len(words) != len(classes):
        raise InvalidInputError(
            f"[joint_encoder] gives {len(words)} label_words", f"{len(classes)}, one for each class"
        )
    if objective == "head":
        return torch.full((len(classes), 1), IGNORED)
    if objective == "label_tokens":
        found = [tokenizer.token_to_id(f"<{name}>") for name in classes]
        if None in found:
            raise InvalidInputError(
                f"the tokeniser has no token <{classes[found.index(None)]}>",
                "a token for each class, as a run's own tokeniser has",
                'set objective = "label_word" in [joint_encoder]',
            )
        return torch.tensor(found)[:, None]
    spelt = [tokenizer.encode(word, add_special_tokens=False).ids for word in words or classes]
    for i, ids in enumerate(spelt):
        if not ids or ids in spelt[:i]:
            raise InvalidInputError(
                f"the label word {(words or classes)[i]!r} becomes the tokens {ids}",
                "words that the tokeniser tells apart",
                "give others as label_words in [joint_encoder]",
            )
    longest = max(map(len, spelt))
    return torch.tensor([ids + [IGNORED] * (longest - len(ids)) for ids in spelt])
