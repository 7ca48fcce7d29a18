"""An event loop in a thread of its own: tritonclient's calls can be cancelled only from one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from merkit.backends.outlive import Outliving
from merkit.errors import InferenceError

T = TypeVar("T")


class Loop:
    """Runs coroutines for callers that have no loop. Thread-safe."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="merkit-triton", daemon=True
        )
        self._lock = threading.Lock()
        self._closed = False
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Waits for `work`; cancels it when the wait is broken off, by Ctrl-C say."""
        with self._lock:
            if self._closed:
                work.close()
                raise InferenceError("the client is closed", "an open client", "connect again")
            future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise InferenceError(
                "the client was closed during the call", "an open client", "connect again"
            ) from None
        except BaseException:
            future.cancel()
            raise

    def close(self, client: Any, outliving: Outliving | None = None) -> None:
        """Ends open calls, the client and the thread; what `outliving` holds may end first."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(client, outliving), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @staticmethod
    async def _end(client: Any, outliving: Outliving | None) -> None:
        if outliving is not None:
            await outliving.drain()
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if client is not None:
            await client.close()
