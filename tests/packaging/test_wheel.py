"""What a user installs: the wheel's contents, and what a bare `import merkit` costs."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

HEAVY = ("torch", "onnxruntime", "tritonclient", "cv2", "av", "tokenizers", "grpc", "transformers")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_wheel_holds_the_three_packages_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "merkit",
        "merkit_export",
        "merkit_training",
    }
    assert "merkit/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_importing_the_wheel_loads_nothing_heavy(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1]); import merkit;"
        "print(json.dumps([merkit.__file__, merkit.__version__, sorted(sys.modules)]))"
    )
    command = [sys.executable, "-I", "-c", code, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    path, version, modules = json.loads(output)
    assert Path(path).is_relative_to(tmp_path)
    assert f"-{version}-" in wheel.name
    assert not [name for name in modules if name.split(".")[0] in HEAVY]


def test_command_line_tools_are_declared(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith("entry_points.txt"))
        text = archive.read(name).decode()
    for tool in ("merkit =", "merkit-train =", "merkit-export ="):
        assert tool in text
