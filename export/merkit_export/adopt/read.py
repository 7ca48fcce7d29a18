"""What lies in a folder that `optimum-cli export onnx` wrote, and whether it can be a step.

Such a folder says how its model wants to be fed in three files of three formats. Whatever differs
from the contract either can be done exactly inside the graph, and is named in a note, or cannot,
and is refused here: an encoder fed a little wrongly still answers.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError, MissingExtraError
from merkit_training.encoders.adopted import GRAPH, AdoptedConfig, Pool

READS = {
    "audio_encoder": "input_values",
    "text_encoder": "input_ids",
    "face_encoder": "pixel_values",
    "face_encoder_large": "pixel_values",
}
"""Steps that can be adopted, by the input that their model's graph has."""
BESIDE = ("attention_mask", "token_type_ids", "position_ids")
LAYER = "hidden_states."
LAST_LAYERS = 4
OLDEST_OPSET = 13  # from which on Squeeze and ReduceSum take axes as inputs
EXPORT = "export it with: optimum-cli export onnx --model MODEL --task feature-extraction FOLDER"
BYTE = 1 / 255
"""What colours of pictures are multiplied by before mean and deviation."""
HUBERT_FIELD = 400
"""Samples that HuBERT's and wav2vec 2.0's convolutions need, where config.json does not say."""


@dataclass(frozen=True)
class Adoptable:
    """A folder that can become a step.

    Attributes:
        folder: it.
        step: which step.
        config: how its graph is to be fed and pooled; `hidden` is still 0.
        notes: what differs from the contract and is made up for, a sentence each.
    """

    folder: Path
    step: str
    config: AdoptedConfig
    notes: tuple[str, ...]

    @property
    def graph(self) -> Path:
        """Its ONNX file."""
        return self.folder / GRAPH


def read_folder(folder: Path, step: str, p: Preprocessing, pool: Pool = "mean") -> Adoptable:
    """Looks at a folder without loading its weights.

    Args:
        folder: with model.onnx and config.json.
        step: a key of `READS`.
        p: the contract's constants.
        pool: how positions become one feature.

    Raises:
        InvalidInputError: it cannot be that step; says why.
    """
    if step not in READS:
        raise InvalidInputError(
            f"{step!r} cannot be adopted", f"one of {', '.join(READS)}", "choose one of them"
        )
    facts, graph = _facts(folder / "config.json"), _graph(folder / GRAPH)
    config = AdoptedConfig(str(facts.get("model_type", "unknown")), READS[step], pool=pool)
    config = replace(config, beside=_beside(graph, config, step), states=_states(graph, folder))
    notes = [_states_note(config)]
    fit = {"input_values": _sound, "input_ids": _words, "pixel_values": _pictures}[config.reads]
    config, told = fit(folder, config, facts, p)
    return Adoptable(folder, step, config, tuple(notes + told))


def _facts(path: Path, required: bool = True) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        if not required:
            return {}
        raise InvalidInputError(
            f"{path.parent} holds no {path.name}", "a folder that Optimum wrote", EXPORT
        ) from None
    except ValueError as error:
        raise InvalidInputError(f"{path} is no JSON ({error})", "JSON", EXPORT) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"{path} holds {type(value).__name__}", "an object", EXPORT)
    return value


def _graph(path: Path) -> onnx.GraphProto:
    try:
        model = onnx.load(str(path), load_external_data=False)
    except FileNotFoundError:
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.onnx"))) or "no ONNX file"
        raise InvalidInputError(
            f"{path.parent} holds {others}",
            f"{path.name}: one graph, no decoder with a past",
            EXPORT,
        ) from None
    except Exception as error:  # protobuf's DecodeError, of whichever implementation
        raise InvalidInputError(
            f"{path} is no ONNX model ({type(error).__name__})", "an ONNX model", EXPORT
        ) from None
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        raise InvalidInputError(
            f"{path} has opset {opset}", f"{OLDEST_OPSET} or newer", f"{EXPORT} --opset 18"
        )
    return model.graph


def _beside(graph: onnx.GraphProto, config: AdoptedConfig, step: str) -> tuple[str, ...]:
    constants = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in constants]
    if config.reads not in names:
        raise InvalidInputError(
            f"the graph of a {config.kind} takes {', '.join(names)}",
            f"{config.reads}, as an encoder for {step} does",
            "name the step that it suits, or export another model",
        )
    known = () if config.reads == "pixel_values" else BESIDE
    if odd := [name for name in names if name not in (config.reads, *known)]:
        raise InvalidInputError(
            f"the graph takes {', '.join(odd)} too",
            f"{config.reads}, and beside it {' or '.join(known) or 'nothing'}",
            EXPORT,
        )
    return tuple(name for name in names if name != config.reads)


def _states(graph: onnx.GraphProto, folder: Path) -> tuple[str, ...]:
    """The last four layers where the graph gives each, else the last alone.

    In place of the last layer's own output stands `last_hidden_state`, which is normed.
    """
    names = [value.name for value in graph.output]
    if "last_hidden_state" not in names:
        raise InvalidInputError(
            f"{folder / GRAPH} makes {', '.join(names)}", "last_hidden_state", EXPORT
        )
    types = {value.name: value.type.tensor_type.elem_type for value in graph.output}
    if types["last_hidden_state"] not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        found = TensorProto.DataType.Name(types["last_hidden_state"])
        raise InvalidInputError(f"last_hidden_state is {found}", "FLOAT or FLOAT16", EXPORT)
    layers = [n for n in names if n.startswith(LAYER) and n.removeprefix(LAYER).isdecimal()]
    layers.sort(key=lambda name: int(name.removeprefix(LAYER)))
    inner = layers[1:-1]  # 0 is what enters the first layer; the last stands below the norm
    return (*inner[-(LAST_LAYERS - 1) :], "last_hidden_state")


