"""The proof's models in memory: all of them where they fit, else one graph or one module at a time.

The paper's graphs take 114 GB in float32, and a module up to 53 more; a host that exported them
one after another could then not prove them. Compared step by step (`parity`), a graph is opened
when its step is reached, and closed before another graph or any module is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from merkit.backends.base import Tensors
from merkit.backends.embedded import Array, EmbeddedBackend
from merkit.backends.sessions import CPU, Session, open_sessions
from merkit.bundle import Bundle, onnx_steps
from merkit_export.origin import KEPT_BYTES
from merkit_export.parity import THREADS


@contextmanager
def in_turn(
    bundle: Bundle, modules: Mapping[str, nn.Module]
) -> Iterator[tuple[EmbeddedBackend, Mapping[str, nn.Module]]]:
    """The bundle on the CPU and the run's modules, for who walks them step by step.

    Args:
        bundle: an opened bundle.
        modules: the torch module of each ONNX step, by a mapping that may load them.

    Raises:
        As `EmbeddedBackend`; above `KEPT_BYTES` of content when a step is reached.
    """
    size = sum(int(entry["size"]) for entry in bundle.manifest["content"].values())
    turns = _Turns(bundle) if size > KEPT_BYTES else None
    names = [step.name for step in onnx_steps(bundle.contract)]
    runners = {name: _Runner(turns, name) for name in names} if turns else None
    backend = EmbeddedBackend(bundle, ["cpu"], THREADS, runners=runners)
    try:
        yield backend, modules if turns is None else _Alone(modules, turns)
    finally:
        backend.close()


class _Turns:
    """Of a bundle's graphs the one that is open."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}

    def run(self, step: str, tensors: Tensors) -> dict[str, Array]:
        with self._lock:
            if step not in self._open:
                self._close()
                self._open = open_sessions(self._bundle, ["cpu"], THREADS, only=[step])
            return self._open[step](tensors)

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        for session in self._open.values():
            session.close()
        self._open = {}


class _Runner:
    """One step's `StepRunner`, which opens its graph when it is its turn."""

    provider = CPU

    def __init__(self, turns: _Turns, step: str) -> None:
        self._turns, self._step = turns, step

    def __call__(self, tensors: Tensors) -> dict[str, Array]:
        return self._turns.run(self._step, tensors)

    def close(self) -> None:
        self._turns.close()


class _Alone(Mapping[str, nn.Module]):
    """Modules that are loaded when no graph is open."""

    def __init__(self, modules: Mapping[str, nn.Module], turns: _Turns) -> None:
        self._modules, self._turns = modules, turns

    def __getitem__(self, name: str) -> nn.Module:
        self._turns.close()
        return self._modules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)
