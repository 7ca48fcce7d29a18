"""Attention and norms as the single operators that ONNX Runtime has for them.

torch exports a norm as seven nodes and attention as twenty, each of which reads and writes a whole
activation; at 8 bits, where products are cheap, that is most of the time. ONNX Runtime fuses on
loading only what it recognises, and recognises none of these (a reciprocal in place of a division,
a check for NaN after softmax). The rewritten graph computes the same within rounding, and runs on
ONNX Runtime alone.

On CPUs one of these operators costs ten times what it replaces: SkipLayerNormalization took 1.44 ms
where a sum and LayerNormalization take 0.25 (1.32, 257 x 1024 values, one Zen 4 core). There the
two are kept apart, from ONNX Runtime too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from merkit_export.precision.blocks import drop_unread
from merkit_export.precision.fold import CONTRIB, attributes, need_contrib
from merkit_export.precision.pattern import Pattern, rewrite

ROOT_NORM = ("SimplifiedLayerNormalization",)
FAR_BELOW = -9e3
"""A mask's fill is at most this."""


def fuse(model: onnx.ModelProto, cpu: bool = True) -> int:
    """Fuses in place, for a CPU or a GPU; how many groups of nodes became one."""
    count = fuse_root_norms(model) + fuse_attention(model)
    count += fuse_residuals(model, ROOT_NORM if cpu else (*ROOT_NORM, "LayerNormalization"))
    if cpu:
        part_sums(model)
    if count:
        need_contrib(model)
        drop_unread(model)
    return count


def fuse_root_norms(model: onnx.ModelProto) -> int:
    """`w * x * (1 / sqrt(mean(x^2) + eps))` as SimplifiedLayerNormalization."""
    look, instead = Pattern(model), {}
    for node in model.graph.node:
        found = _root_norm(look, node) if node.op_type == "Reciprocal" else None
        if found is not None:
            last, source, weight, epsilon = found
            instead[id(last)] = helper.make_node(
                "SimplifiedLayerNormalization",
                [source, weight],
                list(last.output),
                axis=-1,
                epsilon=epsilon,
                stash_type=1,
            )
    rewrite(model, instead)
    return len(instead)


def _root_norm(
    look: Pattern, reciprocal: onnx.NodeProto
) -> tuple[onnx.NodeProto, str, str, float] | None:
    """The last node, x, the weight's name and epsilon."""
    root = look.maker(reciprocal.input[0], "Sqrt")
    shifted = root and look.maker(root.input[0], "Add")
    parts = shifted and look.split(shifted)
    mean = parts and look.maker(parts[0], "ReduceMean")
    square = mean and look.maker(mean.input[0], "Pow")
    if not parts or not mean or not square or look.scalar(square.input[1]) != 2.0:
        return None
    axes = look.constant(mean.input[1]) if len(mean.input) > 1 else None
    if axes is None or axes.tolist() != [-1] or parts[1].size != 1:
        return None
    scaled = look.sole_reader(reciprocal.output[0], "Mul")
    last = scaled and look.sole_reader(scaled.output[0], "Mul")
    if not scaled or not last or square.input[0] not in scaled.input:
        return None
    weight = next(n for n in last.input if n != scaled.output[0])
    held = look.constant(weight)
    if held is None or held.ndim != 1:
        return None
    return last, str(square.input[0]), str(weight), float(parts[1].reshape(-1)[0])


@dataclass(frozen=True)
class _Side:
    """Queries, keys or values [batch, length, hidden], before heads are split."""

    source: str
    bias: NDArray[np.float32] | None
    head: int
    """Width of a head."""
    scale: float = 1.0


def fuse_attention(model: onnx.ModelProto) -> int:
    """Softmax attention as MultiHeadAttention, wherever queries, keys and values are reshaped
    [batch, length, hidden]; rotary queries are not."""
    look = Pattern(model)
    instead: dict[int, onnx.NodeProto] = {}
    before: dict[int, list[onnx.NodeProto]] = {}
    for number, node in enumerate(model.graph.node):
        found = _attention(look, node, f"attention_{number}") if node.op_type == "Softmax" else None
        if found is not None:
            last, made, extra, stored = found
            instead[id(last)], before[id(last)] = made, extra
            model.graph.initializer.extend(stored)
    rewrite(model, instead, before=before)
    return len(instead)