def _states_note(config: AdoptedConfig) -> str:
    if len(config.states) > 1:
        return f"features are the {config.pool} over the mean of {', '.join(config.states)}"
    return (
        f"features are the {config.pool} over last_hidden_state: the graph gives no other layer, "
        "and the seed averages the last four (export with output_hidden_states to have them)"
    )


def _sound(
    folder: Path, config: AdoptedConfig, facts: dict[str, Any], p: Preprocessing
) -> tuple[AdoptedConfig, list[str]]:
    path = folder / "preprocessor_config.json"
    wants, notes = _facts(path, required=False), []
    if not wants:
        notes.append(f"no {path.name}: taken to want {p.sample_rate} Hz, normalised")
    rate = wants.get("sampling_rate", p.sample_rate)
    if rate != p.sample_rate:
        raise InvalidInputError(
            f"the encoder hears {rate} Hz", f"{p.sample_rate} Hz, the contract's", "adopt another"
        )
    if wants.get("do_normalize", True) is not True:
        raise InvalidInputError(
            "the encoder wants sound as it is (do_normalize is false)",
            "one for sound of zero mean and unit variance: the contract's, which hides loudness",
            "adopt another",
        )
    if facts.get("feat_extract_norm") == "group":
        notes.append("its convolutions norm over time, which padding would change: it never pads")
    notes.append("clips of a batch run one after another inside the graph, so no padding exists")
    kernels, strides = facts.get("conv_kernel"), facts.get("conv_stride")
    field = HUBERT_FIELD
    if isinstance(kernels, list) and isinstance(strides, list) and len(kernels) == len(strides):
        hops = [math.prod(strides[:i]) for i in range(len(strides))]
        field = 1 + sum((size - 1) * hop for size, hop in zip(kernels, hops, strict=True))
    return replace(config, least=field), notes


def _words(
    folder: Path, config: AdoptedConfig, facts: dict[str, Any], p: Preprocessing
) -> tuple[AdoptedConfig, list[str]]:
    path = folder / "tokenizer.json"
    try:
        import tokenizers
    except ImportError:
        raise MissingExtraError.of("tokenizers", "text") from None
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception:  # tokenizers raises bare Exception
        raise InvalidInputError(
            f"{path} is not there or no tokeniser",
            "a tokenizer.json of the tokenizers package",
            "save the model's fast tokeniser beside it",
        ) from None
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
    before, after = tuple(whole[:start]), tuple(whole[start + len(bare) :])
    longest, size = facts.get("max_position_embeddings"), tokenizer.get_vocab_size()
    needed = p.max_text_tokens + len(before) + len(after)
    if isinstance(longest, int) and longest < needed:
        raise InvalidInputError(
            f"the encoder has {longest} positions", f"{needed} for the contract's longest text"
        )
    if isinstance(rows := facts.get("vocab_size"), int) and rows < size:
        raise InvalidInputError(
            f"the tokeniser has {size} ids", f"at most {rows}, which the encoder knows"
        )
    notes = ["the tokeniser of the folder takes the place of the text encoder's own"]
    if before or after:
        notes.append(f"the graph adds the special ids {list(before)} and {list(after)}")
    notes.append("clips of a batch run one after another inside the graph, so no padding exists")
    return replace(config, before=before, after=after), notes


def _pictures(
    folder: Path, config: AdoptedConfig, facts: dict[str, Any], p: Preprocessing
) -> tuple[AdoptedConfig, list[str]]:
    path = folder / "preprocessor_config.json"
    wants, notes = _facts(path, required=False), []
    if not wants:
        notes.append(f"no {path.name}: taken to want the contract's mean and deviation")
    factor = wants.get("rescale_factor", BYTE)
    usual = isinstance(factor, int | float) and abs(factor - BYTE) < BYTE / 1000
    if wants.get("do_rescale", True) is not True or not usual:
        raise InvalidInputError(
            f"{path} wants colours of another range (rescale_factor {factor})",
            "colours from 0 to 255 divided by 255, as the contract's are",
            "adopt another",
        )
    mean = _colours(wants.get("image_mean"), p.face_mean, path)
    std = _colours(wants.get("image_std"), p.face_std, path)
    if wants.get("do_normalize", True) is False:
        mean, std = (0.0,) * 3, (1.0,) * 3
    if (mean, std) != (p.face_mean, p.face_std):
        scale = tuple(ours / its for ours, its in zip(p.face_std, std, strict=True))
        pairs = zip(p.face_mean, mean, std, strict=True)
        shift = tuple((ours - its) / deviation for ours, its, deviation in pairs)
        config = replace(config, scale=scale, shift=shift)
        notes.append(f"pictures of mean {mean} and deviation {std}: made from ours in the graph")
    if facts.get("num_channels", 3) != 3:
        raise InvalidInputError(f"the encoder sees {facts['num_channels']} colours", "3")
    ours, side = p.grid * p.face_size, facts.get("image_size")
    if isinstance(side, int) and side != ours:
        config = replace(config, side=side)
        notes.append(f"pictures of {side} pixels: ours of {ours} are resized in the graph")
    return config, notes


def _colours(value: Any, default: tuple[float, ...], path: Path) -> tuple[float, ...]:
    if value is None:
        return default
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(isinstance(v, int | float) for v in value)
    ):
        raise InvalidInputError(f"{path} states {value!r} for colours", "three numbers", EXPORT)
    return tuple(map(float, value))
