"""A sealed graph: the contract's names and shapes, no trace of the machine, a stable digest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from merkit.contract import Contract
from merkit.errors import MerkitError
from merkit.pipeline import GROUPS, standard_contract
from merkit_export.compact import SMALLEST
from merkit_export.graphs import export_step, step_digest
from merkit_export.storage import save

WIDTH = 8
LABELS = ("neutral", "angry", "happy", "sad", "worried", "surprise")


class Mean(nn.Module):
    """The smallest face encoder: mean over the pixels, then one matrix."""

    def __init__(self, width: int = WIDTH, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.head = nn.Linear(3, width)

    def forward(self, face_grid: Tensor) -> Tensor:
        made: Tensor = self.head(face_grid.mean(dim=(2, 3)))
        return made


class OneClip(Mean):
    """Forgets the batch dimension."""

    def forward(self, face_grid: Tensor) -> Tensor:
        return super().forward(face_grid)[:1]


class Branching(Mean):
    """Asks the data which way to go."""

    def forward(self, face_grid: Tensor) -> Tensor:
        return super().forward(face_grid if face_grid.sum() > 0 else -face_grid)


def contract_of(labels: tuple[str, ...] = LABELS) -> Contract:
    return standard_contract(labels, dict.fromkeys(GROUPS, WIDTH))


def exported_graph(module: nn.Module, contract: Contract | None = None) -> onnx.ModelProto:
    contract = contract or contract_of()
    example = {"face_grid": np.random.default_rng(0).normal(size=(3, 3, 128, 128)).astype("f4")}
    return export_step(module, contract.step("face_encoder"), contract, example)


@pytest.fixture(scope="module")
def graph() -> onnx.ModelProto:
    return exported_graph(Mean())


def test_the_wire_is_the_contracts(graph: onnx.ModelProto) -> None:
    value = graph.graph.input[0]
    dims = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    assert (value.name, dims) == ("face_grid", ["batch", 3, 128, 128])
    value = graph.graph.output[0]
    dims = [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
    assert (value.name, dims) == ("face_features", ["batch", WIDTH])
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 20)]


def test_metadata_names_the_contract(graph: onnx.ModelProto) -> None:
    found = {entry.key: entry.value for entry in graph.metadata_props}
    assert found["contract_id"] == contract_of().contract_id
    assert found["step"] == "face_encoder"
    assert "torch" in found["producer"]


def test_nothing_of_the_exporting_machine_stays(graph: onnx.ModelProto) -> None:
    content = graph.SerializeToString()
    for trace in (str(Path(__file__).parents[2]), "site-packages", "stack_trace", "torch/"):
        assert trace.encode() not in content


def test_two_exports_are_the_same_bytes(graph: onnx.ModelProto) -> None:
    again = exported_graph(Mean())
    assert again.SerializeToString(deterministic=True) == graph.SerializeToString(
        deterministic=True
    )


def test_digest_ignores_names_labels_and_metadata(graph: onnx.ModelProto) -> None:
    relabelled = exported_graph(Mean(), contract_of(tuple(reversed(LABELS))))
    assert relabelled.metadata_props != graph.metadata_props
    assert step_digest(relabelled) == step_digest(graph)
    renamed = onnx.ModelProto()
    renamed.CopyFrom(graph)
    inner = {name for node in renamed.graph.node for name in node.output} - {"face_features"}
    for node in renamed.graph.node:
        node.name, node.doc_string = f"other_{node.name}", "changed"
        for names in (node.input, node.output):
            names[:] = [f"x_{n}" if n in inner else n for n in names]
    assert step_digest(renamed) == step_digest(graph)


@pytest.mark.parametrize("change", ["weight", "attribute", "operator", "edge", "name on the wire"])
def test_digest_sees_every_change_of_the_computation(graph: onnx.ModelProto, change: str) -> None:
    other = onnx.ModelProto()
    other.CopyFrom(graph)
    nodes = other.graph.node
    if change == "weight":
        other = exported_graph(Mean(seed=1))
    elif change == "attribute":
        next(n for n in nodes if n.op_type == "ReduceMean").attribute[0].i ^= 1
    elif change == "operator":
        next(n for n in nodes if n.op_type == "ReduceMean").op_type = "ReduceMax"
    elif change == "edge":
        gemm = next(n for n in nodes if n.op_type in ("Gemm", "Add"))
        gemm.input[:] = [gemm.input[0], *reversed(gemm.input[1:])]
    else:
        for names in (n for node in nodes for n in (node.input, node.output)):
            names[:] = ["grid" if n == "face_grid" else n for n in names]
        other.graph.input[0].name = "grid"
    assert step_digest(other) != step_digest(graph)


@pytest.mark.parametrize("module", [Mean(width=9), OneClip()], ids=["width", "batch"])
def test_a_module_that_breaks_the_contract_is_refused(module: nn.Module) -> None:
    with pytest.raises(MerkitError, match=r"'face_features'.*\['batch', 8\]"):
        exported_graph(module)


def test_what_torch_cannot_export_is_one_typed_error() -> None:
    with pytest.raises(MerkitError, match="cannot export the step 'face_encoder'"):
        exported_graph(Branching())


def test_weights_that_half_precision_holds_are_stored_so(tmp_path: Path) -> None:
    wide = standard_contract(LABELS, dict.fromkeys(GROUPS, SMALLEST))
    module = Mean(width=SMALLEST)
    example = {"face_grid": np.zeros((2, 3, 128, 128), np.float32)}
    step = wide.step("face_encoder")
    full = save(export_step(module, step, wide, example), tmp_path / "full.onnx")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.half().float())
    half = save(export_step(module, step, wide, example), tmp_path / "half.onnx")
    assert half < 0.6 * full
    assert not list(tmp_path.glob("*.tmp"))
