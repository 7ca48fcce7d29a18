"""ONNX Runtime sessions of a bundle, checked against its contract.

A model file that was exported under another contract would load and answer without complaint; a
provider that cannot start would be replaced in silence; threads that spin while they wait would
take the cores from every other session. Each is dealt with here, in one place.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.bundle import RESTORE, Bundle, onnx_steps
from merkit.contract import Contract, StepSpec
from merkit.errors import (
    BundleCorruptError,
    ContractMismatchError,
    InferenceError,
    InvalidInputError,
)
from merkit.ort import import_onnxruntime
from merkit.ragged import graph_feed, graph_inputs

CPU = "CPUExecutionProvider"
SHORT_NAMES = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
}
ONNX_TYPES = {
    "uint8": "tensor(uint8)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "float32": "tensor(float)",
    "bool": "tensor(bool)",
}
DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")
"""Packages that hold one and the same module, each with other providers."""
ONLY_FATAL = 4  # ONNX Runtime's log level; its errors come back as exceptions


class Session:
    """One step's graph: a dict of arrays in, a dict of arrays out. Safe for concurrent calls."""

    def __init__(self, step: StepSpec, session: Any) -> None:
        self._session = session
        self._step = step
        self._read = {node.name for node in session.get_inputs()}
        self.provider: str = session.get_providers()[0]

    def __call__(self, tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Runs the graph; raises whatever ONNX Runtime raises."""
        feed = graph_feed(self._step, [tensors])
        given = {n: np.ascontiguousarray(value) for n, value in feed.items() if n in self._read}
        names = self._step.outputs
        return dict(zip(names, self._session.run(list(names), given), strict=True))

    def close(self) -> None:
        """Lets go of the session, which frees its memory."""
        self._session = None


def open_sessions(
    bundle: Bundle,
    providers: Sequence[str] | None,
    threads: int,
    only: Collection[str] | None = None,
) -> dict[str, Session]:
    """A session for each ONNX step of the bundle, or for `only` those; `EmbeddedBackend` lists
    the errors."""
    ort = _onnxruntime()
    chosen = _providers(ort, providers)
    steps = [s for s in onnx_steps(bundle.contract) if only is None or s.name in only]
    sessions = {step.name: open_session(ort, bundle, step, chosen, threads) for step in steps}
    for session in sessions.values():
        if providers and session.provider != chosen[0]:
            raise InferenceError(
                f"{chosen[0]} could not start: {session.provider} took its place",
                "the provider that was asked for",
                "install its driver and libraries, or ask for another provider",
            )
    return sessions


def open_session(
    ort: Any, bundle: Bundle, step: StepSpec, providers: Sequence[str], threads: int
) -> Session:
    """Loads one step's graph and compares it with the contract."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = ONLY_FATAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    path = bundle.model_path(step.name)
    try:
        session = ort.InferenceSession(str(path), options, providers=list(providers))
    except Exception as error:
        first = str(error).splitlines()[0]
        found = f"{path} cannot be loaded by onnxruntime {ort.__version__} ({first})"
        raise BundleCorruptError(found, "a valid ONNX model", RESTORE) from error
    _check_model(path, step, session, bundle.contract)
    return Session(step, session)


def _check_model(path: Path, step: StepSpec, session: Any, contract: Contract) -> None:
    found = session.get_modelmeta().custom_metadata_map.get("contract_id")
    if found != contract.contract_id:
        raise ContractMismatchError(
            f"{path} carries the contract {found or '(none)'}",
            f"{contract.contract_id}, the manifest's",
            RESTORE,
        )
    for nodes, tensors in (
        (session.get_inputs(), graph_inputs(step, contract.tensors)),
        (session.get_outputs(), {name: contract.tensors[name] for name in step.outputs}),
    ):
        types = {node.name: node.type for node in nodes}
        expected = {name: ONNX_TYPES[spec.dtype] for name, spec in tensors.items()}
        if types != expected:
            raise BundleCorruptError(f"{path} has the tensors {types}", f"{expected}", RESTORE)


def _providers(ort: Any, wanted: Sequence[str] | None) -> list[str]:
    available = ort.get_available_providers()
    if not wanted:
        return [p for p in (SHORT_NAMES["cuda"], CPU) if p in available]
    names = [SHORT_NAMES.get(name, name) for name in wanted]
    for name in names:
        if name not in available:
            raise InvalidInputError(
                f"the execution provider {name!r} is not in the installed ONNX Runtime",
                f"one of {', '.join(available)}",
                "choose one of those, or install a build of ONNX Runtime that has it",
            )
    return names


def _onnxruntime() -> Any:
    onnxruntime = import_onnxruntime()
    found = [name for name in DISTRIBUTIONS if _installed(name)]
    if len(found) > 1:
        warnings.warn(
            f"{' and '.join(found)} are installed side by side and overwrite each other's files; "
            f"expected one of them; run: pip uninstall {' '.join(found)}, then install one again, "
            "such as merkit[local] or merkit[gpu]",
            RuntimeWarning,
            stacklevel=2,
        )
    return onnxruntime


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
