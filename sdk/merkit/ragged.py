"""Batches of clips of different lengths without their padding: one form for every executor.

Triton's batcher joins requests only where shapes agree, and clips agree in nothing: without this
form each sound would run alone. So a graph may take an input *ragged*: the rows of a batch end to
end, beside what they need to be told apart again, which happens inside the graph. The same
`model.onnx` is then fed by Triton (`allow_ragged_batch` with `batch_input`), by the portable
runner and in process; on every wire tensors stay [batch, n] with a length.

For an input `x` [batch, n] the graph takes

    x        the rows, one after another, [total]
    x_widths int32 [batch, 1]: how many values of `x` each row takes up
                               (Triton's BATCH_ITEM_SHAPE)
    x_span   int32 [span]:     of which only the size counts: the width to pad to inside
                               (Triton's BATCH_MAX_ELEMENT_COUNT_AS_SHAPE)

and of each row as many values are real as its length says. Item shapes, unlike accumulated
counts, are right for requests of several rows too; and a width that is the *size* of an input
lets TensorRT build profiles, where one that is a value in a tensor would not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import DType, Ragged, StepSpec, TensorSpec

Arrays = Mapping[str, NDArray[Any]]
COUNT_DTYPE: DType = "int32"
"""Of `widths` and `span`; Triton makes batch inputs of int32 or float32 alone."""


def widths_name(ragged: Ragged) -> str:
    """The graph's input that holds how many values each row takes up."""
    return f"{ragged.values}_widths"


def span_name(ragged: Ragged) -> str:
    """The graph's input whose size is the widest row's width, or more."""
    return f"{ragged.values}_span"


def graph_inputs(step: StepSpec, tensors: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """What the graph of `step` takes, in order: its inputs, the ragged ones as one row, then
    for each ragged one widths and span."""
    found = {name: tensors[name] for name in step.inputs}
    for ragged in step.ragged:
        spec = tensors[ragged.values]
        found[ragged.values] = TensorSpec(spec.dtype, (f"{ragged.values}_total",))
        found[widths_name(ragged)] = TensorSpec(COUNT_DTYPE, ("batch", 1))
        found[span_name(ragged)] = TensorSpec(COUNT_DTYPE, spec.shape[1:])
    return found


def graph_feed(step: StepSpec, requests: Sequence[Arrays]) -> dict[str, NDArray[Any]]:
    """One feed for the graph of `step` out of several requests, whose rows follow each other.

    Args:
        step: which step.
        requests: at least one; each with the step's inputs, [batch, ...]. But for the ragged
            ones, shapes after the batch axis must agree.
    """
    ragged = {r.values: r for r in step.ragged}
    feed: dict[str, NDArray[Any]] = {}
    for name in step.inputs:
        given = [request[name] for request in requests]
        if name in ragged:
            lengths = [request[ragged[name].length] for request in requests]
            feed |= _end_to_end(ragged[name], given, lengths)
        else:
            feed[name] = given[0] if len(given) == 1 else np.concatenate(given)
    return feed


def _end_to_end(
    ragged: Ragged, given: Sequence[NDArray[Any]], lengths: Sequence[NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    widths = [np.clip(n, 0, v.shape[1]) for v, n in zip(given, lengths, strict=True)]
    rows = [
        row[:width]
        for values, counts in zip(given, widths, strict=True)
        for row, width in zip(values, counts[:, 0].tolist(), strict=True)
    ]
    whole = rows[0] if len(rows) == 1 else np.concatenate([given[0].reshape(-1)[:0], *rows])
    return {
        ragged.values: whole,
        widths_name(ragged): np.concatenate(widths).astype(np.int32),
        span_name(ragged): np.zeros(max(v.shape[1] for v in given), np.int32),
    }