def _attention(
    look: Pattern, softmax: onnx.NodeProto, label: str
) -> tuple[onnx.NodeProto, onnx.NodeProto, list[onnx.NodeProto], list[TensorProto]] | None:
    """The last node, what takes its place, nodes before that, and what these store."""
    mask, scale, scores = _scores(look, softmax)
    product = _shares_times_values(look, softmax)
    if scores is None or product is None:
        return None
    queries = _side(look, scores.input[0])
    keys = _keys(look, scores.input[1])
    values = _side(look, product.input[1])
    turned = look.sole_reader(product.output[0], "Transpose")
    last = turned and look.sole_reader(turned.output[0], "Reshape")
    if not (queries and keys and values and turned and last) or mask is None:
        return None
    hidden = _width(look, values)
    if hidden is None or list(attributes(turned)["perm"]) != [0, 2, 1, 3]:
        return None
    sides = (queries, keys, values)
    extra: list[onnx.NodeProto] = []
    stored: list[TensorProto] = []
    inputs = [side.source for side in sides] + ["", ""]
    if any(side.bias is not None for side in sides):
        parts = [np.zeros(hidden, np.float32) if s.bias is None else s.bias for s in sides]
        stored.append(numpy_helper.from_array(np.concatenate(parts), f"{label}.bias"))
        inputs[3] = f"{label}.bias"
    if mask:
        inputs[4] = f"{label}.mask"
        extra.append(helper.make_node("Cast", [mask], [inputs[4]], to=TensorProto.INT32))
    made = helper.make_node(
        "MultiHeadAttention",
        inputs,
        list(last.output),
        domain=CONTRIB,
        num_heads=hidden // values.head,
        scale=scale * queries.scale * keys.scale,
    )
    return last, made, extra, stored


def _scores(
    look: Pattern, softmax: onnx.NodeProto
) -> tuple[str | None, float, onnx.NodeProto | None]:
    """The mask of real keys (bool [batch, keys]; "": all; None: of another kind), the factor, and
    the product of queries and keys."""
    name, mask, scale = str(softmax.input[0]), "", 1.0
    added = look.maker(name, "Add")
    if added is not None:
        for i in (0, 1):
            found = _mask(look, added.input[i])
            if found is not None:
                name, mask = str(added.input[1 - i]), found
                break
        else:
            return None, scale, None
    scaled = look.maker(name, "Mul")
    if scaled is not None:
        parts = look.split(scaled)
        if parts is None or parts[1].size != 1:
            return None, scale, None
        name, scale = parts[0], float(parts[1].reshape(-1)[0])
    return mask, scale, look.maker(name, "MatMul")


def _mask(look: Pattern, name: str) -> str | None:
    """Of `where(real keys, 0, far below)`: the truth values [batch, keys]; "" if all are."""
    chosen = look.maker(name, "Where")
    if chosen is None:
        return None
    zero, fill = (look.scalar(n) for n in chosen.input[1:])
    if zero != 0.0 or fill is None or fill > FAR_BELOW:
        return None
    spread = look.maker(chosen.input[0], "Expand")
    known = look.constant(spread.input[0] if spread is not None else chosen.input[0])
    if known is not None:
        return "" if known.all() else None
    raised = look.maker(chosen.input[0], "Unsqueeze")
    axes = look.constant(raised.input[1]) if raised is not None else None
    if raised is None or axes is None or axes.tolist() != [1, 2]:
        return None
    return str(raised.input[0])


def _shares_times_values(look: Pattern, softmax: onnx.NodeProto) -> onnx.NodeProto | None:
    """The product that reads softmax, past a guard against NaN where a row is masked whole."""
    guards = look.readers(softmax.output[0], "Where")
    name = guards[0].output[0] if guards else softmax.output[0]
    return look.sole_reader(name, "MatMul")


def _side(look: Pattern, name: str) -> _Side | None:
    """Heads first: Transpose(0,2,1,3) of a Reshape, perhaps scaled."""
    scale = 1.0
    scaled = look.maker(name, "Mul")
    if scaled is not None:
        parts = look.split(scaled)
        if parts is None or parts[1].size != 1:
            return None
        name, scale = parts[0], float(parts[1].reshape(-1)[0])
    heads = look.turned(name, 0, 2, 1, 3)
    return None if heads is None else _heads(look, heads, scale)


def _keys(look: Pattern, name: str) -> _Side | None:
    """Keys are turned once more, in one of the ways that torch and ONNX Runtime write it."""
    scale = 1.0
    scaled = look.maker(name, "Mul")
    if scaled is not None:
        parts = look.split(scaled)
        if parts is None or parts[1].size != 1:
            return None
        name, scale = parts[0], float(parts[1].reshape(-1)[0])
    heads = look.turned(name, 0, 2, 3, 1)
    if heads is None:
        inner = look.turned(name, 0, 1, 3, 2)
        if inner is None:  # through three dimensions and back
            outer = look.maker(name, "Reshape")
            flat = outer and look.turned(outer.input[0], 0, 2, 1)
            folded = flat and look.maker(flat, "Reshape")
            inner = str(folded.input[0]) if folded else None
        heads = look.turned(inner, 0, 2, 1, 3) if inner else None
    return None if heads is None else _heads(look, heads, scale)


