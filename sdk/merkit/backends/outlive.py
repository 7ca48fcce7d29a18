"""Calls that outlive their callers, for servers that do not survive a cancelled one.

Triton before 26.03 takes a cancelled request out of a batching step's queue wrongly: the ensemble
around it is never answered again, or the server dies (24.10 did both, in turn). A caller whose
deadline has passed must therefore not cancel there. The call is left to end by itself.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

SURVIVES = (2, 67)
"""The server's own version in the release 26.03, which mended it (core PR #466). Counted from the
monthly releases (24.10 is 2.51), not read: no server of that release was at hand."""
UNHEARD = 600.0  # seconds after which nothing will come of a call any more
LEAVE = 10.0  # seconds that closing waits for calls that were left


def survives_cancelling(version: str) -> bool:
    """Whether a server of this version (`2.51.0`) bears a cancelled request; one that states
    nothing of the kind is taken for a new one."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return found is None or (int(found[1]), int(found[2])) >= SURVIVES


class Outliving:
    """Asks for callers who may give up, and sees to what they leave."""

    def __init__(self) -> None:
        self._left: set[asyncio.Task[Any]] = set()

    async def ask(self, call: Any, headers: dict[str, str], seconds: float) -> Any:
        """The answer of `call(headers=, client_timeout=)`.

        Raises:
            InferenceServerException: what the call raised, or DEADLINE_EXCEEDED where it took
                longer than `seconds`; it then goes on without its caller.
        """
        from tritonclient.utils import InferenceServerException

        task = asyncio.ensure_future(call(headers=headers, client_timeout=UNHEARD))
        self._left.add(task)
        task.add_done_callback(self._ended)
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise InferenceServerException("left to end", status="StatusCode.DEADLINE_EXCEEDED")
        return task.result()

    async def drain(self) -> None:
        """Waits for calls that were left, but not for long."""
        if self._left:
            await asyncio.wait(self._left, timeout=LEAVE)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()  # nobody asks for it any more
