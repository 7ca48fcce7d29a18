"""Stage `tower_pretraining`: the audio tower learns to transcribe before it meets emotion.

The seed's tower is Whisper, which knows words. One that starts at random hears six classes at most
and leaves the words to the transcript. Here it spells what it hears, by CTC over characters: the
alignment is found on the way, no decoder has to be trained, and the head is thrown away afterwards.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.joint import published
from merkit_training.encoders.joint.config import JointSizes
from merkit_training.encoders.joint.data import Spectra, read_spoken
from merkit_training.encoders.joint.start import PRETRAINING, sizes_from
from merkit_training.encoders.joint.tower import STRIDE, AudioTower, sounding
from merkit_training.encoders.probe import features_of
from merkit_training.encoders.utterances import Utterances
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

BLANK = 0  # CTC's; characters are counted from 1


class Speller(nn.Module):
    """The audio tower with a reading of characters at each frame."""

    def __init__(self, tower: AudioTower, width: int, characters: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(width, characters + 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """[batch, mels, frames] -> log-probabilities [batch, frames / 2, 1 + characters]."""
        frames = self.tower(log_mel.to(self.head.weight.device))
        logits: Tensor = self.head(frames).float()
        return logits.log_softmax(-1)

    def loss(self, log_mel: Tensor, spelt: Sequence[Tensor]) -> Tensor:
        """CTC over the frames that hold sound, per character."""
        scores = self(log_mel)
        return F.ctc_loss(
            scores.transpose(0, 1),
            torch.cat(list(spelt)).to(scores.device),
            sounding(log_mel)[:, 0],
            torch.tensor([len(ids) for ids in spelt]),
            blank=BLANK,
            zero_infinity=True,
        )


@dataclass(frozen=True)
class Spelling:
    """The utterances of one split that can be spelt, as places in `spoken`, with their ids."""

    spoken: Utterances
    places: NDArray[np.int64]
    ids: tuple[Tensor, ...]
    left_out: tuple[str, ...]  # without words, longer than the window, or more words than frames

    @staticmethod
    def of(spoken: Utterances, characters: str, window: int, frames: int) -> Spelling:
        """`window`: samples that the tower hears; `frames`: of the tower."""
        place = {character: i + 1 for i, character in enumerate(characters)}
        found = [[place[c] for c in text.lower() if c in place] for text in spoken.texts]
        fits = [
            bool(ids) and length <= window and _frames_needed(ids) <= frames * length / window
            for ids, length in zip(found, spoken.lengths, strict=True)
        ]
        places = np.flatnonzero(fits)
        missed = tuple(name for name, fit_ in zip(spoken.names, fits, strict=True) if not fit_)
        return Spelling(spoken, places, tuple(torch.tensor(found[i]) for i in places), missed)


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains and saves the tower; returns the character error rate on validation.

    Raises:
        InvalidInputError: no utterance with a transcript that fits into the window, or a
            checkpoint of a joint model, whose tower knows words.
    """
    config, p = recipe.tower_pretraining, recipe.preprocessing
    seed = stage_seed(recipe, PRETRAINING)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    sizes, tower = _tower(recipe)
    spoken = {split: read_spoken(recipe, corpus, split) for split in ("train", "val")}
    characters = frequent(spoken["train"].texts, config.characters)
    window = round(p.joint_window_seconds * p.sample_rate)
    frames = sizes.mel_frames // STRIDE
    data, val = (Spelling.of(s, characters, window, frames) for s in spoken.values())
    for part, split in ((data, "train"), (val, "val")):
        if not len(part.places):
            raise InvalidInputError(
                f"no utterance of the split {split!r} in {corpus} can be spelt",
                f"transcripts of sounds of at most {p.joint_window_seconds:g} s",
                "add transcripts, or set epochs = 0 in [tower_pretraining]",
            )
    learner = Speller(tower, sizes.joint.hidden, len(characters))
    scores = _fit(recipe, learner, data, val, run / PRETRAINING, seed)
    card = {
        "scores": scores,
        "data": "utterances",
        "left_out": {
            "silent": [*data.spoken.silent, *val.spoken.silent],
            "not spelt": [*data.left_out, *val.left_out],
        },
    }
    saved = _saved_sizes(sizes) | {"characters": characters}
    save_step(run, PRETRAINING, saved, learner.state_dict(), card)
    clear_checkpoints(run / PRETRAINING)
    return scores


