"""House rules that no single module can keep: documentation, sizes, paths, layers."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

ROOTS = ("sdk", "training", "export", "benchmarks")
MACHINE_PATH = re.compile(rb"/(?:work|farm|root)/[a-z.]")


def tracked() -> list[Path]:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, check=True, capture_output=True, text=True
    ).stdout
    return [path for name in listing.split("\0") if name and (path := REPOSITORY / name).is_file()]


def sources() -> list[Path]:
    return [path for root in ROOTS for path in sorted((REPOSITORY / root).rglob("*.py"))]


def test_every_module_says_why_it_exists() -> None:
    bare = [str(p) for p in sources() if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not bare


def test_no_source_file_outgrows_one_concept() -> None:
    long = {p.name: n for p in sources() if (n := len(p.read_text("utf-8").splitlines())) > 400}
    assert not long


def test_no_tracked_file_names_a_path_of_some_machine() -> None:
    guilty = [
        str(p)
        for p in tracked()
        if p.suffix not in {".onnx", ".mp4", ".png"} and MACHINE_PATH.search(p.read_bytes())
    ]
    assert not guilty


def test_the_repository_stays_small() -> None:
    large = {p.name: p.stat().st_size for p in tracked() if p.stat().st_size > 6_000_000}
    assert not large
    bundle = [p for p in tracked() if "triton_repo/models" in p.as_posix()]
    assert sum(p.stat().st_size for p in bundle) <= 15_000_000


def test_locked_versions_satisfy_the_extras() -> None:
    lock = (REPOSITORY / "constraints.txt").read_text("utf-8")
    assert "torch==2.13.0\n" in lock
    server = (REPOSITORY / "triton_repo" / "requirements.txt").read_text("utf-8")
    assert re.search(r"^numpy==1\.", server, re.MULTILINE)
    for text in (lock, server):
        assert "://" not in text, "a lock names versions, never hosts"


def test_export_brings_all_that_a_build_ends_with() -> None:
    """`build` renders last, with Triton's schema: missing then, it would have exported in vain."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    extras, found, waiting = project["optional-dependencies"], set[str](), ["merkit[export]"]
    while waiting:
        name, _, inner = re.fullmatch(r"([\w-]+)(\[([\w,]+)\])?.*", waiting.pop()).groups("")  # type: ignore[union-attr]
        found.add(name)
        if name == "merkit":
            waiting += [needed for extra in inner.split(",") for needed in extras[extra]]
    assert {"tritonclient", "onnx", "onnxscript", "onnxruntime", "torch", "tokenizers"} <= found


def test_imports_point_one_way() -> None:
    tool = Path(sys.executable).parent / "lint-imports"
    done = subprocess.run([tool], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
