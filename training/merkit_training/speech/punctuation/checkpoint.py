"""Published CT-Transformers: from a FunASR folder to our model, and back into such a folder.

Were words, marks and weights taken from different places, each word would be followed by some
mark, and hardly ever by the right one. They come from one folder, and what its config.yaml states
is understood, or refused by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.checkpoints import LoadReport, load_into
from merkit_training.runs import write_json
from merkit_training.speech.funasr import CONFIG, TOKENS, FunasrFolder, write_config, write_weights
from merkit_training.speech.punctuation.config import PunctuatorConfig
from merkit_training.speech.punctuation.model import CtTransformer

MODEL = "CTTransformer"
OLDER = "punc_model."
"""What FunASR's first releases put before every name."""
FIXED = {
    "input_layer": "pe",
    "normalize_before": True,
    "concat_after": False,
    "selfattention_layer_type": "sanm",
}
"""What all published ones have in common, and ours builds in; a key left out means it."""


@dataclass(frozen=True)
class PunctuationModel:
    """A model with what its ids mean."""

    model: CtTransformer
    config: PunctuatorConfig
    tokens: tuple[str, ...]  # words, by id
    marks: tuple[str, ...]  # by class; "_" is none


def load_folder(
    path: Path, schedule: PunctuatorConfig | None = None
) -> tuple[PunctuationModel, LoadReport]:
    """The model in a FunASR folder, in eval mode, and what became of each tensor.

    Raises:
        BundleError: a file is missing, damaged, or holds more than it should.
        InvalidInputError: another architecture, or a tensor without a place or of another shape.
    """
    folder = FunasrFolder(path)
    config = config_of(folder, schedule or PunctuatorConfig())
    marks = _strings(folder.table("model_conf").get("punc_list"), path / CONFIG, "punc_list")
    tokens = read_tokens(path / TOKENS)
    model = CtTransformer(config, len(tokens), len(marks)).eval()
    report = load_into(model, folder.checkpoint(), lambda name: name.removeprefix(OLDER))
    return PunctuationModel(model, config, tokens, marks), report


def config_of(folder: FunasrFolder, schedule: PunctuatorConfig) -> PunctuatorConfig:
    """`schedule` with the sizes that a folder states; errors as of `load_folder`."""
    where, encoder = folder.path / CONFIG, folder.table("encoder_conf")
    kinds = (folder.config.get("model"), folder.config.get("encoder"))
    if kinds != (MODEL, "SANMEncoder"):
        raise InvalidInputError(
            f"{where} is of the model {kinds[0]!r} with the encoder {kinds[1]!r}",
            f"{MODEL!r} with 'SANMEncoder'",
            "give the folder of an offline CT-Transformer",
        )
    for key, known in FIXED.items():
        if encoder.get(key, known) != known:
            found, action = f"{where} states {key} = {encoder[key]!r}", "choose another checkpoint"
            raise InvalidInputError(found, repr(known), action)
    table = folder.table("model_conf")
    sizes: dict[str, Any] = {
        "embedded": table.get("embed_unit", 128),
        "hidden": table.get("att_unit", 256),
        "layers": encoder.get("num_blocks", 6),
        "heads": encoder.get("attention_heads", 4),
        "intermediate": encoder.get("linear_units", 2048),
        "kernel": encoder.get("kernel_size", 11),
        "shift": encoder.get("sanm_shfit", 0),
    }
    stated = (encoder.get("input_size"), encoder.get("output_size", 256))
    if stated != (sizes["embedded"], sizes["hidden"]):
        raise BundleCorruptError(
            f"{where} states an encoder of {stated}",
            f"{(sizes['embedded'], sizes['hidden'])}, as its embedding and decoder",
            "fetch the folder again",
        )
    try:
        return replace(schedule, **sizes)
    except (TypeError, ValueError) as error:
        raise BundleCorruptError(
            f"{where} states impossible sizes ({error})",
            "the sizes of a CT-Transformer",
            "fetch the folder again",
        ) from None


def write_folder(path: Path, model: PunctuationModel) -> None:
    """Writes a FunASR folder that funasr and `load_folder` read."""
    write_facts(path, model)
    write_weights(path, model.model.state_dict())


def write_facts(path: Path, model: PunctuationModel) -> None:
    """Writes all of a FunASR folder but the weights: config.yaml and tokens.json."""
    path.mkdir(parents=True, exist_ok=True)
    write_config(path, funasr_config(model))
    write_tokens(path / TOKENS, model.tokens)


def funasr_config(model: PunctuationModel) -> dict[str, Any]:
    """config.yaml, as FunASR has it for this model."""
    c = model.config
    return {
        "model": MODEL,
        "model_conf": {
            "ignore_id": 0,
            "embed_unit": c.embedded,
            "att_unit": c.hidden,
            "dropout_rate": c.dropout,
            "punc_list": list(model.marks),
            "punc_weight": [1.0] * len(model.marks),
            "sentence_end_id": model.marks.index("。"),
        },
        "encoder": "SANMEncoder",
        "encoder_conf": {
            "input_size": c.embedded,
            "output_size": c.hidden,
            "attention_heads": c.heads,
            "linear_units": c.intermediate,
            "num_blocks": c.layers,
            "dropout_rate": c.dropout,
            "positional_dropout_rate": c.dropout,
            "attention_dropout_rate": c.attention_dropout,
            "input_layer": "pe",
            "pos_enc_class": "SinusoidalPositionEncoder",
            "normalize_before": True,
            "kernel_size": c.kernel,
            "sanm_shfit": c.shift,
            "selfattention_layer_type": "sanm",
            "padding_idx": 0,
        },
        "tokenizer": "CharTokenizer",
        "tokenizer_conf": {"unk_symbol": "<unk>"},
    }


def read_tokens(path: Path) -> tuple[str, ...]:
    """The words of tokens.json, by id.

    Raises:
        BundleNotFoundError: no such file.
        BundleCorruptError: no list of strings.
    """
    try:
        return _strings(json.loads(path.read_text("utf-8")), path, "its content")
    except OSError as error:
        raise BundleNotFoundError(
            f"{path} cannot be read ({error.strerror})", "tokens.json beside the model"
        ) from None
    except ValueError as error:
        raise BundleCorruptError(f"{path} is no JSON ({error})", "a list of words") from None


def write_tokens(path: Path, tokens: tuple[str, ...]) -> None:
    """Writes tokens.json."""
    write_json(path, list(tokens))


def _strings(value: object, path: Path, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
        raise BundleCorruptError(f"{name} of {path} is no list of strings", "one")
    return tuple(value)
