"""Which executor takes each ONNX step: TensorRT, CUDA or another of ONNX Runtime's providers.

A plan that fits no longer (another driver, a new export) must not stop an application that ran
yesterday, nor may it become slow in silence. So `tensorrt` means: TensorRT where a plan fits, else
CUDA, else the CPU, step by step, and a sentence on each step that fell back.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from merkit.backends.sessions import SHORT_NAMES, open_sessions
from merkit.bundle import Bundle, onnx_steps
from merkit.plans import ON_HOST

TENSORRT = "tensorrt"
Arrays = Mapping[str, NDArray[Any]]


class StepRunner(Protocol):
    """One step's graph on some executor. Safe for concurrent calls."""

    provider: str

    def __call__(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        """The step's outputs; raises whatever the executor raises."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


def open_steps(
    bundle: Bundle, providers: Sequence[str] | None, threads: int
) -> tuple[dict[str, StepRunner], str]:
    """A runner for each ONNX step, and a note on those that fell back ("" where none did).

    Args:
        bundle: an opened bundle.
        providers: as `EmbeddedBackend` takes them. Behind `tensorrt` may stand what takes the
            steps without a plan; default: CUDA where ONNX Runtime has it, then the CPU.
        threads: of each session of ONNX Runtime.
    """
    if not providers or providers[0] != TENSORRT:
        return dict(open_sessions(bundle, providers, threads)), ""
    from merkit.backends.tensorrt import open_plans

    plans = open_plans(bundle)
    rest = list(providers[1:]) or None
    runners: dict[str, StepRunner] = {}
    notes: dict[str, list[str]] = {}
    for step in onnx_steps(bundle.contract):
        engine = plans.engines.get(step.name)
        if engine is not None:
            runners[step.name] = _Planned(engine, bundle, step.name, rest, threads)
            continue
        (runners[step.name],) = open_sessions(bundle, rest, threads, only=[step.name]).values()
        if step.name not in ON_HOST:
            where = _short(runners[step.name].provider)
            notes.setdefault(f"{where}: {plans.reasons[step.name]}", []).append(step.name)
    return runners, "; ".join(f"{', '.join(names)} on {note}" for note, names in notes.items())


class _Planned:
    """A step on TensorRT, with ONNX Runtime for shapes that the plan has no profile for."""

    def __init__(
        self,
        engine: Any,
        bundle: Bundle,
        step: str,
        providers: Sequence[str] | None,
        threads: int,
    ) -> None:
        self._engine, self._bundle, self._step = engine, bundle, step
        self._providers, self._threads = providers, threads
        self._lock = threading.Lock()
        self._spare: StepRunner | None = None
        self.provider: str = engine.provider

    def __call__(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        results: dict[str, NDArray[Any]] = self._engine(tensors, self._on_spare)
        return results

    def close(self) -> None:
        """Frees what it holds."""
        self._engine.close()
        if self._spare is not None:
            self._spare.close()

    def _on_spare(self, tensors: Arrays) -> dict[str, NDArray[Any]]:
        with self._lock:  # opened when first needed: its weights are in memory a second time
            if self._spare is None:
                opened = open_sessions(
                    self._bundle, self._providers, self._threads, only=[self._step]
                )
                self._spare = opened[self._step]
        return self._spare(tensors)


def _short(provider: str) -> str:
    return next((short for short, name in SHORT_NAMES.items() if name == provider), provider)
