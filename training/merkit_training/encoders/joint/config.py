"""Sizes and schedules of the joint encoder, readable without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from merkit.contract import Preprocessing
from merkit_training.encoders.text.config import DecoderSizes, TextConfig
from merkit_training.settings import Amount, Count, Natural, Share, divides

Adapter = Literal["mlp", "linear"]
Objective = Literal["label_tokens", "label_word", "head"]
Tune = Literal["full", "lora", "frozen"]
Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class JointConfig:
    """Whisper encoder, projector and LLM over sound, prompt and transcript (seed 2.3).

    Without checkpoints and `llm`, the LLM has the text encoder's sizes and starts from its weights.
    """

    checkpoint: str = ""  # folder or hub id of a Qwen-Audio or Qwen2-Audio; sets all sizes
    tower_checkpoint: str = ""  # of a Whisper, for the audio tower alone; sets the tower's sizes
    llm_checkpoint: str = ""  # of a language model; sets `llm`; the projector starts afresh
    llm: DecoderSizes | None = None  # of the LLM; none: the text encoder's sizes and weights
    hidden: Count = 128  # width of the audio tower
    layers: Count = 2  # of the audio tower
    heads: Count = 4
    intermediate: Count = 384
    frames_per_embedding: Count = 4  # frames of the tower (20 ms each) averaged to one embedding
    adapter: Adapter = "mlp"  # norm, average, two layers; "linear" averages, norms, one layer
    markers: bool = False  # learnt embeddings before and after the sound (Qwen-Audio)
    mask_padding: bool = False  # the window's silence after the sound is not attended to
    layer_sum: bool = False  # the feature adds the last four layers (MERTools) for their mean
    pool: Literal["choose", "last", "mean"] = "choose"  # positions read; by a linear probe
    objective: Objective = "label_word"  # causal loss on the class's word; see the docs
    label_words: tuple[str, ...] = ()  # of "label_word", in the classes' order; none: their names
    tune: Tune = "full"  # what of the LLM learns
    lora_rank: Count = 8
    lora_alpha: Amount = 16.0  # the adapters' output is scaled by alpha / rank
    lora_dropout: Share = 0.05
    lora_targets: tuple[str, ...] = ()  # names of linear layers; none: all of the LLM's
    freeze_tower: bool = False  # the tower's weights stay while all learn together
    tower_epochs: Natural = 4  # of the audio tower alone, on emotion; 0 with a checkpoint
    tower_lr: Amount = 1e-3
    epochs: Natural = 3  # of all together; 0 with a checkpoint: take it as it is
    lr: Amount = 5e-4
    batch_size: Count = 32
    modality_dropout: Share = 0.1  # share of samples without sound, and again without words
    noise_share: Share = 0.5  # share of training sounds mixed with babble
    prosody_weight: Amount = 0.5  # of the generator's prosody, where the corpus has it
    class_weight: Amount = 0.5  # of the classes that tone and words show, likewise
    label_smoothing: Share = 0.05
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains

    def __post_init__(self) -> None:
        divides(self.hidden, self.heads)
        if self.checkpoint and (self.tower_checkpoint or self.llm_checkpoint):
            raise ValueError("checkpoint holds tower and LLM: give it or the two, not both")
        if self.modality_dropout > 0.5:
            raise ValueError("modality_dropout takes twice its share: at most 0.5")


@dataclass(frozen=True)
class TowerPretrainingConfig:
    """The audio tower learns to transcribe, by CTC over characters, before it meets emotion."""

    epochs: Natural = 0  # 0: skipped
    lr: Amount = 1e-3
    batch_size: Count = 32
    characters: Count = 4000  # of the training transcripts, the most frequent
    noise_share: Share = 0.5  # share of training sounds mixed with babble
    bf16: bool = False  # bfloat16 autocast: faster where the processor has it
    threads: Count = 2  # of torch, while this stage trains


@dataclass(frozen=True)
class JointSizes:
    """All that the module's shapes follow from; lies beside its weights as `config.json`."""

    joint: JointConfig
    text: TextConfig  # of the LLM, unless `joint.llm` is given
    mel_bins: int
    mel_frames: int
    pool: Pool = "last"  # the positions whose states become the feature
    audio_at: int = 0  # tokens of the prompt that stand before the sound

    @staticmethod
    def of(joint: JointConfig, text: TextConfig, p: Preprocessing) -> JointSizes:
        """The sizes that a recipe asks for."""
        frames = round(p.joint_window_seconds * 100)
        return JointSizes(joint, text, p.mel_bins, frames)

    @property
    def llm(self) -> DecoderSizes:
        """The language model's shape."""
        return self.joint.llm or self.text.sizes
