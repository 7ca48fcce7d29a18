"""A second version of a bundle, with the encoders of the first."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
from onnx import numpy_helper

from merkit.bundle import Bundle, sha256_file, write_manifest


def retrained(bundle: Bundle, root: Path) -> Bundle:
    """A copy of a toy bundle below `root`, with other weights in its fusion."""
    shutil.copytree(bundle.root, root)
    path = root / "fusion" / "1" / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == "float32" and values.ndim == 2:
            tensor.CopyFrom(numpy_helper.from_array(values[:, ::-1].copy(), tensor.name))
    onnx.save(model, path)
    digests = {**bundle.manifest["step_digests"], "fusion": sha256_file(path)}
    return write_manifest(
        root, bundle.contract, digests, {"name": "second", "voters": bundle.manifest["voters"]}
    )
