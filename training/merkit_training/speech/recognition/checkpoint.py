"""Published Paraformers: from a FunASR folder to our recogniser, and back into such a folder.

A size read wrongly, or a variant taken for another, gives a recogniser that runs and hears
nonsense. So what config.yaml states is either understood or refused by name, and every tensor of
the file has a place, or belongs to what FunASR's variants have beside Paraformer: timestamps
(BiCif) and hotwords (SeACo).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.speech.vocabulary import BLANK, END, Vocabulary
from merkit_training.checkpoints import LoadReport, load_into
from merkit_training.speech.funasr import (
    CMVN,
    CONFIG,
    TOKENS,
    FunasrFolder,
    write_cmvn,
    write_config,
    write_weights,
)
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.model import BLANK as BLANK_ID
from merkit_training.speech.recognition.model import END as END_ID
from merkit_training.speech.recognition.model import Recognizer

VARIANTS = ("Paraformer", "BiCifParaformer", "SeacoParaformer")
ASIDE = (
    "predictor.upsample_cnn.", "predictor.blstm.", "predictor.cif_output2.", "bias_encoder.",
    "bias_embed.", "seaco_decoder.", "hotword_output_layer.", "lstm_proj.",
)  # fmt: skip
"""What timestamps and hotwords of the variants are made of: deliberately unused."""
CTC_HEAD = "ctc."
FIXED: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("", "encoder"): ("SANMEncoder",),
    ("", "decoder"): ("ParaformerSANMDecoder",),
    ("", "predictor"): ("CifPredictorV2", "CifPredictorV3"),
    ("", "normalize"): (None, "None"),
    ("encoder_conf", "input_layer"): ("pe",),
    ("encoder_conf", "normalize_before"): (True,),
    ("encoder_conf", "concat_after"): (False,),
    ("encoder_conf", "selfattention_layer_type"): ("sanm",),
    ("decoder_conf", "input_layer"): ("embed",),
    ("decoder_conf", "normalize_before"): (True,),
    ("decoder_conf", "concat_after"): (False,),
    ("predictor_conf", "threshold"): (1.0,),
    ("predictor_conf", "l_order"): (1,),
    ("predictor_conf", "r_order"): (1,),
    ("frontend_conf", "fs"): (16_000,),
    ("frontend_conf", "window"): ("hamming",),
    ("frontend_conf", "frame_length"): (25,),
    ("frontend_conf", "frame_shift"): (10,),
    ("model_conf", "share_embedding"): (False,),
}
"""What all published Paraformers have in common, and ours builds in; a key left out means it."""
KEYS = {
    "hidden": ("encoder_conf", "output_size", 256),
    "layers": ("encoder_conf", "num_blocks", 6),
    "heads": ("encoder_conf", "attention_heads", 4),
    "intermediate": ("encoder_conf", "linear_units", 2048),
    "kernel": ("encoder_conf", "kernel_size", 11),
    "shift": ("encoder_conf", "sanm_shfit", 0),
    "decoder_layers": ("decoder_conf", "num_blocks", 6),
    "decoder_attending": ("decoder_conf", "att_layer_num", 6),
    "decoder_heads": ("decoder_conf", "attention_heads", 4),
    "decoder_intermediate": ("decoder_conf", "linear_units", 2048),
    "decoder_kernel": ("decoder_conf", "kernel_size", 21),
    "decoder_shift": ("decoder_conf", "sanm_shfit", 0),
    "tail": ("predictor_conf", "tail_threshold", 0.0),
    "smooth": ("predictor_conf", "smooth_factor", 1.0),
    "noise_floor": ("predictor_conf", "noise_threshold", 0.0),
    "mels": ("frontend_conf", "n_mels", 80),
    "stacked": ("frontend_conf", "lfr_m", 1),
    "hop": ("frontend_conf", "lfr_n", 1),
    "end_counts": ("model_conf", "predictor_bias", 0),
}
"""Our sizes: the table and key that state each, and what FunASR takes where it is left out."""


def config_of(folder: FunasrFolder, schedule: RecognizerConfig) -> RecognizerConfig:
    """`schedule` with the sizes that a folder states.

    Raises:
        InvalidInputError: a model, or a setting of it, that ours does not build.
        BundleError: the folder is incomplete or malformed.
    """
    kind = folder.config.get("model")
    if kind not in VARIANTS:
        raise InvalidInputError(
            f"{folder.path / CONFIG} is of the model {kind!r}",
            f"one of {', '.join(VARIANTS)}",
            "give the folder of an offline Paraformer",
        )
    for (table, key), known in FIXED.items():
        values = folder.table(table) if table else folder.config
        if values.get(key, known[0]) not in known:
            raise InvalidInputError(
                f"{folder.path / CONFIG} states {key} = {values[key]!r}",
                f"{known[0]!r}, as all published Paraformers",
                "choose another checkpoint",
            )
    found: dict[str, Any] = {
        ours: folder.table(table).get(key, default) for ours, (table, key, default) in KEYS.items()
    }
    for shift, kernel in (("shift", "kernel"), ("decoder_shift", "decoder_kernel")):
        if found[shift] is None:
            found[shift] = (found[kernel] - 1) // 2
    found["end_counts"] = bool(found["end_counts"])
    found["ctc"] = any(n.startswith(CTC_HEAD) for n in folder.checkpoint().names())
    try:
        return schedule.sized(found)
    except (TypeError, ValueError) as error:
        raise BundleCorruptError(
            f"{folder.path / CONFIG} states impossible sizes ({error})",
            "the sizes of a Paraformer",
            "fetch the folder again",
        ) from None


def load_folder(
    path: Path, schedule: RecognizerConfig | None = None
) -> tuple[Recognizer, RecognizerConfig, Vocabulary, LoadReport]:
    """The recogniser in a FunASR folder, in eval mode, with its sizes and vocabulary.

    Raises:
        BundleError: a file is missing, damaged, or holds more than tensors.
        InvalidInputError: another architecture, or a tensor without a place or of another shape.
    """
    folder = FunasrFolder(path)
    config = config_of(folder, schedule or RecognizerConfig())
    vocabulary, cmvn = folder.vocabulary, folder.cmvn
    if vocabulary.ids.get(BLANK, BLANK_ID) != BLANK_ID or vocabulary.end != END_ID:
        raise InvalidInputError(
            f"{path / TOKENS} has {END} as number {vocabulary.end}",
            f"{BLANK} as number {BLANK_ID} and {END} as number {END_ID}",
            "give the tokens.json that the weights were published with",
        )
    if cmvn.shape[1] != config.inputs:
        raise BundleCorruptError(
            f"{path / CMVN} normalises {cmvn.shape[1]} numbers",
            f"{config.inputs}, one for each of an input",
            "fetch the folder again",
        )
    recognizer = Recognizer(config, len(vocabulary)).eval()
    report = load_into(recognizer.model, folder.checkpoint(), rename)
    recognizer.frontend.shift.copy_(torch.from_numpy(cmvn[0].copy()))
    recognizer.frontend.scale.copy_(torch.from_numpy(cmvn[1].copy()))
    return recognizer, config, vocabulary, report


def rename(name: str) -> str | None:
    """Our key for FunASR's: the same, or None for what only timestamps and hotwords need."""
    return None if name.startswith(ASIDE) else name


