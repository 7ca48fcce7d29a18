"""What exporting a recipe would take: parameters, files, memory, before a GPU host is rented.

The paper's encoders have 27 billion parameters. Whether a host can hold and export them must not
be found out by trying. Everything here follows from shapes on torch's meta device: no weights,
no memory for any, a few seconds; with `graphs`, each encoder's graph is traced too, still without
weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from merkit.contract import Contract, StepSpec
from merkit.pipeline import GROUPS, standard_contract
from merkit_export import graphs, storage
from merkit_export.costs import recipe_operations
from merkit_export.origin import KEPT_BYTES
from merkit_training.encoders.audio import encoder as audio
from merkit_training.encoders.joint import start as joint
from merkit_training.encoders.text import encoder as text
from merkit_training.encoders.vision import train as vision
from merkit_training.labels import MER6
from merkit_training.recipe import TABLES, Recipe
from merkit_training.speech.hearing.untrained import chain_like, chain_modules
from merkit_training.stages import SPEECH

BITS = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
"""Of a weight, by precision; scales and what stays in more bits add a few percent."""
FLOAT_BYTES = 4
"""Of a weight in memory while exporting: modules are loaded in float32."""
COPIES = 7
"""Of the largest tensor, while it is compacted: five layers of InternViT-6B, 2.55 GB, took 3.98 GB,
of which 0.34 are torch's own (measured 2026-11-22)."""
CHAIN = ("separate", "recognize", "punctuate")
ENCODERS = ("face_encoder", "face_encoder_large", "audio_encoder", "text_encoder", "joint_encoder")
TOKENS = 24
"""Of a made-up text: the graph's sizes are free, any will do."""


@dataclass(frozen=True)
class StepPlan:
    """What one encoder, or one step of the chain in front of them, takes.

    Attributes:
        step: its name.
        parameters: how many.
        largest: parameters of its largest tensor.
        bytes: of its weights on disk, by precision.
        files: of its model in float32: one, or a graph with its weights beside it.
        memory: bytes that exporting it takes: the module, and `COPIES` of its largest tensor.
        operations: floating-point operations for one clip of five seconds.
        nodes: of its graph; None where it was not traced.
        graph_bytes: of its graph without weights; None where it was not traced.
    """

    step: str
    parameters: int
    largest: int
    bytes: Mapping[str, int]
    files: tuple[str, ...]
    memory: int
    operations: int
    nodes: int | None = None
    graph_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def plan(recipe: Recipe, trace: bool = False) -> Iterator[StepPlan]:
    """Each step of a recipe's chain, then each encoder. What its checkpoints say of their own
    shapes is not asked; whether there are any decides what the chain has.

    Args:
        recipe: whose shapes.
        trace: whether each graph is traced, which takes about a second for each layer.
    """
    for name in TABLES.keys() - SPEECH:  # of these a checkpoint says that they are asked for
        table = getattr(recipe, name)
        named = {key: "" for key in vars(table) if key.endswith("checkpoint")}
        recipe = replace(recipe, **{name: replace(table, **named)})
    counts = recipe_operations(recipe)
    for name in (*(step for step in CHAIN if step in counts), *ENCODERS):
        module = _module(recipe, name)
        found = _sizes(name, module, counts[name])
        if trace:
            nodes, size = _traced(recipe, name, module)
            found = replace(found, nodes=nodes, graph_bytes=size)
        yield found


