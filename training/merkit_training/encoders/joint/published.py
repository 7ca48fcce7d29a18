"""Published joint models: the sizes that their config.json states, and where their weights go.

Qwen-Audio is the seed's own model (2.3), Qwen2-Audio its successor in transformers; either fills
the whole encoder. A Whisper fills the audio tower alone. Names are theirs on the left and ours on
the right; what is left over or missing is an error, so that nothing stays random unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.checkpoints import Checkpoint, LoadReport, Target, load_into
from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.joint.encoder import JointEncoder
from merkit_training.encoders.joint.tower import STRIDE, AudioTower
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.settings import from_table

WHISPER_BLOCK = {
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.out": "self_attn.out_proj",
    "attn_ln": "self_attn_layer_norm",
    "mlp.0": "fc1",
    "mlp.2": "fc2",
    "mlp_ln": "final_layer_norm",
}
"""OpenAI's names of a Whisper block, which Qwen-Audio uses, and transformers'."""
POSITIONS = "embed_positions.weight"


def joint_sizes(config: JointConfig, found: Checkpoint, p: Preprocessing) -> JointConfig:
    """The sizes of a Qwen-Audio or Qwen2-Audio checkpoint, in place of the recipe's.

    Raises:
        InvalidInputError: it is another kind of model, a variant that is not supported, or the
            recipe's preprocessing does not fit it.
    """
    published, kind = found.config, found.config.get("model_type")
    if kind == "qwen2_audio":
        return _qwen2_audio(config, found, p)
    if kind != "qwen" or "audio" not in published:
        raise _unlike(found, "a Qwen-Audio (model_type qwen, with audio) or a Qwen2-Audio")
    try:
        audio = published["audio"]
        llm = qwen_sizes(found)
        _fits(found, audio["n_mels"], audio["n_ctx"], p)
        return replace(
            config,
            llm=llm,
            hidden=audio["n_state"],
            layers=audio["n_layer"],
            heads=audio["n_head"],
            intermediate=4 * audio["n_state"],
            adapter="linear",
            frames_per_embedding=2 if audio.get("avg_pool", True) else 1,
            markers=bool(audio.get("add_audio_bos_eos_token", True)),
            mask_padding=True,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(found, error) from None


def qwen_sizes(found: Checkpoint) -> DecoderSizes:
    """The shape of a first-generation Qwen, alone or inside Qwen-Audio."""
    published = found.config
    whole = published["num_attention_heads"] * published["kv_channels"] == published["hidden_size"]
    if not whole or not published["no_bias"] or published.get("rotary_pct", 1.0) != 1.0:
        raise _unlike(found, "heads as wide as the model, no biases, all dimensions rotary")
    table = {
        "architecture": "qwen",
        "vocabulary": published["vocab_size"],
        "hidden": published["hidden_size"],
        "layers": published["num_hidden_layers"],
        "heads": published["num_attention_heads"],
        "intermediate": published["intermediate_size"] // 2,  # the MLP has two halves
        "positions": published["seq_length"],
        "rope_theta": published["rotary_emb_base"],
        "norm_eps": published["layer_norm_epsilon"],
        "tied": published["tie_word_embeddings"],
    }
    return from_table(DecoderSizes, table, str(found.folder / "config.json"))


def _qwen2_audio(config: JointConfig, found: Checkpoint, p: Preprocessing) -> JointConfig:
    """transformers fills in what the file leaves to defaults."""
    from transformers import Qwen2AudioConfig

    try:
        published = Qwen2AudioConfig.from_dict(dict(found.config))
        audio, text = published.audio_config, published.text_config
        if text.model_type != "qwen2" or getattr(text, "use_sliding_window", False):
            raise ValueError(f"a text model {text.model_type!r} or a sliding window")
        _fits(found, audio.num_mel_bins, audio.max_source_positions, p)
        llm = DecoderSizes(
            architecture="qwen2",
            vocabulary=text.vocab_size,
            hidden=text.hidden_size,
            layers=text.num_hidden_layers,
            heads=text.num_attention_heads,
            kv_heads=text.num_key_value_heads,
            intermediate=text.intermediate_size,
            positions=text.max_position_embeddings,
            rope_theta=float(text.rope_parameters["rope_theta"]),
            norm_eps=text.rms_norm_eps,
            tied=bool(text.tie_word_embeddings),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _malformed(found, error) from None
    return replace(
        config,
        llm=llm,
        hidden=audio.d_model,
        layers=audio.encoder_layers,
        heads=audio.encoder_attention_heads,
        intermediate=audio.encoder_ffn_dim,
        adapter="linear",
        frames_per_embedding=2,
        markers=False,  # its <|audio_bos|> and <|audio_eos|> are words of the prompt
        mask_padding=True,
    )


def tower_sizes(config: JointConfig, found: Checkpoint, p: Preprocessing) -> JointConfig:
    """The recipe with the tower of a Whisper checkpoint; errors as in `joint_sizes`."""
    published = found.config
    if published.get("model_type") != "whisper":
        raise _unlike(found, "a Whisper")
    try:
        _fits(found, published["num_mel_bins"], published["max_source_positions"], p)
        return replace(
            config,
            hidden=published["d_model"],
            layers=published["encoder_layers"],
            heads=published["encoder_attention_heads"],
            intermediate=published["encoder_ffn_dim"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _malformed(found, error) from None


def load_joint(model: JointEncoder, found: Checkpoint) -> LoadReport:
    """Weights of a Qwen-Audio or Qwen2-Audio into the whole encoder; errors of `load_into`."""
    name = qwen_audio_name if found.config.get("model_type") == "qwen" else qwen2_audio_name
    return load_into(model, found, _window(name, model.tower))


def load_tower(tower: AudioTower, found: Checkpoint) -> LoadReport:
    """Weights of a Whisper's encoder into the audio tower; its decoder is set aside."""
    return load_into(tower, found, _window(whisper_name, tower))


