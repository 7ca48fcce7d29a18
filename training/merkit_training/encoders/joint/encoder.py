"""The joint audio-text encoder (seed 2.3): sound and words meet inside one LLM, as in Qwen-Audio.

A Whisper encoder turns the log-mel spectrum into audio embeddings; they stand before the prompt
and the transcript in the LLM's sequence, and all of it learns together to name the emotion as
the next word. The features are the mean of the LLM's last four layers at one or all positions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from merkit.contract import MODALITIES, Preprocessing
from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.pooling import length_mask, masked_mean, pooled
from merkit_training.encoders.probe import features_of, head_scores, linear_probe
from merkit_training.encoders.store import load_module
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.decoder import make_decoder
from merkit_training.encoders.text.encoder import STEP as TEXT_STEP
from merkit_training.encoders.text.encoder import TextEncoder
from merkit_training.encoders.utterances import Heads, Utterances, batched
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.preprocess import LogMel
from merkit_training.recipe import Recipe
from merkit_training.runs import save_step, stage_seed

STEP = "joint_encoder"
AUDIO = MODALITIES.index("audio")
Pool = Literal["mean", "last"]
POOLS: tuple[Pool, ...] = ("mean", "last")
CACHE_BATCH = 32


@dataclass(frozen=True)
class JointSizes:
    """All that the module's shapes follow from; lies beside its weights as `config.json`."""

    joint: JointConfig
    text: TextConfig  # of the LLM
    mel_bins: int
    mel_frames: int
    pool: Pool = "last"  # the positions whose states become the feature

    @staticmethod
    def of(joint: JointConfig, text: TextConfig, p: Preprocessing) -> JointSizes:
        """The sizes that a recipe asks for."""
        frames = round(p.joint_window_seconds * 100)
        return JointSizes(joint, text, p.mel_bins, frames)


class AudioTower(nn.Module):
    """Whisper's encoder over a fixed window."""

    def __init__(self, config: JointConfig, mel_bins: int, mel_frames: int) -> None:
        super().__init__()
        self.model = WhisperEncoder(
            WhisperConfig(
                d_model=config.hidden,
                encoder_layers=config.layers,
                encoder_attention_heads=config.heads,
                encoder_ffn_dim=config.intermediate,
                num_mel_bins=mel_bins,
                max_source_positions=mel_frames // 2,
                dropout=0.0,
                attention_dropout=0.0,
                activation_dropout=0.0,
                attn_implementation="eager",
            )
        )

    def forward(self, log_mel: Tensor) -> Tensor:
        """float32 [batch, mels, frames] -> [batch, frames / 2, hidden]."""
        model = self.model
        hidden = nn.functional.gelu(model.conv1(log_mel))
        hidden = nn.functional.gelu(model.conv2(hidden)).transpose(1, 2)
        hidden = hidden + model.embed_positions.weight
        for layer in model.layers:
            hidden = layer(hidden, None)
        normed: Tensor = model.layer_norm(hidden)
        return normed


class JointEncoder(nn.Module):
    """The `joint_encoder` step."""

    def __init__(self, sizes: JointSizes) -> None:
        super().__init__()
        self.pool: Pool = sizes.pool
        self.tower = AudioTower(sizes.joint, sizes.mel_bins, sizes.mel_frames)
        self.frames_per_embedding = sizes.joint.frames_per_embedding
        self.projector = nn.Sequential(
            nn.Linear(sizes.joint.hidden, sizes.text.hidden),
            nn.GELU(),
            nn.Linear(sizes.text.hidden, sizes.text.hidden),
        )
        self.decoder = make_decoder(sizes.text)

    def states(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Each layer's output over [audio][prompt and transcript], the mask of the positions
        that count, and the mask of the last of them (which predicts the emotion)."""
        frames = self.tower(log_mel)
        frames = frames.unflatten(1, (-1, self.frames_per_embedding)).mean(2)
        sound = self.projector(frames)
        heard = presence[:, AUDIO, None, None]
        sound = torch.where(heard, sound, torch.zeros_like(sound))
        embeddings = torch.cat((sound, self.decoder.embed(joint_ids)), dim=1)
        audible = heard[:, :, 0].expand(-1, sound.shape[1])
        words = length_mask(joint_length, joint_ids.shape[1])
        last = length_mask(joint_length, joint_ids.shape[1]) & ~length_mask(
            joint_length - 1, joint_ids.shape[1]
        )
        mask = torch.cat((audible, words), dim=1)
        at_end = torch.cat((torch.zeros_like(audible), last), dim=1)
        return self.decoder.states(embeddings, mask), mask, at_end

    def forward(
        self, log_mel: Tensor, joint_ids: Tensor, joint_length: Tensor, presence: Tensor
    ) -> Tensor:
        """Features of a batch of clips, of sound and words or of either alone.

        Args:
            log_mel: float32 [batch, mels, frames] of the fixed window.
            joint_ids: int64 [batch, tokens], prompt and transcript, right padded.
            joint_length: int64 [batch, 1], at least 1.
            presence: bool [batch, 3]; without audio, `log_mel` has no influence.

        Returns:
            joint_features float32 [batch, hidden].
        """
        states, mask, at_end = self.states(log_mel, joint_ids, joint_length, presence)
        return pooled(states, at_end if self.pool == "last" else mask)


def load(run: Path) -> JointEncoder:
    """The trained step of a run, in eval mode."""
    return load_module(run, STEP, JointSizes, JointEncoder)


class TowerLearner(nn.Module):
    """The audio tower with the heads that teach it to listen before it meets words."""

    def __init__(self, tower: AudioTower, width: int, prosody: int) -> None:
        super().__init__()
        self.tower = tower
        self.heads = Heads(width, prosody)

    def features(self, log_mel: Tensor) -> Tensor:
        """Mean over the frames, [batch, hidden]."""
        frames: Tensor = self.tower(log_mel)
        return frames.mean(1)


@dataclass(frozen=True)
class JointData:
    """One split as the joint encoder reads it; spectra cached, each clean and with babble."""

    spoken: Utterances
    spectra: Tensor  # float16 [copies, n, mels, frames]
    ids: Tensor  # int64 [n, tokens]: prompt and transcript
    lengths: Tensor  # int64 [n, 1]
    prompt: int  # tokens of the prompt

    @staticmethod
    def read(recipe: Recipe, corpus: Path, run: Path, split: str, noisy: int) -> JointData:
        """Reads and tokenises a split and computes its spectra, `noisy` copies with babble too."""
        p, spoken = recipe.preprocessing, Utterances.read(corpus, split)
        words = tokenizer.load(run)
        ids, lengths = tokenizer.encode(words, spoken.texts, p.max_text_tokens, p.prompt)
        mel, seed, spectra = LogMel(p), stage_seed(recipe, STEP), []
        jobs = [(copy, i) for copy in range(1 + noisy) for i in range(0, len(spoken), CACHE_BATCH)]
        with torch.no_grad():
            for copy, start in tqdm(jobs, desc="spectra", unit="batch", mininterval=1):
                rows = range(start, min(start + CACHE_BATCH, len(spoken)))
                spectra.append(mel(*batched([spoken.take(i, copy, seed) for i in rows])).half())
        cached = torch.cat(spectra).view(1 + noisy, len(spoken), p.mel_bins, -1)
        prompt = len(words.encode(p.prompt).ids)
        return JointData(spoken, cached, torch.from_numpy(ids), torch.from_numpy(lengths), prompt)

    def sound(self, indices: NDArray[np.int64], copies: NDArray[np.int64]) -> Tensor:
        """log_mel float32 [batch, mels, frames]."""
        return self.spectra[copies, indices].float()

    def batch(
        self, indices: NDArray[np.int64], copies: NDArray[np.int64], absent: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The step's inputs; `absent` says what each sample lacks: 0 nothing, 1 sound, 2 words."""
        missing = torch.from_numpy(absent)
        lengths = torch.where(missing[:, None] == 2, self.prompt, self.lengths[indices])
        ids = self.ids[indices, : int(lengths.max())]
        presence = torch.stack((missing < 0, missing != 1, missing != 2), dim=1)
        return self.sound(indices, copies), ids, lengths, presence


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """The audio tower alone, then tower, projector and LLM together (full fine-tuning, as in
    the seed): the label word is predicted after the sequence, by softmax over the label words.

    Sound or words are left out of some samples, so that either alone works. Whether the feature
    is read at the last position or over all of them is decided by a linear probe.
    """
    config, seed = recipe.joint_encoder, stage_seed(recipe, STEP)
    torch.set_num_threads(min(config.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    folder, text = run / STEP, load_module(run, TEXT_STEP, TextConfig, TextEncoder)
    data = JointData.read(recipe, corpus, run, "train", noisy=1)
    val = JointData.read(recipe, corpus, run, "val", noisy=0)
    sizes = JointSizes.of(config, recipe.text_encoder, recipe.preprocessing)
    model = JointEncoder(sizes)
    model.decoder.load_state_dict(text.decoder.state_dict())
    tower_scores = _train_tower(model.tower, config, data, val, folder, seed)

    names = tokenizer.load(run)
    label_ids = torch.tensor([names.token_to_id(token) for token in tokenizer.LABEL_TOKENS])
    everything = np.zeros(len(val.spoken), np.int64)

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        rng = step_rng()
        share = config.modality_dropout
        absent = rng.choice(3, size=len(indices), p=(1 - 2 * share, share, share))
        copies = (rng.random(len(indices)) < config.noise_share).astype(np.int64)
        logits = _label_logits(model, label_ids, *data.batch(indices, copies, absent))
        target = data.spoken.labels[indices]
        return F.cross_entropy(logits, target, label_smoothing=config.label_smoothing)

    def scored(absent: int) -> dict[str, float]:
        def encode(indices: NDArray[np.int64]) -> Tensor:
            lacking = np.full_like(indices, absent)
            inputs = val.batch(indices, np.zeros_like(indices), lacking)
            return _label_logits(model, label_ids, *inputs)

        logits = torch.from_numpy(features_of(encode, len(everything)))
        return head_scores(logits, val.spoken.labels)

    schedule = FitConfig(config.epochs, config.batch_size, config.lr, seed=seed, bf16=config.bf16)
    count = len(data.spoken)
    scores = fit(model, loss, count, schedule, folder, name="joint", evaluate=lambda _: scored(0))
    scores |= {"words_only_waf": scored(1)["waf"], "sound_only_waf": scored(2)["waf"]}
    scores |= {f"tower_{name}": tower_scores[name] for name in ("waf", "seconds")}
    pool, probed = _choose_pool(model, data, val)
    scores |= probed
    final = replace(sizes, pool=pool)
    card = {"scores": scores, "data": "utterances", "pool": pool}
    save_step(run, STEP, asdict(final), model.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def _train_tower(
    tower: AudioTower,
    config: JointConfig,
    data: JointData,
    val: JointData,
    folder: Path,
    seed: int,
) -> dict[str, float]:
    learner = TowerLearner(tower, config.hidden, data.spoken.prosody.shape[1])

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        copies = (step_rng().random(len(indices)) < config.noise_share).astype(np.int64)
        return learner.heads.loss(
            learner.features(data.sound(indices, copies)),
            data.spoken,
            torch.from_numpy(indices),
            prosody_weight=config.prosody_weight,
            class_weight=config.class_weight,
            smoothing=config.label_smoothing,
        )

    def evaluate(_: nn.Module) -> dict[str, float]:
        def encode(indices: NDArray[np.int64]) -> Tensor:
            features = learner.features(val.sound(indices, np.zeros_like(indices)))
            logits: Tensor = learner.heads.emotion(features)
            return logits

        logits = torch.from_numpy(features_of(encode, len(val.spoken)))
        return head_scores(logits, val.spoken.labels)

    schedule = FitConfig(
        config.tower_epochs, config.batch_size, config.tower_lr, seed=seed, bf16=config.bf16
    )
    count = len(data.spoken)
    return fit(learner, loss, count, schedule, folder, name="tower", evaluate=evaluate)


def _label_logits(model: JointEncoder, label_ids: Tensor, *inputs: Tensor) -> Tensor:
    """Scores of the label words as the word after the sequence, [batch, labels]."""
    log_mel, ids, length, presence = inputs
    states, _, at_end = model.states(log_mel, ids, length, presence)
    logits = model.decoder.logits(masked_mean(states[-1], at_end))
    return logits[:, label_ids]


def _choose_pool(
    model: JointEncoder, data: JointData, val: JointData
) -> tuple[Pool, dict[str, float]]:
    """The better of both ways to pool, by a linear probe, and the scores of each."""
    found: dict[Pool, dict[str, float]] = {}
    for pool in POOLS:
        model.pool = pool
        features = []
        for part in (data, val):

            def encode(indices: NDArray[np.int64], part: JointData = part) -> Tensor:
                zeros = np.zeros_like(indices)
                features: Tensor = model(*part.batch(indices, zeros, zeros))
                return features

            features.append(features_of(encode, len(part.spoken)))
        labels = [part.spoken.labels.numpy() for part in (data, val)]
        found[pool] = linear_probe(features[0], labels[0], features[1], labels[1])
    best = max(POOLS, key=lambda pool: found[pool]["probe_waf"])
    other = {f"probe_waf_{pool}": found[pool]["probe_waf"] for pool in POOLS}
    return best, found[best] | other
