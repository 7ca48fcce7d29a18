"""May what lies in a repository run here? Asked of rendered folders, before a server starts on one.

`merkit serve` asks of a bundle's own folder. A container is given a repository that was rendered
elsewhere, perhaps of several bundles under versioned names, and Triton itself asks nothing: it
would run weights that nobody signed, or that failed their gate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from merkit.admission import admit
from merkit.bundle import MANIFEST, RESTORE, SIGNATURES, Bundle, open_bundle, sha256_file
from merkit.contract import Contract
from merkit.errors import BundleCorruptError, BundleError, UnsignedBundleError
from merkit.serving.config import versioned_names


def admit_repository(root: Path, trusted_keys: Sequence[str] | None) -> list[str]:
    """The ids of the bundles in a rendered repository, if all may run here.

    Every content file is hashed. What differs per host (configs, model.py, plans) is not covered.

    Args:
        root: the repository, of plain or of versioned names.
        trusted_keys: public keys of which one must have signed each bundle; None: none is asked.

    Raises:
        SignatureError: keys are given, and none vouches for a bundle, or there is no manifest.
        UnreleasableBundleError: a bundle failed its gate.
        BundleCorruptError: a file is missing or changed.
        InvalidInputError: a trusted key cannot be read.
    """
    if (root / MANIFEST).exists():
        return [admit(open_bundle(root), trusted_keys).bundle_id]
    manifests = sorted(root.glob(f"{Path(MANIFEST).stem}-*.json"))
    if not manifests and trusted_keys is not None:
        raise UnsignedBundleError(
            f"{root} holds no {MANIFEST}, and keys are configured",
            "a repository that was rendered from signed bundles",
            "render one: merkit-export render",
        )
    bundles = [_admitted(path, trusted_keys) for path in manifests]
    stated: dict[str, list[Mapping[str, Any]]] = {}
    for manifest, bundle in zip(manifests, bundles, strict=True):
        for name, entry in _content(manifest, bundle):
            stated.setdefault(name, []).append(entry)
    for name, entries in stated.items():
        _check_file(root / name, entries)
    return [bundle.bundle_id for bundle in bundles]


def _admitted(manifest: Path, keys: Sequence[str] | None) -> Bundle:
    """The bundle of one manifest among several; its files are not looked at."""
    try:
        table = json.loads(manifest.read_text("utf-8"))
        contract = Contract.from_json(table["contract"], str(manifest))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(manifest, error) from None
    with TemporaryDirectory() as folder:  # where signatures lie beside a manifest of plain name
        if (signatures := manifest.with_suffix(Path(SIGNATURES).suffix)).exists():
            (Path(folder) / SIGNATURES).symlink_to(signatures.resolve())
        try:
            admit(Bundle(Path(folder), contract, table), keys)
        except BundleError as error:
            found = error.found.replace(folder, str(manifest))
            raise type(error)(found, error.expected, error.action) from None
    return Bundle(manifest.parent, contract, table)


def _content(manifest: Path, bundle: Bundle) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each of a bundle's files lies in the repository, and what its manifest says of it."""
    try:
        models = versioned_names(bundle).models
        for name, entry in bundle.manifest["content"].items():
            step, _, rest = name.partition("/")
            yield f"{models[step]}/{rest}", {"size": entry["size"], "sha256": entry["sha256"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise _unreadable(manifest, error) from None


def _check_file(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Bundles that share a step agree in its graph and weights, but perhaps not in what their
    files say of who made them: the file is whose it is last."""
    if not path.is_file():
        raise BundleCorruptError(f"{path} is missing", "every file of its bundle", RESTORE)
    sizes = {entry["size"] for entry in entries}
    if path.stat().st_size in sizes:
        found = sha256_file(path)
        if any(entry["sha256"] == found for entry in entries):
            return
    raise BundleCorruptError(f"{path} has changed", "the file that a manifest lists", RESTORE)


def _unreadable(manifest: Path, error: Exception) -> BundleCorruptError:
    told = f"{type(error).__name__}: {error}"
    return BundleCorruptError(f"{manifest} cannot be read ({told})", "a manifest", RESTORE)
