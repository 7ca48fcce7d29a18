"""The Helm chart rendered, by helm itself where it is installed, else by Go's template engine."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import REPOSITORY

CHART = REPOSITORY / "triton_repo" / "helm" / "merkit"
RENDERER = REPOSITORY / "tests" / "packaging" / "helm" / "main.go"
SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))
DEFAULTS: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text("utf-8"))


def values(changes: Mapping[str, Any] = {}) -> dict[str, Any]:
    """The chart's defaults with `changes` merged in, as helm merges; checked by the schema."""
    merged = _merge(copy.deepcopy(DEFAULTS), changes)
    jsonschema.validate(merged, SCHEMA)
    return merged


def render(changes: Mapping[str, Any] = {}) -> list[dict[str, Any]]:
    """The manifests of a release `merkit` in the namespace `emotion`."""
    made = values(changes)
    text = _helm(made) if shutil.which("helm") else _go(made)
    return [document for document in yaml.safe_load_all(text) if document]


def kinds(changes: Mapping[str, Any] = {}) -> dict[str, dict[str, Any]]:
    """The manifests by their kind, which no two of them share."""
    documents = render(changes)
    by_kind = {document["kind"]: document for document in documents}
    assert len(by_kind) == len(documents)
    return by_kind


def _helm(made: dict[str, Any]) -> str:
    command = ["helm", "template", "merkit", str(CHART), "--namespace=emotion", "--values=-"]
    return _run(command, json.dumps(made))


def _go(made: dict[str, Any]) -> str:
    data = {
        "Values": made,
        "Release": {"Name": "merkit", "Namespace": "emotion", "Service": "Helm"},
        "Chart": {k[0].upper() + k[1:]: v for k, v in _chart().items()},
    }
    return _run([str(_renderer()), str(CHART)], json.dumps(data))


def _chart() -> dict[str, Any]:
    chart: dict[str, Any] = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    return chart


@cache
def _renderer() -> Path:
    """The compiled renderer; compiled once, since Go keeps what it built."""
    go = shutil.which("go", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if go is None:
        pytest.skip("neither helm nor go is installed: the chart cannot be rendered")
    out = Path(os.environ.get("TMPDIR", "/tmp")) / f"merkit-chart-{os.getuid()}" / "render"
    out.parent.mkdir(mode=0o700, exist_ok=True)
    _run([go, "build", "-o", str(out), str(RENDERER)], "")
    return out


def _run(command: list[str], given: str) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode:
        raise ChartError(done.stderr)
    return done.stdout


class ChartError(Exception):
    """The chart refuses the values."""


def _merge(into: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in changes.items():
        old = into.get(key)
        both = isinstance(old, dict) and isinstance(value, Mapping) and old
        into[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return into
