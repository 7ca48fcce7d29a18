"""What merkit calls in TensorRT exists there, with those arguments.

TensorRT cannot be imported without its libraries, gigabytes that need a GPU to be of use. Its
bindings alone can, beside stand-ins for the nine functions that they link to. So every name of the
fake that the other tests run on is held against the real module: the fake offers nothing that the
real one lacks, and merkit's code passes its tests on the fake.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

import merkit.backends.tensorrt
import merkit.trt
import merkit_export.tensorrt.builder

LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
STAND_INS = "\n".join(
    f"void *{name}(void) {{ return 0; }}"
    for name in (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getBuilderPluginRegistry",
        "getNvOnnxParserVersion",
        "getPluginRegistry",
        "initLibNvInferPlugins",
    )
)
DESCRIBE = """
import ctypes, json, sys
for path in sys.argv[1:]:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
import tensorrt_bindings as trt
def describe(value):
    if isinstance(value, property):
        return {"property": True, "writable": value.fset is not None}
    return {"call": value.__doc__ or ""} if callable(value) else {"value": True}
print(json.dumps({
    name: {member: describe(getattr(kind, member)) for member in dir(kind)}
    if isinstance(kind, type) else describe(kind)
    for name, kind in vars(trt).items()
}))
"""
MODULES = (merkit.trt, merkit.backends.tensorrt, merkit_export.tensorrt.builder)
REMOVED = ("EXPLICIT_BATCH", "FP16", "INT8", "weight_streaming_budget", "max_workspace_size")
"""Names of TensorRT 10 and before; the first three are no longer members of any enumeration."""


@pytest.fixture(scope="module")
def binary() -> Path:
    """The compiled module of the installed bindings."""
    found = importlib.util.find_spec("tensorrt_bindings")
    if found is None or found.origin is None:
        pytest.skip("tensorrt-cu12-bindings is not installed: it exists for Linux alone")
    return Path(found.origin).with_name("tensorrt.so")


@pytest.fixture(scope="module")
def real(binary: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every name of the real module: classes with their members, functions with signatures."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler here for the stand-ins of TensorRT's libraries")
    folder = tmp_path_factory.mktemp("stand-ins")
    (folder / "all.c").write_text(STAND_INS)
    major = importlib.metadata.version("tensorrt-cu12-bindings").split(".")[0]
    paths = []
    for library in LIBRARIES:
        path = folder / f"lib{library}.so.{major}"
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", str(path)]
        subprocess.run([*command, str(folder / "all.c")], check=True, timeout=60)
        paths.append(str(path))
    place = {**os.environ, "PYTHONPATH": str(binary.parent.parent)}
    command = [sys.executable, "-c", DESCRIBE, *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=place, timeout=120)
    assert done.returncode == 0, done.stderr
    described: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return described


def fakes() -> dict[str, type]:
    """The fake's classes that stand for real ones."""
    return {
        name: kind
        for name, kind in vars(fake_tensorrt).items()
        if inspect.isclass(kind) and kind.__module__ == "fake_tensorrt"
    }


@pytest.mark.parametrize("name", fakes())
def test_every_member_of_the_fake_is_real(real: dict[str, dict[str, Any]], name: str) -> None:
    members, kind = real[name], fakes()[name]
    inherited = set(getattr(kind, "__slots__", ())) | set(vars(kind))
    for member in sorted(inherited):
        if member.startswith("_") and member != "__init__":
            continue
        value = vars(kind)[member]
        if member in ("shapes", "model", "content"):
            continue  # the fake's own memory
        assert member in members, f"tensorrt.{name} has no {member}"
        if inspect.isfunction(value) and members[member].get("call"):
            check_arguments(f"{name}.{member}", value, members[member]["call"])
        elif inspect.ismemberdescriptor(value) and member != "name":
            assert members[member] == {"property": True, "writable": True}, f"{name}.{member}"


def check_arguments(where: str, fake: Any, documented: str) -> None:
    """The fake's arguments are those of one of the real overloads, in order."""
    signatures = re.findall(r"\w+\(self: [^\n]*\) -> ", documented)
    if not signatures:  # pybind11 documents no constructor of what only factories make
        return
    asked = [p for p in inspect.signature(fake).parameters if p != "self"]
    offered = [re.findall(r"[(,] ?(\w+): ", signature)[1:] for signature in signatures]
    assert any(names[: len(asked)] == asked for names in offered), f"{where}{asked}: {offered}"


def test_the_functions_of_the_fake_are_real(real: dict[str, dict[str, Any]]) -> None:
    assert "call" in real["nptype"]
    assert "value" in real["__version__"]


def test_what_tensorrt_11_removed_is_gone(real: dict[str, dict[str, Any]]) -> None:
    gone = {"FP16", "INT8", "BF16", "FP8", "PREFER_PRECISION_CONSTRAINTS"}
    assert not gone & set(real["BuilderFlag"])
    assert "EXPLICIT_BATCH" not in real["NetworkDefinitionCreationFlag"]
    assert "weight_streaming_budget" not in real["ICudaEngine"]
    assert "build_engine" not in real["Builder"]


def asked_of_tensorrt(module: Any) -> set[str]:
    """Attributes that a module reads from `trt` or `tensorrt`, through any chain."""
    tree = ast.parse(inspect.getsource(module))
    names = set()
    for node in ast.walk(tree):
        chain = []
        while isinstance(node, ast.Attribute):
            chain.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in ("trt", "tensorrt"):
            names |= set(chain)
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_name_occurs_in_the_compiled_module(binary: Path, module: Any) -> None:
    content = binary.read_bytes()
    python = binary.with_name("__init__.py").read_text("utf-8")
    asked = asked_of_tensorrt(module) - {"split"}
    assert asked, module
    for name in asked:
        # linkers let a string be the end of a longer one
        known = name.encode() + b"\0" in content or re.search(rf"\b{name}\b", python)
        assert known, f"{module.__name__} asks for {name}"
    assert not asked & set(REMOVED)


def test_every_name_is_one_of_the_fakes(binary: Path) -> None:
    """So that the tests on the fake cover all that is asked."""
    known = set(vars(fake_tensorrt)) | {m for kind in fakes().values() for m in dir(kind)}
    for module in MODULES:
        assert asked_of_tensorrt(module) - {"split"} <= known, binary
