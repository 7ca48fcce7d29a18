"""Utterances as the joint encoder reads them: spectra, and ids of prompt and transcript.

The LLM must work on sound alone and on words alone, so that a batch says for each sample what it
lacks. Silent utterances are not among them (the seed filters them, 2.3); their names are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.utterances import Utterances, batched
from merkit_training.preprocess import LogMel
from merkit_training.recipe import Recipe
from merkit_training.runs import stage_seed

CACHE_BATCH = 32
CACHE_BYTES = 1 << 30  # of spectra; more are computed again for each batch
WHOLE, NO_SOUND, NO_WORDS = 0, 1, 2
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
"""log_mel, joint_ids, joint_length, presence: the step's inputs."""


class Spectra:
    """The log-mel spectra of one split, each clean and with babble of its own."""

    def __init__(self, recipe: Recipe, spoken: Utterances, stage: str, noisy: int) -> None:
        """`noisy` copies with babble beside the clean one; cached where they are small enough."""
        p = recipe.preprocessing
        self.spoken, self.mel, self.seed = spoken, LogMel(p), stage_seed(recipe, stage)
        frames = round(p.joint_window_seconds * 100)
        shape = (1 + noisy, len(spoken), p.mel_bins, frames)
        self.cached: Tensor | None = None
        if 2 * np.prod(shape, dtype=np.int64) <= CACHE_BYTES:
            self.cached = torch.empty(shape, dtype=torch.float16)
            jobs = [(c, i) for c in range(1 + noisy) for i in range(0, len(spoken), CACHE_BATCH)]
            for copy, start in tqdm(jobs, desc="spectra", unit="batch", mininterval=1):
                rows = np.arange(start, min(start + CACHE_BATCH, len(spoken)))
                made = self._made(rows, np.full_like(rows, copy))
                self.cached[copy, start : start + len(rows)] = made.half()

    def batch(self, indices: NDArray[np.int64], copies: NDArray[np.int64]) -> Tensor:
        """log_mel float32 [batch, mels, frames] of some samples; copy 0 is clean."""
        if self.cached is not None:
            return self.cached[copies, indices].float()
        return self._made(indices, copies).half().float()

    def _made(self, indices: NDArray[np.int64], copies: NDArray[np.int64]) -> Tensor:
        pairs = zip(indices, copies, strict=True)
        waves = [self.spoken.take(int(i), int(copy), self.seed) for i, copy in pairs]
        with torch.no_grad():
            made: Tensor = self.mel(*batched(waves))
        return made


@dataclass(frozen=True)
class JointData:
    """One split."""

    spoken: Utterances
    spectra: Spectra
    ids: Tensor  # int64 [n, tokens]: prompt and transcript
    lengths: Tensor  # int64 [n, 1]
    alone: Tensor  # int64 [prompt]: the prompt around no words

    @staticmethod
    def read(recipe: Recipe, corpus: Path, run: Path, split: str, stage: str) -> JointData:
        """Reads and tokenises a split and makes its spectra, those for training with babble too."""
        p = recipe.preprocessing
        spoken = read_spoken(recipe, corpus, split)
        words = tokenizer.load(run, joint=True)
        texts = ("", *spoken.texts)
        ids, lengths = map(
            torch.from_numpy, tokenizer.encode(words, texts, p.max_text_tokens, p.prompt)
        )
        spectra = Spectra(recipe, spoken, stage, noisy=int(split == "train"))
        return JointData(spoken, spectra, ids[1:], lengths[1:], ids[0, : int(lengths[0])])

    def batch(
        self, indices: NDArray[np.int64], copies: NDArray[np.int64], lacking: NDArray[np.int64]
    ) -> Inputs:
        """The step's inputs of some samples; `lacking` says of each which modality is left out."""
        missing = torch.from_numpy(lacking)
        wordless = missing[:, None] == NO_WORDS
        prompt = len(self.alone)
        lengths = torch.where(wordless, prompt, self.lengths[indices])
        ids = self.ids[indices, : int(lengths.max())]
        bare = torch.zeros_like(ids)
        bare[:, :prompt] = self.alone[: bare.shape[1]]
        ids = torch.where(wordless, bare, ids)
        presence = torch.stack((missing < 0, missing != NO_SOUND, missing != NO_WORDS), dim=1)
        return self.spectra.batch(indices, copies), ids, lengths, presence


def read_spoken(recipe: Recipe, corpus: Path, split: str) -> Utterances:
    """The utterances of a split, each as much of it as `decode` would hand on."""
    p = recipe.preprocessing
    return Utterances.read(corpus, split, round(p.max_audio_seconds * p.sample_rate))
