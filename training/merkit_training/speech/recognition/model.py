"""Paraformer: encoder, predictor and decoder, how they are trained, and the whole recogniser.

One pass gives all tokens, so a sentence costs what its sound costs, however long its text is. The
price is that tokens are decided independently; training softens it by showing the decoder some of
the right tokens (the sampler), the more the more it got wrong (Gao et al. 2022, arXiv:2206.08317).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from merkit_training.speech.recognition.cif import CifPredictor
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.decoder import DecoderSizes, ParaformerDecoder
from merkit_training.speech.recognition.frontend import Frontend
from merkit_training.speech.sanm import SanmEncoder, SanmSizes, valid_frames

BLANK, END = 0, 2
"""Ids of CTC's blank and of the end mark in FunASR's vocabularies, and in ours."""
PADDED = -1  # in targets
IMPOSSIBLE = -1e4  # log-probability


class CtcHead(nn.Module):
    """FunASR's `CTC`: one linear layer."""

    def __init__(self, hidden: int, vocabulary: int) -> None:
        super().__init__()
        self.ctc_lo = nn.Linear(hidden, vocabulary)

    def forward(self, heard: Tensor) -> Tensor:
        """Log-probabilities float32 [b, t, vocabulary]."""
        logs: Tensor = self.ctc_lo(heard).float().log_softmax(-1)
        return logs


class Paraformer(nn.Module):
    """Inputs to token log-probabilities; parameters are named as FunASR names them."""

    def __init__(self, config: RecognizerConfig, vocabulary: int) -> None:
        super().__init__()
        c = config
        self.encoder = SanmEncoder(
            SanmSizes(
                c.inputs, c.hidden, c.layers, c.heads, c.intermediate, c.kernel, c.shift,
                c.dropout, c.attention_dropout,
            )
        )  # fmt: skip
        self.predictor = CifPredictor(c.hidden, c.tail, c.smooth, c.noise_floor)
        self.decoder = ParaformerDecoder(
            DecoderSizes(
                vocabulary, c.hidden, c.decoder_layers, c.decoder_attending, c.decoder_heads,
                c.decoder_intermediate, c.decoder_kernel, c.decoder_shift, c.dropout,
                c.attention_dropout,
            )
        )  # fmt: skip
        self.ctc = CtcHead(c.hidden, vocabulary) if c.ctc else None

    def encode(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What was heard float32 [b, t, hidden], and which frames are real float32 [b, t, 1]."""
        valid = valid_frames(lengths, speech.shape[1])
        return self.encoder(speech, valid), valid

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Recognises.

        Args:
            speech: float32 [b, t, inputs], normalised stacks of frames.
            lengths: int64 [b], how many of them are real.

        Returns:
            Log-probabilities float32 [b, n, vocabulary] and the number of tokens int64 [b]. n is
            the largest of these and at least 1; behind its last token each row says `</s>`.
        """
        return self.tokens(*self.encode(speech, lengths))

    def tokens(self, heard: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of what `encode` gave."""
        embedded, counts = self.predictor(heard, valid)
        real = valid_frames(counts, embedded.shape[1])
        logs = self.decoder(embedded * real, real, heard, valid).float().log_softmax(-1)
        ended = IMPOSSIBLE * (1 - F.one_hot(torch.full_like(counts, END), logs.shape[2]).float())
        return torch.where(real > 0.5, logs, ended[:, None]), counts

    def loss(
        self, speech: Tensor, lengths: Tensor, targets: Tensor, config: RecognizerConfig
    ) -> Tensor:
        """Cross-entropy of the tokens, error of their number, and CTC, weighted.

        Args:
            speech, lengths: as of `forward`.
            targets: int64 [b, u], PADDED behind the end, without marks.
            config: the weights.
        """
        heard, valid = self.encode(speech, lengths)
        ctc = self._ctc_loss(heard, lengths, targets) if config.ctc_weight > 0 else None
        counts = (targets != PADDED).sum(1)
        if config.end_counts:
            ended = F.pad(targets, (0, 1), value=PADDED)
            targets, counts = ended.scatter(1, counts[:, None], END), counts + 1
        with torch.autocast(heard.device.type, enabled=False):
            embedded, sums = self.predictor.aligned(heard.float(), valid, counts)
        real = valid_frames(counts, embedded.shape[1])
        shown = self._glance(embedded, real, heard, valid, targets, config.sampling)
        scores = self.decoder(shown, real, heard, valid).float()
        total = F.cross_entropy(
            scores.transpose(1, 2),
            targets,
            ignore_index=PADDED,
            label_smoothing=config.label_smoothing,
        )
        total = (1 - config.ctc_weight) * total + (0.0 if ctc is None else config.ctc_weight * ctc)
        return total + config.quantity_weight * (sums - counts).abs().sum() / counts.sum()

    def _glance(
        self,
        embedded: Tensor,
        real: Tensor,
        heard: Tensor,
        valid: Tensor,
        targets: Tensor,
        share: float,
    ) -> Tensor:
        """The sampler: in place of as many tokens as `share` of those decoded wrongly, chosen at
        random, the decoder is shown the embedding of the right one."""
        if share <= 0:
            return embedded * real
        inside = real[..., 0] > 0.5
        with torch.no_grad():
            guess = self.decoder(embedded * real, real, heard, valid).argmax(-1)
            wrong = ((guess != targets) & inside).sum(1, keepdim=True)
            order = torch.rand(targets.shape, device="cpu").to(targets.device)
            rank = order.masked_fill(~inside, 2.0).argsort(1).argsort(1)
            told = (rank < (wrong * share).long())[..., None]
        right = self.decoder.embed(targets.clamp(min=0))
        return torch.where(told, right, embedded) * real

    def _ctc_loss(self, heard: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Mean over utterances of the loss per token; what is too short for its text counts 0."""
        if self.ctc is None:
            raise ValueError("no CTC head")
        counts = (targets != PADDED).sum(1)
        logs = self.ctc(heard).transpose(0, 1)
        return F.ctc_loss(logs, targets, lengths, counts, blank=BLANK, zero_infinity=True)


class Recognizer(nn.Module):
    """Waveform to token log-probabilities: the step `recognize`, front end included."""

    def __init__(self, config: RecognizerConfig, vocabulary: int) -> None:
        super().__init__()
        self.frontend = Frontend(config.mels, config.stacked, config.hop)
        self.model = Paraformer(config, vocabulary)

    def forward(self, waveform: Tensor, length: Tensor) -> tuple[Tensor, ...]:
        """Recognises.

        Args:
            waveform: float32 [b, s], 16 kHz mono in -1..1, right padded; s may be 0.
            length: int64 [b, 1], samples.

        Returns:
            token_logs float32 [b, n, vocabulary] and token_count int64 [b, 1] as of
            `Paraformer.forward`; with a CTC head also ctc_logs float32 [b, t, vocabulary] and
            ctc_count int64 [b, 1], the frames of 60 ms that are real.
        """
        speech, lengths = self.frontend(waveform, length.squeeze(1))
        heard, valid = self.model.encode(speech, lengths)
        logs, counts = self.model.tokens(heard, valid)
        if self.model.ctc is None:
            return logs, counts[:, None]
        return logs, counts[:, None], self.model.ctc(heard), lengths[:, None]
