"""The bundle: a Triton model repository whose content is checked against one manifest.

A model repository alone says nothing about what belongs to it or whether a byte has changed.
`bundle.json` does: contract, sha256 and size of each content file, identities, provenance.
Content (what was trained and proven) is hashed; deployment files (`config.pbtxt`, `model.py`,
plans), which differ per host, are rendered and never hashed (design 2).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from merkit.contract import SCHEMA_VERSION, Contract, StepSpec, canonical
from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit.pipeline import BYTES_IN, OUTCOME, cut

MANIFEST = "bundle.json"
SIGNATURES = "bundle.sig"
"""Beside the manifest where somebody vouches for it, see `merkit.signing`."""
DEPLOYMENT_NAMES = ("config.pbtxt", "model.py", "__pycache__", ".gitkeep")
DEPLOYMENT_SUFFIXES = (".plan", ".pyc")
SIDECARS = "model.sm_*.json"
"""What describes a TensorRT plan lies beside it, and is deployment as well."""
SAMPLES = "warmup"
"""The folder of a model's warm-up samples, which are rendered."""
RESTORE = "fetch an unchanged copy of the bundle, or export it again"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle whose content has been checked.

    Attributes:
        root: the folder, a Triton model repository.
        contract: what clients must agree on.
        manifest: `bundle.json` as plain values.
    """

    root: Path
    contract: Contract
    manifest: Mapping[str, Any]

    @property
    def bundle_id(self) -> str:
        """Hash over the step digests: which weights these are."""
        return str(self.manifest["bundle_id"])

    @property
    def confident_from(self) -> str:
        """The score from which on an answer counts as confident, as text; "" where none is set."""
        stated = self.manifest.get("abstention")
        least = stated.get("threshold") if isinstance(stated, Mapping) else None
        return f"{least:.6f}" if isinstance(least, int | float) else ""

    def model_path(self, step: str) -> Path:
        """The ONNX file of a step of kind `onnx`."""
        return self.root / step / "1" / "model.onnx"

    def resources(self, step: str) -> Path:
        """The folder with a python step's content files (a tokeniser, say)."""
        return self.root / step / "1"


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Opens a bundle and checks every content file against the manifest.

    Raises:
        InvalidInputError: `path` is no path.
        BundleNotFoundError: no folder, or no manifest in it.
        BundleCorruptError: a manifest of another schema, or a file missing or changed.
    """
    if not isinstance(path, str | os.PathLike):
        raise InvalidInputError(
            f"the bundle is a {type(path).__name__}", "a path", "give the bundle's folder"
        )
    root = Path(path)
    manifest = _read_manifest(root)
    if manifest.get("schema") != SCHEMA_VERSION:
        raise BundleCorruptError(
            f"{root / MANIFEST} has schema {manifest.get('schema')!r}",
            f"schema {SCHEMA_VERSION}",
            "export the bundle again with this version of merkit",
        )
    _check_details(manifest, root)
    contract = Contract.from_json(manifest.get("contract"), str(root / MANIFEST))
    if manifest.get("contract_id") != contract.contract_id:
        raise BundleCorruptError(
            f"{root / MANIFEST} states contract_id {manifest.get('contract_id')!r}",
            f"{contract.contract_id}, the hash of the contract beside it",
            RESTORE,
        )
    content = _content_table(manifest, root)
    for step in contract.steps:
        if step.kind == "onnx" and f"{step.name}/1/model.onnx" not in content:
            raise BundleCorruptError(
                f"the manifest lists no model for the step {step.name!r}",
                f"{step.name}/1/model.onnx among its content",
                RESTORE,
            )
    _check_whole(manifest, content, contract, root)
    for name, entry in content.items():
        _check_file(root, name, entry)
    return Bundle(root, contract, manifest)


def write_manifest(
    root: Path,
    contract: Contract,
    step_digests: Mapping[str, str],
    details: Mapping[str, Any],
) -> Bundle:
    """Hashes the content under `root`, writes `bundle.json` (last, atomically) and opens it.

    Args:
        root: a folder that holds `STEP/1/...` content files.
        contract: what the content implements.
        step_digests: for each step with content, the hash of graph and weights or resources.
        details: `voters`, `precision`, `provenance`, `validation` and the like.
    """
    content = {
        name: {"sha256": sha256_file(root / name), "size": (root / name).stat().st_size}
        for name in content_files(root)
    }
    manifest = {
        "schema": SCHEMA_VERSION,
        "contract_id": contract.contract_id,
        "bundle_id": _identity(step_digests),
        **details,
        "step_digests": dict(step_digests),
        "content": content,
        "contract": contract.to_json(),
    }
    temporary = root / f".{MANIFEST}.tmp"
    temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(root / MANIFEST)
    return open_bundle(root)


def content_files(root: Path) -> list[str]:
    """Content below `root` as sorted POSIX names; manifest and deployment files left out."""
    names = []
    for path in root.rglob("*"):
        deployed = path.name in DEPLOYMENT_NAMES or path.suffix in DEPLOYMENT_SUFFIXES
        deployed = deployed or path.match(SIDECARS) or path.parent.name == SAMPLES
        if path.is_file() and path.parent != root and not deployed:
            names.append(path.relative_to(root).as_posix())
    return sorted(names)


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_sha256(model: Path) -> str:
    """Of an ONNX file, and of the weights beside it where it has any: they may change alone."""
    beside = model.with_name(model.name + ".data")
    if not beside.is_file():
        return sha256_file(model)
    return hashlib.sha256(f"{sha256_file(model)} {sha256_file(beside)}".encode()).hexdigest()


def onnx_steps(contract: Contract) -> tuple[StepSpec, ...]:
    """The steps that are ONNX graphs."""
    return tuple(step for step in contract.steps if step.kind == "onnx")


def _read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFoundError(
            f"{root} holds no {MANIFEST}" if root.is_dir() else f"there is no folder {root}",
            f"a bundle folder with a {MANIFEST}",
            "give the folder that merkit-export wrote, such as triton_repo/models",
        ) from None
    except (ValueError, OSError, RecursionError) as error:
        raise BundleCorruptError(f"{path} cannot be read ({error})", "JSON", RESTORE) from None
    if not isinstance(manifest, dict):
        raise BundleCorruptError(f"{path} holds {type(manifest).__name__}", "an object", RESTORE)
    return manifest


def _check_details(manifest: Mapping[str, Any], root: Path) -> None:
    """What later readers rely on; the hash of the contract does not cover it."""
    voters = manifest.get("voters", [])
    well_formed = {
        "bundle_id": isinstance(manifest.get("bundle_id"), str),
        "step_digests": isinstance(manifest.get("step_digests"), dict),
        "voters": isinstance(voters, list)
        and all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in voters),
    }
    for name in (name for name, good in well_formed.items() if not good):
        raise BundleCorruptError(
            f"{name!r} in {root / MANIFEST} is missing or malformed",
            "what merkit-export writes there",
            RESTORE,
        )


def _identity(step_digests: Mapping[str, str]) -> str:
    return hashlib.sha256(canonical(dict(step_digests))).hexdigest()[:32]


def _check_whole(
    manifest: Mapping[str, Any], content: Mapping[str, Any], contract: Contract, root: Path
) -> None:
    """Refuses what would answer although it is not the bundle that was written."""
    where = root / MANIFEST
    if manifest["bundle_id"] != (expected := _identity(manifest["step_digests"])):
        found = f"{where} states bundle_id {manifest['bundle_id']!r}"
        raise BundleCorruptError(found, f"{expected}, the hash of its step digests", RESTORE)
    if unlisted := sorted(set(content_files(root)) - set(content)):
        found = f"{root} holds {unlisted[0]}, which the manifest does not list"
        raise BundleCorruptError(found, "listed content alone", f"remove it, or {RESTORE}")
    try:
        cut(contract.steps, BYTES_IN, OUTCOME)
    except InvalidInputError as error:
        found = f"the steps in {where} do not lead from a clip to an answer ({error.found})"
        raise BundleCorruptError(found, "a whole pipeline", RESTORE) from None


def _content_table(manifest: Mapping[str, Any], root: Path) -> dict[str, dict[str, Any]]:
    content = manifest.get("content")
    well_formed = isinstance(content, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("size"), int) and _inside(name)
        for name, entry in content.items()
    )
    if not well_formed or not isinstance(content, dict):
        raise BundleCorruptError(
            f"the content table in {root / MANIFEST} is malformed",
            "relative file names with sha256 and size",
            RESTORE,
        )
    return content


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def _check_file(root: Path, name: str, entry: Mapping[str, Any]) -> None:
    path = root / name
    if not path.is_file():
        raise BundleCorruptError(f"{path} is missing", "every file the manifest lists", RESTORE)
    if path.stat().st_size != entry["size"]:
        found = f"{path} has {path.stat().st_size} bytes"
        raise BundleCorruptError(found, f"{entry['size']} bytes", RESTORE)
    if (found := sha256_file(path)) != entry.get("sha256"):
        raise BundleCorruptError(
            f"{path} has sha256 {found[:12]}…, so a byte of it has changed",
            f"{str(entry.get('sha256'))[:12]}…",
            RESTORE,
        )
