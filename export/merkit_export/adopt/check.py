"""Does the graph that would ship compute what the foreign file computes?

Asked before anything is written, and again by the gate when the bundle is built. The reference is
the original file, run clip by clip without padding and pooled in numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merkit.contract import Contract, Preprocessing
from merkit.errors import BundleCorruptError, MerkitError
from merkit.ort import import_onnxruntime
from merkit.pipeline import GROUPS, standard_contract
from merkit.ragged import graph_feed
from merkit_export import graphs
from merkit_export.adopt.read import Adoptable
from merkit_export.parity import StepParity, compare_outputs
from merkit_training.encoders.adopted import AdoptedEncoder
from merkit_training.labels import MER6

Arrays = dict[str, NDArray[Any]]


def check(found: Adoptable, p: Preprocessing) -> StepParity:
    """Compares both over short, usual and long clips, alone and in a batch, none at all included.

    Raises:
        MerkitError: they differ, or the graph gives NaN.
        BundleCorruptError: ONNX Runtime cannot run the graph.
    """
    contract = contract_around(found, p)
    step = contract.step(found.step)
    encoder = AdoptedEncoder(found.config, found.graph)
    model = graphs.export_step(encoder, step, contract, {})
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime has exceptions of its own
        first = str(error).splitlines()[0]
        raise BundleCorruptError(
            f"ONNX Runtime cannot load the graph around {found.graph} ({first})",
            "a graph whose inputs have dynamic sizes",
            "export it again, with another opset",
        ) from None
    names = {node.name for node in session.get_inputs()}
    report = StepParity(found.step)
    (output,) = step.outputs
    for case in cases(found, p):
        feed = {k: v for k, v in graph_feed(step, [case]).items() if k in names}
        made = dict(zip(step.outputs, session.run(list(step.outputs), feed), strict=True))
        arguments = [torch.from_numpy(case[name]) for name in step.inputs]
        compare_outputs(report, step, {output: encoder(*arguments).numpy()}, made)
    if not report.passed:
        raise MerkitError(
            f"the graph around {found.graph} computes something else: {report.problems[0]}",
            f"differences of at most {report.tolerance.told()}",
            "export the encoder again, in float32",
        )
    return report


def contract_around(found: Adoptable, p: Preprocessing) -> Contract:
    """A contract with the encoder's width; labels and other widths do not matter to its step."""
    tensor = standard_contract(MER6, dict.fromkeys(GROUPS, 1), p).step(found.step).outputs[0]
    group = next(group for group, name in GROUPS.items() if name == tensor)
    return standard_contract(MER6, {**dict.fromkeys(GROUPS, 1), group: found.config.hidden}, p)


def cases(found: Adoptable, p: Preprocessing) -> list[Mapping[str, NDArray[Any]]]:
    """Inputs of the step: single clips of several lengths, and all of them in one padded batch."""
    rng = np.random.default_rng(0)
    if found.config.reads == "pixel_values":
        side = p.grid * p.face_size
        pictures = rng.normal(size=(3, 3, side, side)).astype(np.float32)
        return [{"face_grid": pictures[:1]}, {"face_grid": pictures}]
    if found.config.reads == "input_values":
        rate, names = p.sample_rate, ("audio_values", "audio_length")
        counts = [
            0,
            1,
            round(p.min_audio_seconds * rate),
            2 * rate,
            round(p.max_audio_seconds * rate),
        ]
        rows: list[NDArray[Any]] = [rng.normal(size=n).astype(np.float32) for n in counts]
    else:
        names, counts = ("text_ids", "text_length"), [0, 1, 7, p.max_text_tokens]
        rows = [rng.integers(0, 100, n) for n in counts]
    lengths = np.array(counts)[:, None]
    width = max(counts)
    batch = np.stack([np.pad(row, (0, width - len(row)), constant_values=1) for row in rows])
    single: list[Mapping[str, NDArray[Any]]] = [
        dict(zip(names, (batch[i : i + 1, : max(n, 1)], lengths[i : i + 1]), strict=True))
        for i, n in enumerate(counts)
    ]
    return [*single, dict(zip(names, (batch, lengths), strict=True))]
