"""The server's Python has numpy 1 and its own codecs: its steps must compute what ours do.

`np.float32(3) + 3.0` is float64 there and float32 here; nothing but a comparison finds the places
where that matters.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from entries import decoded_entry
from odd_media import movie, quadrants, tone

import merkit
from merkit.bundle import Bundle
from merkit.pipeline import DECODED_IN, OUTCOME, cut
from merkit.serving.runner import Graph
from merkit.serving.tritonserver import Installation
from merkit.steps import REGISTRY

SCRIPT = """
import json, sys
import numpy as np
from pathlib import Path
from merkit.bundle import open_bundle
from merkit.serving.runner import Graph
from merkit.steps import REGISTRY

assert np.__version__.startswith("1."), np.__version__
bundle = open_bundle(sys.argv[1])
loaded = np.load(sys.argv[2]).items()
values = {k: v.astype(object) if v.dtype.kind == "U" else v for k, v in loaded}
for name in sys.argv[4:]:
    step = bundle.contract.step(name)
    if step.kind == "python":
        values |= REGISTRY[name](bundle.contract, bundle.resources(name))(values)
    else:
        given = {k: values[k] for k in step.inputs}
        graph = Graph(bundle.model_path(name), bundle.contract.contract_id, step, 1)
        values |= graph.alone(given, step.outputs)
np.savez(sys.argv[3], **{k: v.astype(str) if v.dtype == object else v for k, v in values.items()})
"""


def run_there(
    triton: Installation, bundle: Bundle, values: dict[str, Any], steps: list[str], folder: Path
) -> dict[str, Any]:
    """The steps' outputs as computed by the server's Python."""
    if triton.stub is None:
        pytest.skip("the server at hand is a container's, with the same Python for both")
    (folder / "package").mkdir()
    (folder / "package" / "merkit").symlink_to(Path(merkit.__file__).parent)
    given, made = folder / "in.npz", folder / "out.npz"
    np.savez(given, **{k: v.astype(str) if v.dtype == object else v for k, v in values.items()})
    python = triton.environment["PATH"].split(":")[0] + "/python"
    subprocess.run(
        [python, "-c", SCRIPT, str(bundle.root), str(given), str(made), *steps],
        env=os.environ | {"PYTHONPATH": str(folder / "package")},
        check=True,
        timeout=120,
    )
    return dict(np.load(made))


def run_here(bundle: Bundle, values: dict[str, Any], steps: list[str]) -> dict[str, Any]:
    values = dict(values)
    for name in steps:
        step = bundle.contract.step(name)
        if step.kind == "python":
            values |= REGISTRY[name](bundle.contract, bundle.resources(name))(values)
        else:
            graph = Graph(bundle.model_path(name), bundle.contract.contract_id, step, 1)
            values |= graph.alone({k: values[k] for k in step.inputs}, step.outputs)
    return values


def assert_equal(here: dict[str, Any], there: dict[str, Any]) -> None:
    assert here.keys() == there.keys()
    for name, value in here.items():
        if value.dtype == object:
            assert value.tolist() == there[name].tolist()
            continue
        assert value.dtype == there[name].dtype, name
        np.testing.assert_allclose(value, there[name], rtol=0, atol=1e-5, err_msg=name)


def test_python_steps(toy_bundle: Bundle, triton: Installation, tmp_path: Path) -> None:
    clip = movie(
        [quadrants(160, 98)] * 25,
        sound=tone(2.3, 44_100, 2),
        sound_rate=44_100,
        layout="stereo",
        rotation=90,
    )
    values = {
        "clip": np.frombuffer(clip, np.uint8)[None],
        "text": np.array([["  Caf\u0065\u0301, 你好 "]], dtype=object),
    }
    steps = [step.name for step in toy_bundle.contract.steps if step.kind == "python"]
    there = run_there(triton, toy_bundle, values, steps, tmp_path)
    assert_equal(run_here(toy_bundle, values, steps), there)


def test_real_faces(toy_bundle: Bundle, triton: Installation, tmp_path: Path, media: Path) -> None:
    clip = (media / "single_face.mp4").read_bytes()
    values = {"clip": np.frombuffer(clip, np.uint8)[None]}
    here = run_here(toy_bundle, values, ["decode", "faces"])
    assert here["face_count"] > 0
    assert_equal(here, run_there(triton, toy_bundle, values, ["decode", "faces"], tmp_path))


def test_the_whole_pipeline(toy_bundle: Bundle, triton: Installation, tmp_path: Path) -> None:
    steps = [step.name for step in cut(toy_bundle.contract.steps, DECODED_IN, OUTCOME)]
    values = decoded_entry()
    there = run_there(triton, toy_bundle, values, steps, tmp_path)
    assert_equal(run_here(toy_bundle, values, steps), there)
