"""Steps on TensorRT in the application's own process, from the plans that lie in the bundle.

ONNX Runtime's own TensorRT provider is built against another major version than the one that pip
installs, and builds engines while the first clip waits. So plans are built ahead, on the GPU that
will run them (`merkit-export tensorrt`), and loaded here. What has no plan, or one for another
machine, runs on ONNX Runtime, and the client's identity says which step does and why.

Everything that touches `tensorrt` at run time is in `Engine`; the calls are tested against the
names and signatures of the real bindings.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.bundle import Bundle, onnx_steps
from merkit.contract import Contract, StepSpec
from merkit.cuda import Cuda
from merkit.errors import (
    BackendError,
    BundleCorruptError,
    InferenceError,
    MerkitError,
    MissingExtraError,
)
from merkit.plans import (
    REBUILD,
    STRIP_PLAN,
    VERSION_COMPATIBLE,
    Host,
    Shape,
    Sidecar,
    admits,
    plan_path,
    plans_of,
)
from merkit.ragged import graph_feed, graph_inputs
from merkit.trt import host_of, import_tensorrt, make_log

Array = NDArray[Any]
Runner = Callable[[Mapping[str, Array]], dict[str, Array]]
WEIGHT_STREAMING = "WEIGHT_STREAMING"


@dataclass(frozen=True)
class Plans:
    """The steps of a bundle that run on TensorRT here, and why each other step does not."""

    engines: Mapping[str, Engine]
    reasons: Mapping[str, str]


def open_plans(bundle: Bundle) -> Plans:
    """Loads every plan of the bundle that this machine can run. Raises nothing: see `reasons`."""
    steps = onnx_steps(bundle.contract)
    try:
        trt = import_tensorrt()
        cuda = Cuda()
        host = host_of(trt, cuda)
    except (MissingExtraError, BackendError) as error:
        return Plans({}, {step.name: error.found for step in steps})
    engines: dict[str, Engine] = {}
    reasons: dict[str, str] = {}
    for step in steps:
        try:
            engines[step.name] = _open(bundle, step, host, trt, cuda)
        except MerkitError as error:
            reasons[step.name] = error.found
    return Plans(engines, reasons)


def _open(bundle: Bundle, step: StepSpec, host: Host, trt: Any, cuda: Cuda) -> Engine:
    digest = str(bundle.manifest["step_digests"].get(step.name))
    refusals = []
    for capability, sidecar in plans_of(bundle.root, step.name).items():
        refusal = sidecar.refusal(host, digest)
        if refusal is None:
            path = plan_path(bundle.root, step.name, capability)
            return Engine(trt, cuda, path, sidecar, step, bundle.contract)
        refusals.append(refusal)
    raise BackendError(refusals[0] if refusals else "it has no plan")


class Engine:
    """One step's plan on the GPU: a dict of arrays in, a dict of arrays out.

    Safe for concurrent calls, which run one after another: a context holds one request's
    addresses. Weights that were stripped are read from the step's `model.onnx`.

    Raises:
        BundleCorruptError: the plan is not what its sidecar says, or has other tensors.
        InferenceError: TensorRT refuses it, or the GPU's memory does not hold it.
    """

    def __init__(
        self,
        trt: Any,
        cuda: Cuda,
        path: Path,
        sidecar: Sidecar,
        step: StepSpec,
        contract: Contract,
    ) -> None:
        self._trt, self._cuda, self._step, self._sidecar = trt, cuda, step, sidecar
        self._lock = threading.Lock()
        cuda.use()
        self._log = make_log(trt)
        self._engine = self._load(_read(path, sidecar), path.with_name("model.onnx"))
        self._inputs = self._tensors(trt.TensorIOMode.INPUT)
        self._outputs = self._tensors(trt.TensorIOMode.OUTPUT)
        self._check_tensors(path, contract)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._refused("holds no memory for a context")
        self._stream = cuda.stream()
        self._profile = 0
        self._buffers: dict[str, tuple[int, int]] = {}
        self.provider = f"TensorRT {trt.__version__}"

    def __call__(
        self, tensors: Mapping[str, Array], spare: Runner | None = None
    ) -> dict[str, Array]:
        """Runs the step; `spare` takes requests of shapes for which the plan has no profile."""
        feed = {
            name: np.ascontiguousarray(value)
            for name, value in graph_feed(self._step, [tensors]).items()
            if name in self._inputs
        }
        profile = self._profile_for({name: value.shape for name, value in feed.items()})
        if profile is None and spare is not None:
            return spare(tensors)
        if profile is None:
            shapes = {name: list(value.shape) for name, value in feed.items()}
            raise InferenceError(
                f"no profile of the plan of {self._step.name!r} takes the shapes {shapes}",
                "shapes within a profile",
                "send smaller batches, or build plans for larger ones",
            )
        with self._lock:
            self._cuda.use()
            return self._run(feed, profile)

    def close(self) -> None:
        """Frees the GPU's memory. Safe to call twice."""
        with self._lock:
            if self._context is None:
                return
            self._cuda.use()
            for address, _ in self._buffers.values():
                self._cuda.free(address)
            self._buffers = {}
            self._cuda.free_stream(self._stream)
            self._context = self._engine = None

    def _run(self, feed: Mapping[str, Array], profile: int) -> dict[str, Array]:
        context, cuda, stream = self._context, self._cuda, self._stream
        if profile != self._profile:
            self._expect(context.set_optimization_profile_async(profile, stream), "its profile")
            self._profile = profile
        for name, value in feed.items():
            self._expect(context.set_input_shape(name, value.shape), f"the shape of {name}")
            if self._on_host(name):
                self._expect(context.set_tensor_address(name, value.ctypes.data), name)
                continue
            address = self._buffer(name, value.nbytes)
            cuda.to_device(address, value, stream)
            self._expect(context.set_tensor_address(name, address), name)
        results = {}
        for name, dtype in self._outputs.items():
            shape = tuple(context.get_tensor_shape(name))
            if min(shape, default=0) < 0:
                raise self._refused(f"makes {name!r} of a size that only its values decide")
            results[name] = np.empty(shape, dtype)
            self._expect(
                context.set_tensor_address(name, self._buffer(name, results[name].nbytes)), name
            )
        self._expect(context.execute_async_v3(stream), "the request")
        for name, value in results.items():
            cuda.to_host(value, self._buffers[name][0], stream)
        cuda.synchronize(stream)
        return {name: results[name] for name in self._step.outputs}

    def _profile_for(self, shapes: Mapping[str, Shape]) -> int | None:
        """The first profile that takes these shapes; they stand from narrow to wide."""
        fitting = (i for i, p in enumerate(self._sidecar.profiles) if admits(p, shapes))
        return next(fitting, None)

    def _buffer(self, name: str, size: int) -> int:
        """Device memory for a tensor: kept between requests, and made larger when needed."""
        address, room = self._buffers.get(name, (0, -1))
        if size > room:
            if address:
                del self._buffers[name]
                self._cuda.free(address)
            address = self._cuda.allocate(size)
            self._buffers[name] = (address, size)
        return address

    def _on_host(self, name: str) -> bool:
        location = self._engine.get_tensor_location(name)
        return bool(location == self._trt.TensorLocation.HOST)

    def _load(self, plan: bytes, onnx: Path) -> Any:
        trt = self._trt
        try:
            runtime = trt.Runtime(self._log)
        except TypeError:  # what the bindings make of a null pointer
            raise self._refused("needs a runtime that this driver does not start") from None
        # such a plan carries the runtime that it was built for, as machine code
        runtime.engine_host_code_allowed = VERSION_COMPATIBLE in self._sidecar.flags
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise self._refused("cannot be loaded")
        if STRIP_PLAN in self._sidecar.flags:
            refitter = trt.Refitter(engine, self._log)
            parser = trt.OnnxParserRefitter(refitter, self._log)
            if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
                raise self._refused(f"does not take the weights of {onnx}")
        if WEIGHT_STREAMING in self._sidecar.flags:
            engine.weight_streaming_budget_v2 = engine.get_weight_streaming_automatic_budget()
        return engine

    def _tensors(self, mode: Any) -> dict[str, Any]:
        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        return {
            name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name)))
            for name in names
            if engine.get_tensor_mode(name) == mode
        }

    def _check_tensors(self, path: Path, contract: Contract) -> None:
        known = graph_inputs(self._step, contract.tensors)  # TensorRT drops inputs nobody reads
        odd = set(self._inputs) - set(known)
        if odd or set(self._outputs) != set(self._step.outputs):
            raise BundleCorruptError(
                f"{path} has the tensors {sorted({*self._inputs, *self._outputs})}",
                f"inputs among {sorted(known)} and the outputs {sorted(self._step.outputs)}",
                REBUILD,
            )

    def _expect(self, done: Any, what: str) -> None:
        if not done:
            raise self._refused(f"refused {what}")

    def _refused(self, what: str) -> InferenceError:
        said = f" ({self._log.last})" if self._log.last else ""
        return InferenceError(
            f"the TensorRT plan of {self._step.name!r} {what}{said}",
            "a plan built for this GPU and TensorRT",
            REBUILD,
        )


def _read(path: Path, sidecar: Sidecar) -> bytes:
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise BundleCorruptError(
            f"{path} cannot be read ({error.strerror})", "a readable plan", REBUILD
        ) from None
    if hashlib.sha256(plan).hexdigest() != sidecar.plan_sha256:
        raise BundleCorruptError(
            f"{path} is not the plan that its sidecar describes", sidecar.plan_sha256, REBUILD
        )
    return plan