def lines(steps: list[StepPlan]) -> Iterator[str]:
    """The plan as a table for a terminal."""
    heads = ("step", "parameters", *BITS, "files", "memory", "GFLOP", "nodes", "graph")
    yield _row(heads)
    for step in steps:
        graph = "" if step.graph_bytes is None else _size(step.graph_bytes)
        yield _row(
            (
                step.step,
                f"{step.parameters:,}",
                *(_size(step.bytes[name]) for name in BITS),
                str(len(step.files)),
                _size(step.memory),
                f"{step.operations / 1e9:,.0f}",
                "" if step.nodes is None else str(step.nodes),
                graph,
            )
        )
    total = {name: sum(step.bytes[name] for step in steps) for name in BITS}
    parameters = sum(step.parameters for step in steps)
    yield _row(("together", f"{parameters:,}", *map(_size, total.values()), "", "", "", "", ""))
    most = max(steps, key=lambda step: step.memory)
    yield (
        f"one module is in memory at a time: exporting takes {_size(most.memory)} ({most.step}), "
        f"and {_size(total['fp32'])} of disk in fp32"
    )
    if total["fp32"] > KEPT_BYTES:
        # ONNX Runtime: 410 MB for 24 matrices of 16.8 MB beside their graph (measured 2026-11-23)
        largest = max(step.bytes["fp32"] + FLOAT_BYTES * step.largest for step in steps)
        yield f"proving the bundle then opens one graph or one module at a time: {_size(largest)}"
    else:
        yield f"proving the bundle then holds every graph and module: {_size(2 * total['fp32'])}"
    if heavy := [step.step for step in steps if len(step.files) > 1]:
        limit = _size(storage.LIMIT)
        yield f"above {limit}, weights go beside the graph tensor by tensor: {', '.join(heavy)}"


def _row(cells: tuple[str, ...]) -> str:
    first, *others = cells
    return f"{first:<19}{others[0]:>15}" + "".join(f"{cell:>9}" for cell in others[1:])


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


def _module(recipe: Recipe, name: str) -> nn.Module:
    makers: dict[str, Any] = {
        "face_encoder": lambda: vision.from_recipe(recipe),
        "face_encoder_large": lambda: vision.from_recipe(recipe, "face_encoder_large"),
        "audio_encoder": lambda: audio.from_recipe(recipe),
        "text_encoder": lambda: text.from_recipe(recipe),
        "joint_encoder": lambda: joint.from_recipe(recipe),
    }
    with torch.device("meta"):
        module: nn.Module = chain_modules(recipe)[name] if name in CHAIN else makers[name]()[1]
    return module


def _sizes(name: str, module: nn.Module, operations: int) -> StepPlan:
    counts = [parameter.numel() for parameter in module.parameters()]
    total, largest = sum(counts), max(counts)
    weights = total * FLOAT_BYTES
    beside = ("model.onnx.data",) if weights > storage.LIMIT else ()
    copies = COPIES * largest if beside else 2 * total  # below the limit a graph is made whole
    return StepPlan(
        name,
        total,
        largest,
        {key: total * bits // 8 for key, bits in BITS.items()},
        ("model.onnx", *beside),
        weights + copies * FLOAT_BYTES,
        operations,
    )


def _traced(recipe: Recipe, name: str, module: nn.Module) -> tuple[int, int]:
    """Nodes and bytes of the graph, of tensors that hold nothing."""
    widths = dict.fromkeys(GROUPS, 1)
    contract = standard_contract(MER6, widths, recipe.preprocessing, chain=chain_like(recipe))
    step = contract.step(name)
    example = _example(contract, step)
    with FakeTensorMode(allow_non_fake_inputs=True):
        empty = module.to_empty(device="cpu")
    program = graphs.traced(empty, step, contract, example, optimize=False)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "bare.onnx"
        program.save(path, include_initializers=False)
        size = path.stat().st_size
    return len(program.model.graph), size


def _example(contract: Contract, step: StepSpec) -> dict[str, NDArray[Any]]:
    """Inputs of the step at free sizes."""
    rate = contract.preprocessing.sample_rate
    sizes = {"batch": 2, "audio_samples": rate, "tokens": TOKENS, "joint_tokens": TOKENS + 1}
    sizes |= {"speech_samples": rate, "words_said": TOKENS}
    made = {}
    for name in step.inputs:
        spec = contract.tensors[name]
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        made[name] = np.full(shape, TOKENS if name.endswith("_length") else 1, spec.dtype)
    return made
