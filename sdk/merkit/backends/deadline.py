"""One deadline for several calls, each of which has a deadline of its own.

Whoever asks a second server where the first one failed would let his caller wait twice. Inside
`one_deadline` all calls count from the first one's beginning, so that the last of them ends when a
single call would have.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Budget:
    """What calls inside `one_deadline` may take together.

    Attributes:
        share: of a call's own deadline, counted from `began`, after which it must have ended.
        began: when the first call did, by `time.monotonic`.
    """

    share: float = 1.0
    began: float | None = None


_budget: ContextVar[Budget | None] = ContextVar("merkit_deadline", default=None)


@contextmanager
def one_deadline() -> Iterator[Budget]:
    """Calls inside the `with` share a budget: that of the `with` around it, if there is one."""
    budget = _budget.get() or Budget()
    token = _budget.set(budget)
    try:
        yield budget
    finally:
        _budget.reset(token)


def seconds_left(deadline: float) -> float:
    """How long a call that begins now and has this deadline may take; below 0: no time is left."""
    budget = _budget.get()
    if budget is None:
        return deadline
    now = time.monotonic()
    if budget.began is None:
        budget.began = now
    return budget.began + budget.share * deadline - now
