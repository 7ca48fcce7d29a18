"""Renders a bundle's deployment files, so that no config.pbtxt is ever written by hand.

Hand-written configs drift from the pipeline they serve. Here each one follows from the
contract's steps, and each ensemble from a cut through them (`merkit.pipeline.cut`). Rendered
files differ per host; they are neither hashed nor signed (design 2), and equal input gives
equal bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from merkit.bundle import MANIFEST, SIGNATURES, Bundle
from merkit.contract import Contract, StepSpec, TensorSpec, canonical
from merkit.errors import InvalidInputError, MissingExtraError
from merkit.pipeline import BYTES_IN, DECODED_IN, DETAIL, OUTCOME, cut

Flavour = Literal["onnxruntime", "python"]
FLAVOURS: tuple[Flavour, ...] = ("onnxruntime", "python")
ENSEMBLES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "merkit": (BYTES_IN, OUTCOME + DETAIL),
    "merkit_decoded": (DECODED_IN, OUTCOME),
}
"""Entry points: what comes in and what is wanted out, by the ensemble's name."""

WIRE_TYPES = {
    "uint8": "TYPE_UINT8",
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}
AFTER = "after"
"""An optional input of Python steps that orders them and carries nothing else.

Triton (24.10, seen in the debugger) deadlocks when two steps of an ensemble can start at once and
the first fails before the second is scheduled: the front end holds its request's lock and waits
for the ensemble's, the failing step the other way round, and the model never answers again. Bad
clips fail fast, so each ensemble starts with one step, and the others wait for it.
"""

