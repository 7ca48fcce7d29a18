"""`import merkit` costs next to nothing and loads none of the heavy packages."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import merkit

HEAVY = ("torch", "onnxruntime", "onnx", "tritonclient", "grpc", "cv2", "av", "tokenizers", "PIL")
LIMIT_MS = 50.0


def fresh(code: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )


def loaded(code: str) -> set[str]:
    names = json.loads(
        fresh(f"{code}\nimport sys, json\nprint(json.dumps(list(sys.modules)))").stdout
    )
    return {name.split(".")[0] for name in names}


def test_importing_loads_nothing_heavy_and_not_even_numpy() -> None:
    assert not loaded("import merkit") & {*HEAVY, "numpy"}


def test_using_the_names_loads_nothing_heavy_until_something_is_opened() -> None:
    code = "import merkit\nfor name in merkit.__all__: getattr(merkit, name)"
    assert not loaded(code) & set(HEAVY)


def test_the_command_line_answers_version_without_numpy() -> None:
    code = (
        "import sys\nfrom merkit.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass"
    )
    script = f"{code}\nassert 'numpy' not in sys.modules"
    assert merkit.__version__ in fresh(script).stdout


def test_importing_takes_at_most_fifty_milliseconds() -> None:
    """The least of three, since other programs run beside the tests."""
    best = min(own_import_ms() for _ in range(3))
    assert best <= LIMIT_MS


def own_import_ms() -> float:
    report = fresh("import merkit", "-X", "importtime").stderr
    found = re.search(r"\|\s*(\d+) \| merkit\n", report)
    assert found
    return int(found[1]) / 1000


def test_every_public_name_is_there_and_an_unknown_one_is_not() -> None:
    assert set(merkit.__all__) <= set(dir(merkit))
    assert all(hasattr(merkit, name) for name in merkit.__all__)
    assert not hasattr(merkit, "no_such_name")
