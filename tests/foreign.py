"""Folders such as Optimum writes, around graphs of a few nodes: adopting needs no Optimum here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WIDTH, HOP = 12, 160


def _save(
    folder: Path, nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: Any
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    constants = [numpy_helper.from_array(v, k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "foreign", inputs, outputs, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, folder / "model.onnx")


def _info(name: str, element: int, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element, list(shape))


def write_hearing(folder: Path, layers: int = 0, width: int = WIDTH, **facts: Any) -> Path:
    """A convolution and a norm over time, as base-style HuBERT has: padding would change it."""
    rng = np.random.default_rng(1)
    nodes = [
        helper.make_node("Unsqueeze", ["input_values", "one"], ["wave"]),
        helper.make_node("Conv", ["wave", "kernel"], ["rough"], kernel_shape=[400], strides=[HOP]),
        helper.make_node("InstanceNormalization", ["rough", "scale", "bias"], ["normal"]),
        helper.make_node("Tanh", ["normal"], ["bent"]),
        helper.make_node("Transpose", ["bent"], ["last_hidden_state"], perm=[0, 2, 1]),
    ]
    weights = {
        "one": np.array([1]),
        "kernel": rng.normal(size=(width, 1, 400)).astype(np.float32) / 20,
        "scale": np.ones(width, np.float32),
        "bias": rng.normal(size=width).astype(np.float32),
    }
    names = ["last_hidden_state", *(f"hidden_states.{i}" for i in range(layers))]
    for i, name in enumerate(names[1:]):
        weights[f"by{i}"] = np.array([1 + i], np.float32)
        nodes.append(helper.make_node("Mul", ["last_hidden_state", f"by{i}"], [name]))
    inputs = [_info("input_values", TensorProto.FLOAT, "batch", "samples")]
    outputs = [_info(name, TensorProto.FLOAT, "batch", "time", width) for name in names]
    _save(folder, nodes, inputs, outputs, weights)
    table = {"model_type": "hubert", "feat_extract_norm": "group", "conv_kernel": [400]}
    _write(folder / "config.json", table | {"conv_stride": [HOP]} | facts)
    wants = {"sampling_rate": 16000, "do_normalize": True}
    _write(folder / "preprocessor_config.json", wants)
    return folder


def write_reading(folder: Path, element: int = TensorProto.INT64, **facts: Any) -> Path:
    """Words by their embeddings and positions, as BERT has them, with all three further inputs."""
    rng = np.random.default_rng(2)
    names = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    nodes = [
        helper.make_node("Gather", ["words", "input_ids"], ["word"]),
        helper.make_node("Gather", ["kinds", "token_type_ids"], ["kind"]),
        helper.make_node("Gather", ["places", "position_ids"], ["place"]),
        helper.make_node("Sum", ["word", "kind", "place"], ["all"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["all", "column"], ["shown"]),
        helper.make_node("CumSum", ["shown", "one"], ["last_hidden_state"]),
    ]
    weights = {
        "one": np.array(1),
        "two": np.array([2]),
        "words": rng.normal(size=(300, WIDTH)).astype(np.float32),
        "kinds": rng.normal(size=(2, WIDTH)).astype(np.float32),
        "places": rng.normal(size=(80, WIDTH)).astype(np.float32),
    }
    inputs = [_info(name, element, "batch", "tokens") for name in names]
    outputs = [_info("last_hidden_state", TensorProto.FLOAT, "batch", "tokens", WIDTH)]
    _save(folder, nodes, inputs, outputs, weights)
    table = {"model_type": "bert", "max_position_embeddings": 80, "vocab_size": 300}
    _write(folder / "config.json", table | facts)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"[CLS]": 0, "[SEP]": 1} | {letter: i + 2 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pair = [("[CLS]", 0), ("[SEP]", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=pair
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def write_seeing(folder: Path, side: int = 128, **wants: Any) -> Path:
    """Patches of a picture through one projection, as ViT begins; the first patch is the class."""
    rng = np.random.default_rng(3)
    nodes = [
        helper.make_node(
            "Conv", ["pixel_values", "kernel"], ["patches"], kernel_shape=[16, 16], strides=[16, 16]
        ),
        helper.make_node("Reshape", ["patches", "flat"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["tokens"], perm=[0, 2, 1]),
        helper.make_node("Add", ["tokens", "places"], ["last_hidden_state"]),
    ]
    count = (side // 16) ** 2
    weights = {
        "kernel": rng.normal(size=(WIDTH, 3, 16, 16)).astype(np.float32) / 16,
        "flat": np.array([0, WIDTH, -1]),
        "places": rng.normal(size=(count, WIDTH)).astype(np.float32),
    }
    inputs = [_info("pixel_values", TensorProto.FLOAT, "batch", 3, "height", "width")]
    outputs = [_info("last_hidden_state", TensorProto.FLOAT, "batch", count, WIDTH)]
    _save(folder, nodes, inputs, outputs, weights)
    _write(folder / "config.json", {"model_type": "vit", "image_size": side})
    _write(folder / "preprocessor_config.json", wants)
    return folder


def _write(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table), "utf-8")
