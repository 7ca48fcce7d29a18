"""`merkit serve`: a server in the foreground, from its first line to Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

from merkit.backends.entries import DIGITS
from merkit.backends.security import is_loopback
from merkit.errors import InferenceError
from merkit.serving.server import Served, ServeOptions, Server


def serve(
    bundle: Served | Sequence[Served],
    options: ServeOptions | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """`merkit serve`: runs a server until Ctrl-C or SIGTERM; returns the exit status.

    Raises what `Server` raises, and InferenceError when the server dies by itself.
    """
    options = options or ServeOptions()
    with _signals_as_interrupt():
        try:
            with Server(bundle, options, progress=say) as server:
                for served in server.bundles:
                    identity = f"bundle {served.bundle_id[:DIGITS]}, contract"
                    say(f"serving {served.root} ({identity} {served.contract.contract_id})")
                say(f"  grpc     {server.grpc}")
                say(f"  http     {server.http}")
                say(f"  metrics  {server.metrics}")
                say(f"  log      {server.log}")
                if not (is_loopback(options.host) or options.protection.certificate):
                    say("without TLS, whoever is on the way can read what clients send")
                say("press Ctrl-C to stop")
                status = server.wait()
                raise InferenceError(
                    f"Triton ended by itself with status {status}:\n{server.tail()}",
                    "a server that runs until it is stopped",
                    "read the lines above and start it again",
                )
        except KeyboardInterrupt:
            say("stopped")
            return 0


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP is a KeyboardInterrupt; later ones wait for the end.

    In another than the main thread, signals stay as they are.
    """
    told = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal told
        if not told:
            told = True
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in stopping}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
