"""The pipeline inside the application's own process, on ONNX Runtime.

Calling the steps one after another would leave cores idle, run encoders of modalities that a clip
does not have, and let a dozen sessions' thread pools spin against each other. So this executor
walks the DAG: it runs what the request wants and nothing else, independent steps side by side,
within one thread budget (design 4).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from numpy.typing import NDArray

from merkit.backends.base import Tensors, check_tensors
from merkit.backends.entries import complete, wanted
from merkit.backends.lazy import pull_votes, step_costs
from merkit.backends.providers import StepRunner, open_steps
from merkit.backends.walk import Walk
from merkit.bundle import RESTORE, Bundle
from merkit.contract import StepSpec
from merkit.errors import BundleCorruptError, InferenceError, InvalidInputError, MerkitError
from merkit.pipeline import BYTES_IN, DECODED_IN, OUTCOME, cut

Array = NDArray[Any]


class EmbeddedBackend:
    """Executes a bundle on ONNX Runtime. Safe to use from several threads at once.

    Args:
        bundle: an opened bundle.
        providers: ONNX Runtime execution providers in order of preference, by their full names or
            as `cpu`, `cuda`, `openvino`, `coreml`. Default: CUDA where the installed ONNX Runtime
            has it, then CPU. `tensorrt` runs the plans that lie in the bundle; steps without one
            that fits fall back, and the identity's `fell_back` says which and why.
        threads: budget of threads for the mathematics; default: the cores this process may use.
        lazy: ask only the voters that can still change the outcome, and run only the encoders
            that these read. The label is the same; see `backends.lazy`.
        runners: what runs each ONNX step, in place of sessions opened here; closed with this.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ContractMismatchError: a model file implements another contract than the manifest's.
        BundleCorruptError: a model file cannot be loaded, or the steps do not lead to the outcome.
        InvalidInputError: an unknown provider, or fewer than one thread.
    """

    def __init__(
        self,
        bundle: Bundle,
        providers: Sequence[str] | None = None,
        threads: int | None = None,
        lazy: bool = False,
        runners: Mapping[str, StepRunner] | None = None,
    ) -> None:
        if isinstance(providers, str):
            raise InvalidInputError(
                f"providers is the string {providers!r}", "a list", f"give [{providers!r}]"
            )
        budget = _usable_cores() if threads is None else threads
        if budget < 1:
            raise InvalidInputError(f"threads is {threads}", "at least 1", "give a thread budget")
        _check_outcome(bundle)
        self.contract = bundle.contract
        self._sessions, fell_back = (
            open_steps(bundle, providers, budget) if runners is None else (dict(runners), "")
        )
        self._resources = bundle.resources
        self._costs = step_costs(bundle) if lazy else None
        self._python_steps: dict[str, Any] = {}
        self._python_steps_lock = threading.Lock()
        self._closed = False
        self._pool = ThreadPoolExecutor(budget, thread_name_prefix="merkit")
        providers_used = [session.provider for session in self._sessions.values()]
        self.identity: Mapping[str, str] = {
            "contract_id": self.contract.contract_id,
            "bundle_id": bundle.bundle_id,
            "name": str(bundle.manifest.get("name", bundle.root.name)),
            "backend": "embedded",
            **({"provider": ", ".join(dict.fromkeys(providers_used))} if providers_used else {}),
            **({"fell_back": fell_back} if fell_back else {}),
            **({"notice": str(notice)} if (notice := bundle.manifest.get("notice")) else {}),
            **({"confident_from": least} if (least := bundle.confident_from) else {}),
        }

    def infer(self, tensors: Tensors, timings: dict[str, float] | None = None) -> dict[str, Array]:
        """See `Backend.infer`; takes any entry from which the outcome can be computed."""
        check_tensors(self.contract, tensors)
        steps = self.contract.steps
        made = {name for step in steps for name in step.outputs}
        asked = wanted(self.contract, tensors)
        values, told = dict(complete(self.contract, tensors)), {} if timings is None else timings
        if self._costs is not None and "branch_scores" not in tensors:
            pull_votes(
                self.contract, self._costs, values, lambda p, v: Walk(self, p, v, told).run()
            )
        plan = cut(steps, values.keys(), [name for name in asked if name in made])
        Walk(self, plan, values, told).run()
        return {name: values[name] for name in asked if name in values}

    def compute(
        self, tensors: Tensors, names: Sequence[str], timings: dict[str, float] | None = None
    ) -> dict[str, Array]:
        """Any tensors of the pipeline, from any from which they can be computed.

        Raises as `infer`, and InvalidInputError where they cannot.
        """
        check_tensors(self.contract, tensors)
        values = dict(complete(self.contract, tensors))
        plan = cut(self.contract.steps, values.keys(), names)
        Walk(self, plan, values, {} if timings is None else timings).run()
        return {name: values[name] for name in names}

    def run_step(self, step: StepSpec, given: Tensors) -> dict[str, Array]:
        """Runs one step on its inputs, whatever its kind; errors are merkit's."""
        if self._closed:
            raise _closed()
        try:
            if step.kind == "onnx":
                return self._sessions[step.name](given)
            outputs: dict[str, Array] = self._python_step(step.name)(given)
            return outputs
        except MerkitError:
            raise
        except Exception as error:
            if self._closed:  # meanwhile, by another thread, which took the sessions away
                raise _closed() from error
            shapes = {name: list(value.shape) for name, value in given.items()}
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InferenceError(
                f"the step {step.name!r} failed on inputs of shape {shapes} ({first})",
                "a step that accepts what the contract allows",
                "run merkit verify on the bundle",
            ) from error

    def timed(self, step: StepSpec, values: Tensors) -> tuple[dict[str, Array], float]:
        """Runs a step on its inputs among `values`; outputs and milliseconds."""
        start = time.perf_counter()
        outputs = self.run_step(step, {name: values[name] for name in step.inputs})
        return outputs, (time.perf_counter() - start) * 1e3

    def submit(self, step: StepSpec, values: Tensors) -> Future[tuple[dict[str, Array], float]]:
        """`timed` in the shared pool."""
        try:
            return self._pool.submit(self.timed, step, {n: values[n] for n in step.inputs})
        except RuntimeError:  # the pool has been shut down
            raise _closed() from None

    def close(self) -> None:
        """Stops the pool and frees the sessions. Safe to call twice."""
        self._closed = True
        self._pool.shutdown(wait=True)
        for runner in self._sessions.values():
            runner.close()
        self._sessions = {}

    def _python_step(self, name: str) -> Any:
        """Steps in Python load codecs and detectors, so each is made when first needed."""
        with self._python_steps_lock:
            if name not in self._python_steps:
                from merkit.steps import REGISTRY

                self._python_steps[name] = REGISTRY[name](self.contract, self._resources(name))
            return self._python_steps[name]


def _check_outcome(bundle: Bundle) -> None:
    try:
        cut(bundle.contract.steps, {*BYTES_IN, *DECODED_IN}, OUTCOME)
    except InvalidInputError as error:
        raise BundleCorruptError(
            f"the contract in {bundle.root} is incomplete: {error.found}",
            f"steps that make {', '.join(OUTCOME)}",
            RESTORE,
        ) from None


def _usable_cores() -> int:
    """Cores that this process may use; containers and batch systems grant fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _closed() -> InferenceError:
    return InferenceError("the client is closed", "an open client", "load the bundle again")
