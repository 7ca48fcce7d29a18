"""The seam between the client and whatever executes the pipeline.

Without one narrow interface the embedded and the served path would each grow their own client.
Everything that runs the pipeline, and everything that wraps such a thing, is a `Backend`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from merkit.contract import Contract

Tensors = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """Executes the pipeline of `contract`."""

    contract: Contract
    identity: Mapping[str, str]
    """`contract_id`, `bundle_id`, `backend` and the like, for the result's `bundle` field."""

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Computes the outcome from entry tensors.

        Args:
            tensors: `pipeline.BYTES_IN` or `pipeline.DECODED_IN`, batch first. Strings are
                object arrays of str; an absent clip or text is of zero length or "".
            timings: where given, filled with milliseconds by step or phase.

        Returns:
            `pipeline.OUTCOME`, and of `pipeline.DETAIL` what was computed on the way.
        """
        ...

    def close(self) -> None:
        """Releases sessions and connections. Safe to call twice."""
        ...


def strings(*values: str) -> NDArray[np.object_]:
    """A `string` tensor of shape [batch, 1], as every backend expects it."""
    return np.array([[value] for value in values], dtype=np.object_)
