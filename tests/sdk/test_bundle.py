"""A bundle that is not exactly what its manifest says is refused, with the file's name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merkit.bundle import MANIFEST, Bundle, content_files, open_bundle, write_manifest
from merkit.errors import BundleCorruptError, BundleError, BundleNotFoundError, InvalidInputError


@pytest.fixture
def copied(toy_bundle: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(toy_bundle.root, tmp_path / "copy")
    return tmp_path / "copy"


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Applies `change` to the manifest."""
    manifest = json.loads((root / MANIFEST).read_text("utf-8"))
    change(manifest)
    (root / MANIFEST).write_text(json.dumps(manifest), "utf-8")


def test_an_unchanged_copy_opens_with_the_same_identities(toy_bundle: Bundle, copied: Path) -> None:
    opened = open_bundle(copied)
    assert opened.bundle_id == toy_bundle.bundle_id
    assert opened.contract == toy_bundle.contract


def test_one_changed_byte_in_any_file_is_found(copied: Path) -> None:
    for name in content_files(copied):
        path = copied / name
        good = path.read_bytes()
        bad = bytearray(good)
        bad[len(bad) // 2] ^= 1
        path.write_bytes(bad)
        with pytest.raises(BundleCorruptError, match="a byte of it has changed") as caught:
            open_bundle(copied)
        assert name in str(caught.value).replace("\\", "/")
        path.write_bytes(good)
    open_bundle(copied)


def test_a_truncated_and_a_missing_file_are_found(copied: Path) -> None:
    model = copied / "voting" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(BundleCorruptError, match=r"voting.* bytes"):
        open_bundle(copied)
    model.unlink()
    with pytest.raises(BundleCorruptError, match=r"voting.* is missing"):
        open_bundle(copied)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "..\\outside"])
def test_names_that_lead_out_of_the_bundle_are_refused(copied: Path, name: str) -> None:
    (copied.parent / "outside").write_bytes(b"x")
    entry = {"sha256": "", "size": 1}
    edit(copied, lambda manifest: manifest["content"].update({name: entry}))
    with pytest.raises(BundleCorruptError, match="content table"):
        open_bundle(copied)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.update(schema=99), "schema 99"),
        (lambda m: m.update(contract_id="0" * 32), "contract_id"),
        (lambda m: m["contract"].update(labels=["a", "b"]), "contract_id"),
        (lambda m: m.pop("contract"), "contract"),
        (lambda m: m.pop("content"), "content table"),
        (lambda m: m["content"].pop("fusion/1/model.onnx"), "no model for the step 'fusion'"),
        (lambda m: m["content"].update({"x": {"size": "1"}}), "content table"),
        (lambda m: m.update(bundle_id="0" * 32), "bundle_id"),
        (lambda m: m.update(step_digests={}), "bundle_id"),
        (lambda m: m["content"].pop("tokenize/1/tokenizer.json"), "does not list"),
        (lambda m: m["contract"].update(steps=[]), "do not lead"),
        (lambda m: m["contract"]["steps"].pop(), "do not lead"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    copied: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit(copied, change)
    with pytest.raises(BundleCorruptError, match=said):
        open_bundle(copied)


def test_an_unlisted_file_is_refused(copied: Path) -> None:
    (copied / "fusion" / "1" / "model.onnx.data").write_bytes(b"other weights")
    with pytest.raises(BundleCorruptError, match=r"fusion/1/model\.onnx\.data"):
        open_bundle(copied)


def test_no_bundle_is_told_from_a_broken_one(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(BundleNotFoundError, match="no folder"):
        open_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleNotFoundError, match=r"no bundle\.json"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError):
        open_bundle(copied / MANIFEST)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40))
def test_a_manifest_of_any_bytes_is_a_typed_error(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(raw)
    with pytest.raises(BundleError):
        open_bundle(tmp_path)


def test_deployment_files_are_no_content(copied: Path, toy_bundle: Bundle) -> None:
    for name in ("voting/config.pbtxt", "voting/1/model.py", "voting/1/model.plan", "readme.txt"):
        (copied / name).write_text("rendered")
    assert open_bundle(copied).bundle_id == toy_bundle.bundle_id
    assert content_files(copied) == content_files(toy_bundle.root)


def test_writing_a_manifest_leaves_no_temporary_file(copied: Path, toy_bundle: Bundle) -> None:
    write_manifest(copied, toy_bundle.contract, {"a": "b"}, {"name": "again"})
    assert [path.name for path in copied.iterdir() if path.is_file()] == [MANIFEST]


@pytest.mark.parametrize("name", ["bundle_id", "step_digests", "voters"])
def test_a_malformed_detail_is_refused(toy_bundle: Bundle, tmp_path: Path, name: str) -> None:
    manifest = dict(toy_bundle.manifest) | {name: 5}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(BundleCorruptError, match=name):
        open_bundle(tmp_path)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a": ' + "9" * 10_000 + "}"])
def test_json_that_python_cannot_take_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content, "utf-8")
    with pytest.raises(BundleCorruptError, match="cannot be read"):
        open_bundle(tmp_path)


def test_a_voter_without_a_name_in_words_is_refused(copied: Path) -> None:
    edit(copied, lambda m: m.update(voters=[{"name": None}]))
    with pytest.raises(BundleCorruptError, match="voters"):
        open_bundle(copied)


@pytest.mark.parametrize("path", [None, 5, b"triton_repo"])
def test_a_path_of_the_wrong_type_is_refused(path: Any) -> None:
    with pytest.raises(InvalidInputError, match="a path"):
        open_bundle(path)