def qwen_audio_name(name: str) -> str | None:
    """Our key for a weight of Qwen-Audio; None for what it recomputes."""
    name = name.removeprefix("transformer.")
    if name.endswith((".inv_freq", ".masked_bias", ".logn_tensor")):
        return None
    if not name.startswith("audio."):
        return f"decoder.{name}"
    name = name.removeprefix("audio.")
    block = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if block and block[2] in WHISPER_BLOCK:
        return f"tower.model.layers.{block[1]}.{WHISPER_BLOCK[block[2]]}.{block[3]}"
    if name == "positional_embedding":
        return f"tower.model.{POSITIONS}"
    for theirs, ours in (("ln_post", "tower.model.layer_norm"), ("proj", "projector"),
                         ("audio_bos_eos_token", "markers")):  # fmt: skip
        if name.startswith(f"{theirs}."):
            return name.replace(theirs, ours, 1)
    return f"tower.model.{name}"


def qwen2_audio_name(name: str) -> str:
    """Our key for a weight of Qwen2-Audio, as its hub spells it or as transformers 5 does."""
    name = name.removeprefix("model.")
    if name.startswith("audio_tower."):
        return name.replace("audio_tower.", "tower.model.", 1)
    if name.startswith("multi_modal_projector.linear."):
        return name.replace("multi_modal_projector.linear", "projector", 1)
    name = name.removeprefix("language_model.")
    if name.startswith("lm_head."):
        return f"decoder.{name}"
    return f"decoder.model.{name.removeprefix('model.')}"


def whisper_name(name: str) -> str | None:
    """The tower's key for a weight of Whisper; None for its decoder's."""
    name = name.removeprefix("model.")
    if not name.startswith("encoder."):
        return None
    return name.replace("encoder.", "model.", 1)


def _window(rename: Callable[[str], str | None], tower: AudioTower) -> Callable[[str], Target]:
    """Of the positions, those of our window: the tower's are sinusoids from its beginning."""
    frames = tower.model.embed_positions.num_embeddings

    def target(name: str) -> Target:
        key = rename(name)
        if key is None or not key.endswith(POSITIONS):
            return key
        return [(key, slice(0, frames))]

    return target


def _fits(found: Checkpoint, mel_bins: int, positions: int, p: Preprocessing) -> None:
    frames = round(p.joint_window_seconds * 100) // STRIDE
    if p.mel_bins != mel_bins or frames > positions:
        longest = positions * STRIDE / 100
        raise InvalidInputError(
            f"the recipe gives the audio tower {p.mel_bins} mel bins and a window of"
            f" {p.joint_window_seconds:g} s",
            f"{mel_bins} bins and at most {longest:g} s for {found.folder}",
            "set mel_bins and joint_window_seconds in [preprocessing]",
        )


def _unlike(found: Checkpoint, expected: str) -> InvalidInputError:
    kind = found.config.get("model_type")
    return InvalidInputError(
        f"{found.folder} is of the model type {kind!r} or a variant of it",
        expected,
        "give another checkpoint in [joint_encoder]",
    )


def _malformed(found: Checkpoint, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"config.json in {found.folder} cannot be used ({type(error).__name__}: {error})",
        "the configuration that was published with these weights",
        "fetch it again",
    )