def _heads(look: Pattern, name: str, scale: float) -> _Side | None:
    """What a Reshape into heads [batch, length, heads, width] splits, and its bias."""
    split = look.maker(name, "Reshape")
    if split is None:
        return None
    shape, last = look.constant(split.input[1]), None
    if shape is not None and len(shape) == 4:
        last = int(shape[-1])
    joined = look.maker(split.input[1], "Concat")
    if joined is not None and len(joined.input) == 4:
        tail = look.scalar(joined.input[-1])
        last = int(tail) if tail is not None else None
    if last is None:
        return None
    source, bias = str(split.input[0]), None
    added = look.maker(source, "Add")
    parts = look.split(added) if added is not None else None
    if parts is not None and parts[1].ndim == 1:
        source, bias = parts[0], parts[1].astype(np.float32)
    return _Side(source, bias, last, scale)


def _width(look: Pattern, side: _Side) -> int | None:
    """Width of all heads together."""
    if side.bias is not None:
        return int(side.bias.size)
    product = look.maker(side.source, "MatMul")
    weight = look.constant(product.input[1]) if product is not None else None
    return int(weight.shape[-1]) if weight is not None and weight.ndim == 2 else None


def fuse_residuals(model: onnx.ModelProto, norms: tuple[str, ...]) -> int:
    """A residual sum with the norm of these kinds that follows it as
    Skip(Simplified)LayerNormalization, which returns the sum too; the bias of the product before it
    goes along."""
    look = Pattern(model)
    instead: dict[int, onnx.NodeProto] = {}
    gone: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type != "Add" or any(look.constant(name) is not None for name in node.input):
            continue
        behind = look.readers(node.output[0], *norms)
        norm = next((n for n in behind if n.input[0] == node.output[0]), None)
        if norm is None or not _is_step(look, node):
            continue
        instead[id(node)] = _skip(look, node, norm)
        gone.append(norm)
    rewrite(model, instead, gone)
    return len(instead)


def part_sums(model: onnx.ModelProto) -> int:
    """Writes a sum in front of a LayerNormalization as Sum, in place: ONNX Runtime, when it loads,
    looks for Add to make SkipLayerNormalization of; how many. A product's bias stays an Add."""
    look, count = Pattern(model), 0
    for node in model.graph.node:
        if node.op_type == "Add" and look.readers(node.output[0], "LayerNormalization"):
            stored = [look.constant(name) for name in node.input]
            if all(held is None or held.ndim > 1 for held in stored):
                node.op_type = "Sum"
                count += 1
    return count


def _is_step(look: Pattern, node: onnx.NodeProto) -> bool:
    """Whether one summand is a layer's own output (a product, perhaps with bias or scale)."""
    for name in node.input:
        below = look.maker(name, "Add", "Mul", "MatMul", "MultiHeadAttention")
        if below is not None and below.op_type != "Add":
            return below.op_type == "MatMul" or look.split(below) is not None
        if below is not None and (parts := look.split(below)) is not None:
            return look.maker(parts[0], "MatMul") is not None
    return False


def _skip(look: Pattern, node: onnx.NodeProto, norm: onnx.NodeProto) -> onnx.NodeProto:
    simple = norm.op_type == "SimplifiedLayerNormalization"
    first, second, bias = str(node.input[0]), str(node.input[1]), ""
    for name, other in ((first, second), (second, first)):
        added = look.maker(name, "Add")
        parts = look.split(added) if added is not None else None
        if added is not None and parts is not None and parts[1].ndim == 1:
            held = next(n for n in added.input if n != parts[0])
            first, second, bias = parts[0], other, str(held)
            break
    weights = [str(norm.input[1])]
    if not simple:
        weights.append(str(norm.input[2]) if len(norm.input) > 2 else "")
    return helper.make_node(
        "SkipSimplifiedLayerNormalization" if simple else "SkipLayerNormalization",
        [first, second, *weights, *([bias] if bias else [])],
        [norm.output[0], "", "", node.output[0]],
        domain=CONTRIB,
        epsilon=float(attributes(norm).get("epsilon", 1e-5)),
    )
