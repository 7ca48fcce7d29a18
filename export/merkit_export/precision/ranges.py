"""What values activations take on real clips: the scales of static quantisation.

A range from made-up inputs would clip what people say; a range that one outlier sets would waste
most of the 256 steps. So clips of the training split run through the folded graph, first for the
bounds, then (percentile, entropy) for a histogram between them, clip after clip: nothing of a clip
stays in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray

from merkit.backends.sessions import Session
from merkit.contract import StepSpec
from merkit.errors import InvalidInputError
from merkit.ort import import_onnxruntime
from merkit_export import storage

Method = Literal["minmax", "percentile", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)
BINS = 2048
PERCENTILE = 99.99
FRACTIONS = np.linspace(0.3, 1.0, 71)
"""Of the whole range: what `entropy` tries."""
STEPS = 256

Range = tuple[float, float]


def measure(
    model: onnx.ModelProto,
    path: Path,
    step: StepSpec,
    names: Sequence[str],
    feeds: Iterable[dict[str, NDArray[Any]]],
    method: Method,
    threads: int,
) -> dict[str, Range]:
    """The range of each activation in `names` over the feeds.

    Args:
        model: a folded graph; it is left as it was.
        path: where to write a copy that also returns the activations.
        step: the step it is.
        names: tensors inside the graph.
        feeds: the step's inputs, clip after clip; may be walked through more than once.
        method: `minmax`: the bounds; `percentile`: what holds 99.99 % of the values; `entropy`:
            the share of the bounds that loses least information in 256 steps.
        threads: of the session.
    """
    session = _watching(model, path, step, names, threads)
    bounds: dict[str, Range] = {}
    for values in _runs(session, feeds, names):
        for name, array in values.items():
            low, high = bounds.get(name, (0.0, 0.0))
            bounds[name] = (
                min(low, float(array.min(initial=0))), max(high, float(array.max(initial=0)))
            )  # fmt: skip
    if not bounds:
        raise InvalidInputError(
            f"no clip to calibrate {step.name!r} with",
            "clips with what the step reads",
            "give a corpus whose clips have it",
        )
    if method == "minmax":
        return bounds
    counts = {name: np.zeros(BINS, np.int64) for name in names}
    for values in _runs(session, feeds, names):
        for name, array in values.items():
            counts[name] += np.histogram(array, BINS, bounds[name])[0]
    choose = _percentile if method == "percentile" else _entropy
    return {name: choose(counts[name], *bounds[name]) for name in names}


def _watching(
    model: onnx.ModelProto, path: Path, step: StepSpec, names: Sequence[str], threads: int
) -> Session:
    """A session that returns inner tensors too."""
    known, own = {value.name for value in model.graph.input}, len(model.graph.output)
    extra = [name for name in names if name not in known]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
    storage.save(model, path)
    del model.graph.output[own:]
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Session(replace(step, outputs=(*step.outputs, *extra)), session)


def _runs(
    session: Session, feeds: Iterable[dict[str, NDArray[Any]]], names: Sequence[str]
) -> Iterator[dict[str, NDArray[Any]]]:
    for feed in feeds:
        made = feed | session(feed)
        yield {name: made[name] for name in names}


def _percentile(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """Each side is cut where what lies beyond is half of the rest; 0 stays inside."""
    edges = np.linspace(low, high, BINS + 1)
    share = np.cumsum(counts) / max(counts.sum(), 1)
    rest = (1 - PERCENTILE / 100) / 2
    first = int(np.searchsorted(share, rest, "right"))
    last = int(np.searchsorted(share, 1 - rest, "left")) + 1
    return min(float(edges[first]), 0.0), max(float(edges[min(last, BINS)]), 0.0)


def _entropy(counts: NDArray[np.int64], low: float, high: float) -> Range:
    """The share of the range whose 256 steps stay closest to the histogram (Kullback-Leibler)."""
    centres = np.linspace(low, high, 2 * BINS + 1)[1::2]
    losses = [_divergence(counts, centres, f * low, f * high) for f in FRACTIONS]
    best = float(FRACTIONS[int(np.argmin(losses))])
    return best * low, best * high


def _divergence(
    counts: NDArray[np.int64], centres: NDArray[np.float64], low: float, high: float
) -> float:
    """Between the histogram, clipped to the range, and itself after 256 steps."""
    if high <= low:
        return 0.0
    inside = (centres >= low) & (centres <= high)
    kept = np.where(inside, counts, 0).astype(np.float64)
    first, last = np.flatnonzero(inside)[[0, -1]]
    clipped = kept.copy()
    clipped[first] += counts[:first].sum()
    clipped[last] += counts[last + 1 :].sum()
    step = np.clip(((centres - low) / (high - low) * STEPS).astype(int), 0, STEPS - 1)
    filled = inside & (kept > 0)
    total = np.bincount(step[filled], kept[filled], STEPS)
    bins = np.bincount(step[filled], minlength=STEPS)
    spread = np.where(filled, (total / np.maximum(bins, 1))[step], 0.0)
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1)
    here = p > 0
    return float(np.sum(p[here] * np.log(p[here] / np.maximum(q[here], 1e-9))))
