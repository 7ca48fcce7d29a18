"""W3C trace context: which request of the application a call belongs to.

Without it a slow answer could not be followed from the application through Triton into the step
that was slow. Triton reads the header `traceparent` of a call and hangs its own spans below it.
OpenTelemetry is not required: where the application has not imported it, nothing is loaded.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from merkit.errors import InvalidInputError

TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_given: ContextVar[str | None] = ContextVar("merkit_traceparent", default=None)


@contextmanager
def traceparent(value: str) -> Iterator[None]:
    """Calls made inside the `with` belong to the span that `value` names.

    Args:
        value: `00-TRACE_ID-SPAN_ID-FLAGS` as in the W3C recommendation, from a request's header,
            say.

    Raises:
        InvalidInputError: it is no such value.
    """
    if not (isinstance(value, str) and TRACEPARENT.fullmatch(value)):
        raise InvalidInputError(
            f"the traceparent {value!r}",
            "00-<32 hex digits>-<16 hex digits>-<2 hex digits>, not all zero",
            "pass on the header as it came",
        )
    token = _given.set(value)
    try:
        yield
    finally:
        _given.reset(token)


def trace_headers() -> dict[str, str]:
    """The headers of the caller's span: the one given, else OpenTelemetry's active one."""
    if (value := _given.get()) is not None:
        return {"traceparent": value}
    if "opentelemetry.trace" not in sys.modules:  # whoever has a span has imported it
        return {}
    from opentelemetry.propagate import inject

    headers: dict[str, str] = {}
    inject(headers)
    return headers
