"""One walk through the DAG: each step as soon as what it reads is there, and no other.

Lazy voting asks for a few steps at a time, in process and on a server alike; were each to walk on
its own, they would come to skip different steps. So whatever can run a step, here or elsewhere,
is an `Executor`, and this walk drives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.backends.base import DTYPES, Tensors
from merkit.contract import MODALITIES, Contract, StepSpec
from merkit.presence import nothing

Array = NDArray[Any]
Timed = tuple[dict[str, Array], float]
"""A step's outputs, and the milliseconds that they took."""


class Executor(Protocol):
    """Runs single steps of a pipeline."""

    @property
    def contract(self) -> Contract:
        """The pipeline."""
        ...

    def timed(self, step: StepSpec, values: Tensors) -> Timed:
        """Runs a step on its inputs among `values`."""
        ...

    def submit(self, step: StepSpec, values: Tensors) -> Future[Timed]:
        """`timed`, in another thread."""
        ...


class Walk:
    """One walk through the DAG: values by tensor name, each computed once."""

    def __init__(
        self,
        executor: Executor,
        plan: Sequence[StepSpec],
        values: dict[str, Array],
        timings: dict[str, float],
    ) -> None:
        self._executor, self._values, self._timings = executor, values, timings
        self._given = frozenset(values)
        self._waiting = list(plan)
        self._gated = {step.name for step in plan if step.needs and self._knows_presence(plan)}
        self._running: dict[Future[Timed], StepSpec] = {}

    def run(self) -> None:
        """Runs the plan; outputs are added to the values."""
        try:
            while self._waiting or self._running:
                ready = self._take_ready()
                if len(ready) == 1 and not self._running:  # no hand-over to another thread
                    self._finish(ready[0], *self._executor.timed(ready[0], self._values))
                    continue
                for step in ready:
                    self._running[self._executor.submit(step, self._values)] = step
                done, _ = wait(self._running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._finish(self._running.pop(future), *future.result())
        finally:
            for future in self._running:
                future.cancel()

    def _finish(self, step: StepSpec, outputs: dict[str, Array], elapsed: float) -> None:
        self._timings[step.name] = self._timings.get(step.name, 0.0) + elapsed
        self._add(outputs)

    def _add(self, outputs: dict[str, Array]) -> None:
        self._values.update({n: value for n, value in outputs.items() if n not in self._given})

    def _take_ready(self) -> list[StepSpec]:
        """Steps that can run now; those that need not run are done with at once."""
        ready = [step for step in self._waiting if self._ready(step)]
        self._waiting = [step for step in self._waiting if step not in ready]
        needless = {s.name: made for s in ready if (made := self._needless(s)) is not None}
        for made in needless.values():
            self._add(made)
        return [step for step in ready if step.name not in needless]

    def _ready(self, step: StepSpec) -> bool:
        """A step that may turn out needless waits until presence is known."""
        wanted = (*step.inputs, "presence") if step.name in self._gated else step.inputs
        return all(name in self._values for name in wanted)

    def _knows_presence(self, plan: Sequence[StepSpec]) -> bool:
        return "presence" in self._values or any("presence" in s.outputs for s in plan)

    def _needless(self, step: StepSpec) -> dict[str, Array] | None:
        """What stands for the outputs of a step that has nothing to work on in the whole batch, be
        it of its modalities or of what the chain left of them; else None."""
        if step.name not in self._gated:
            return nothing(self._executor.contract, step, self._values)
        presence = self._values["presence"]
        if presence[:, [MODALITIES.index(m) for m in step.needs]].any():
            return None
        specs = {name: self._executor.contract.tensors[name] for name in step.outputs}
        if any(isinstance(size, str) for spec in specs.values() for size in spec.shape[1:]):
            return None
        return {
            name: np.zeros((len(presence), *map(int, spec.shape[1:])), DTYPES[spec.dtype])
            for name, spec in specs.items()
        }