def _tower(recipe: Recipe) -> tuple[JointSizes, AudioTower]:
    """The tower to train: at random, or of the recipe's Whisper."""
    joint = recipe.joint_encoder
    if joint.checkpoint:
        raise InvalidInputError(
            f"[tower_pretraining] is asked for beside the checkpoint {joint.checkpoint}",
            "one of the two, since its tower knows words",
            "set epochs = 0 in [tower_pretraining]",
        )
    sizes = sizes_from(recipe)
    tower = AudioTower(sizes.joint, sizes.mel_bins, sizes.mel_frames)
    if joint.tower_checkpoint:
        found = open_checkpoint(joint.tower_checkpoint, hub=recipe.run.hub)
        published.load_tower(tower, found)
    return sizes, tower


def _fit(
    recipe: Recipe, learner: Speller, data: Spelling, val: Spelling, folder: Path, seed: int
) -> dict[str, float]:
    config = recipe.tower_pretraining
    spectra = Spectra(recipe, data.spoken, PRETRAINING, noisy=1)
    clean = Spectra(recipe, val.spoken, PRETRAINING, noisy=0)

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        assert isinstance(model, Speller)
        copies = (step_rng().random(len(indices)) < config.noise_share).astype(np.int64)
        log_mel = spectra.batch(data.places[indices], copies)
        return model.loss(log_mel, [data.ids[i] for i in indices])

    def evaluate(_: nn.Module) -> dict[str, float]:
        def heard(indices: NDArray[np.int64]) -> Tensor:
            log_mel = clean.batch(val.places[indices], np.zeros_like(indices))
            best = learner(log_mel).argmax(-1)
            sound = torch.arange(best.shape[1]) < sounding(log_mel)
            return torch.where(sound, best.cpu(), BLANK)

        spelt = features_of(heard, len(val.places)).astype(np.int64)
        pairs = [(collapsed(row), ids.tolist()) for row, ids in zip(spelt, val.ids, strict=True)]
        wrong = sum(edits(found, truth) for found, truth in pairs)
        rate = wrong / sum(len(truth) for _, truth in pairs)
        return {"spelt": 1 - rate, "character_error_rate": rate}

    schedule = FitConfig(config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16)
    count = len(data.places)
    return fit(learner, loss, count, schedule, folder, name="speller", evaluate=evaluate)


def frequent(texts: Sequence[str], most: int) -> str:
    """The most frequent characters of the transcripts, in lower case, in a fixed order."""
    counts = Counter("".join(texts).lower())
    best = sorted(counts, key=lambda character: (-counts[character], character))[:most]
    return "".join(sorted(best))


def collapsed(frames: NDArray[np.int64]) -> list[int]:
    """What CTC's best path spells: repetitions once, blanks not at all."""
    changed = np.diff(frames, prepend=BLANK) != 0
    return [int(i) for i in frames[changed & (frames != BLANK)]]


def edits(found: Sequence[int], truth: Sequence[int]) -> int:
    """The least number of insertions, deletions and replacements between two spellings."""
    row = list(range(len(truth) + 1))
    for i, one in enumerate(found, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(truth, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (one != other))
    return row[-1]


def _frames_needed(ids: Sequence[int]) -> int:
    """CTC needs a frame for each character, and a blank between two that are equal."""
    return len(ids) + sum(a == b for a, b in pairwise(ids))


def _saved_sizes(sizes: JointSizes) -> dict[str, object]:
    joint = asdict(sizes.joint)
    names = ("hidden", "layers", "heads", "intermediate")
    return {name: joint[name] for name in names} | {
        "mel_bins": sizes.mel_bins,
        "mel_frames": sizes.mel_frames,
    }