def write_folder(
    path: Path, recognizer: Recognizer, config: RecognizerConfig, vocabulary: Vocabulary
) -> None:
    """Writes a FunASR folder that funasr and `load_folder` read; the weights last."""
    write_facts(path, recognizer, config, vocabulary)
    write_weights(path, recognizer.model.state_dict())


def write_facts(
    path: Path, recognizer: Recognizer, config: RecognizerConfig, vocabulary: Vocabulary
) -> None:
    """Writes what lies beside a model's weights: config.yaml, tokens.json, am.mvn."""
    path.mkdir(parents=True, exist_ok=True)
    write_config(path, funasr_config(config))
    vocabulary.save(path / TOKENS)
    front = recognizer.frontend
    write_cmvn(path / CMVN, front.shift.cpu().numpy(), front.scale.cpu().numpy())


def funasr_config(config: RecognizerConfig) -> dict[str, Any]:
    """config.yaml of a recogniser of these sizes."""
    tables: dict[str, Any] = {"model": VARIANTS[0], "model_conf": {}}
    for (table, key), known in FIXED.items():
        if known[0] is None:
            continue
        (tables.setdefault(table, {}) if table else tables)[key] = known[0]
    for ours, (table, key, _) in KEYS.items():
        value = getattr(config, ours)
        tables[table][key] = int(value) if isinstance(value, bool) else value
    tables["encoder_conf"] |= {
        "pos_enc_class": "SinusoidalPositionEncoder",
        "dropout_rate": config.dropout,
        "attention_dropout_rate": config.attention_dropout,
    }
    tables["decoder_conf"] |= {
        "dropout_rate": config.dropout,
        "self_attention_dropout_rate": config.attention_dropout,
        "src_attention_dropout_rate": config.attention_dropout,
    }
    tables["predictor_conf"]["idim"] = config.hidden
    tables["model_conf"] |= {
        "ctc_weight": config.ctc_weight if config.ctc else 0.0,
        "lsm_weight": config.label_smoothing,
        "length_normalized_loss": True,
        "predictor_weight": config.quantity_weight,
        "sampling_ratio": config.sampling,
    }
    tables |= {"frontend": "WavFrontend", "input_size": config.inputs, "tokenizer": "CharTokenizer"}
    tables["frontend_conf"]["cmvn_file"] = CMVN
    tables["tokenizer_conf"] = {"unk_symbol": "<unk>", "split_with_space": True}
    tables["ctc_conf"] = {"dropout_rate": 0.0, "ctc_type": "builtin", "reduce": True}
    return tables