MODEL_PY = '''"""Rendered by merkit: Triton's entry into a step, whose code lies in the package."""

from merkit.serving.runner import StepModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


@dataclass(frozen=True)
class Deployment:
    """How one host runs a bundle."""

    flavour: Flavour = "onnxruntime"
    """What executes ONNX steps: Triton's ONNX Runtime backend, or its Python backend."""
    threads: int = 0
    """Intra-op threads of each ONNX session; 0 lets ONNX Runtime take every core."""
    instances: Mapping[str, int] = field(default_factory=dict)
    """Copies of a step that run side by side; 1 where a step is not named."""


def render(bundle: Bundle, out: Path, deployment: Deployment = Deployment()) -> list[Path]:
    """Writes what Triton needs to serve `bundle` from the folder `out`, and returns those files.

    Args:
        bundle: an opened bundle.
        out: the bundle's own folder, or a new or empty one, which then becomes a repository
            that links to the bundle's content.
        deployment: this host's choices.

    Raises:
        InvalidInputError: `out` holds something else, or the deployment names what is not there.
        MissingExtraError: tritonclient, which holds the config's schema, is not installed.
    """
    _check(bundle, deployment)
    in_place = out.resolve() == bundle.root.resolve()
    if not in_place:
        _link_content(bundle, out)
    written = []
    for step in bundle.contract.steps:
        folder = out / step.name
        written.append(_write(folder / "config.pbtxt", step_config(bundle, step, deployment)))
        model = folder / "1" / "model.py"
        if backend(step, deployment) == "python":
            written.append(_write(model, MODEL_PY))
        else:
            model.unlink(missing_ok=True)  # what another flavour left behind
    for name in ENSEMBLES:
        written.append(_write(out / name / "config.pbtxt", ensemble_config(bundle, name)))
        written.append(_write(out / name / "1" / ".gitkeep", ""))  # git drops empty folders
    return written


def backend(step: StepSpec, deployment: Deployment) -> str:
    """The name of Triton's backend that runs `step`."""
    return "python" if step.kind == "python" else deployment.flavour


def step_config(bundle: Bundle, step: StepSpec, deployment: Deployment) -> str:
    """The config.pbtxt of one step."""
    contract = bundle.contract
    parameters = {"contract_id": contract.contract_id, "step": step.name}
    config: dict[str, Any] = {"name": step.name, "backend": backend(step, deployment)}
    group: dict[str, Any] = {"count": deployment.instances.get(step.name, 1)}
    if config["backend"] == "python":
        parameters["contract"] = canonical(contract.to_json()).decode("ascii")
        parameters["threads"] = str(deployment.threads)
        group["kind"] = "KIND_CPU"
    else:
        config["default_model_filename"] = "model.onnx"
        parameters["intra_op_thread_count"] = str(deployment.threads)
    config["instance_group"] = [group]
    order = [{"name": AFTER, "data_type": "TYPE_INT64", "dims": [-1, 1], "optional": True}]
    config["input"] = _wire(contract.tensors, step.inputs) + order * (step.kind == "python")
    config["output"] = _wire(contract.tensors, step.outputs)
    return _text(config, parameters)


def ensemble_config(bundle: Bundle, name: str) -> str:
    """The config.pbtxt of an entry point: the steps of its cut, joined by tensor names."""
    contract = bundle.contract
    inputs, outputs = ENSEMBLES[name]
    steps = cut(contract.steps, inputs, outputs)
    used = {tensor for step in steps for tensor in step.inputs} | set(outputs)
    scheduling: list[dict[str, Any]] = [
        {
            "model_name": step.name,
            "model_version": -1,
            "input_map": {tensor: tensor for tensor in step.inputs},
            "output_map": {tensor: tensor for tensor in step.outputs if tensor in used},
        }
        for step in steps
    ]
    first, *others = [step for step in steps if set(step.inputs) <= set(inputs)]
    for step in others:
        scheduling[steps.index(step)]["input_map"] |= {AFTER: _column(contract, first, used)}
    parameters = {
        "contract_id": contract.contract_id,
        "bundle_id": bundle.bundle_id,
        "name": str(bundle.manifest.get("name", bundle.root.name)),
        "notice": str(bundle.manifest.get("notice", "")),
        "contract": canonical(contract.to_json()).decode("ascii"),
        **({"confident_from": least} if (least := bundle.confident_from) else {}),
    }
    config = {
        "name": name,
        "platform": "ensemble",
        "ensemble_scheduling": {"step": scheduling},
        "input": _wire(contract.tensors, inputs),
        "output": _wire(contract.tensors, outputs),
    }
    return _text(config, parameters)


def _column(contract: Contract, step: StepSpec, used: Collection[str]) -> str:
    """A small tensor that `step` makes and others read: int64 [batch, 1]."""
    column = TensorSpec("int64", ("batch", 1))
    return next(t for t in step.outputs if t in used and contract.tensors[t] == column)


def _wire(tensors: Mapping[str, TensorSpec], names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "data_type": WIRE_TYPES[tensors[name].dtype],
            "dims": [-1 if isinstance(d, str) else d for d in tensors[name].shape],
        }
        for name in names
    ]


def _text(config: dict[str, Any], parameters: Mapping[str, str]) -> str:
    try:
        from google.protobuf import json_format, text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingExtraError.of("tritonclient", "triton") from None

    config["parameters"] = {key: {"string_value": value} for key, value in parameters.items()}
    message = json_format.ParseDict(config, model_config_pb2.ModelConfig())
    head = "# Rendered by merkit: a change here is lost at the next rendering.\nmax_batch_size: 0\n"
    text: str = text_format.MessageToString(message)
    return head + text  # protobuf leaves zeros out, and Triton reads absence as "guess"


def _check(bundle: Bundle, deployment: Deployment) -> None:
    if deployment.flavour not in FLAVOURS:
        raise InvalidInputError(
            f"the flavour is {deployment.flavour!r}", f"one of {FLAVOURS}", "choose one of these"
        )
    steps = [step.name for step in bundle.contract.steps]
    wrong = {k: n for k, n in deployment.instances.items() if k not in steps or n < 1}
    if wrong or deployment.threads < 0:
        raise InvalidInputError(
            f"instances {wrong}" if wrong else f"threads {deployment.threads}",
            f"at least one instance of any of {steps}" if wrong else "0 (every core) or more",
            "correct the deployment",
        )


def _link_content(bundle: Bundle, out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidInputError(
            f"{out} exists and is not an empty folder",
            f"the bundle's own folder {bundle.root}, or a new or empty one",
            "choose another folder: anything else in a repository stops Triton",
        )
    out.mkdir(parents=True, exist_ok=True)
    signed = [SIGNATURES] if (bundle.root / SIGNATURES).is_file() else []
    for name in (MANIFEST, *signed, *sorted(bundle.manifest["content"])):
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = (bundle.root / name).resolve()
        try:
            target.symlink_to(source)
        except OSError:
            shutil.copy2(source, target)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, "utf-8")
    temporary.replace(path)
    return path
