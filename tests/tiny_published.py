"""Checkpoints of published architectures at random weights and tiny sizes, in the official files.

Nothing is downloaded: each is written by transformers itself, with the processor, feature
extractor or tokeniser files that the real one has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WIDTH, PROJECTION, SIDE, FRAMES = 16, 12, 32, 4
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
}
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "the", "cat", "is", "sad", "today", "not", "happy")


def write_clip(folder: Path, vision_only: bool = False) -> Path:
    """CLIP, or only its vision tower."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionModel

    vision = {**SIZES, "image_size": SIDE, "patch_size": 8}
    words = {**SIZES, "vocab_size": 99, "eos_token_id": 98, "max_position_embeddings": 20}
    config = CLIPConfig(text_config=words, vision_config=vision, projection_dim=PROJECTION)
    torch.manual_seed(0)
    model = CLIPVisionModel(config.vision_config) if vision_only else CLIPModel(config)
    return _save(folder, model, _images("clip", "CLIPImageProcessorPil"))


def write_videomae(folder: Path) -> Path:
    """VideoMAE's encoder."""
    from transformers import VideoMAEConfig, VideoMAEModel

    config = VideoMAEConfig(**SIZES, image_size=SIDE, patch_size=8, num_frames=FRAMES)
    torch.manual_seed(0)
    return _save(folder, VideoMAEModel(config), _images("videomae", "VideoMAEImageProcessorPil"))


def write_wav2vec2(folder: Path, norm: str = "layer") -> Path:
    """wav2vec 2.0 in its large style (norm "layer") or its base style ("group")."""
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    config = Wav2Vec2Config(
        **SIZES,
        conv_dim=(8,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        vocab_size=32,
    )
    torch.manual_seed(0)
    reader = Wav2Vec2FeatureExtractor(return_attention_mask=norm == "layer")
    return _save(folder, Wav2Vec2Model(config), reader)


def write_whisper(folder: Path) -> Path:
    """Whisper, of which the encoder is read; its window is 2 s."""
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperModel

    config = WhisperConfig(
        vocab_size=50, d_model=WIDTH, encoder_layers=5, encoder_attention_heads=2,
        encoder_ffn_dim=32, decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=32,
        num_mel_bins=80, max_source_positions=100, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(folder, WhisperModel(config), WhisperFeatureExtractor(chunk_length=2))


def write_roberta(folder: Path, pooler: bool = False) -> Path:
    """RoBERTa as masked language models are published: without a pooler."""
    from transformers import RobertaConfig, RobertaForMaskedLM, RobertaModel

    config = RobertaConfig(
        **SIZES, vocab_size=len(WORDS), max_position_embeddings=34, pad_token_id=1, bos_token_id=0,
        eos_token_id=2, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = RobertaModel(config) if pooler else RobertaForMaskedLM(config)
    return _save(folder, model, word_tokenizer())


def write_qwen3(folder: Path) -> Path:
    """A decoder-only LLM."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        **SIZES, vocab_size=len(WORDS), num_key_value_heads=1, head_dim=8,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return _save(folder, Qwen3ForCausalLM(config), word_tokenizer())


def word_tokenizer() -> Any:
    """Whole words, with RoBERTa's marks around a sentence."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    marks = {"bos": "<s>", "eos": "</s>", "pad": "<pad>", "unk": "<unk>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=32,
        **{f"{name}_token": token for name, token in marks.items()},
    )


def _images(model: str, name: str) -> Any:
    from importlib import import_module

    module = import_module(f"transformers.models.{model}.image_processing_pil_{model}")
    return getattr(module, name)(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )


def _save(folder: Path, model: Any, reader: Any) -> Path:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # away from a neutral start
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder
