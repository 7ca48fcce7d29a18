"""May what lies in a repository run here? Asked of rendered folders, before a server starts on one.

`merkit serve` asks of a bundle's own folder. A container is given a repository that was rendered
elsewhere, perhaps of several bundles under versioned names, and Triton itself asks nothing: it
would run weights that nobody signed, or that failed their gate.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from merkit.admission import admit
from merkit.bundle import MANIFEST, RESTORE, SIGNATURES, Bundle, open_bundle
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
    manifests = sorted(root.glob(f"{Path(MANIFEST).stem}*.json"))
    if not manifests and trusted_keys is not None:
        raise UnsignedBundleError(
            f"{root} holds no {MANIFEST}, and keys are configured",
            "a repository that was rendered from signed bundles",
            "render one: merkit-export render",
        )
    return [_admitted(path, trusted_keys).bundle_id for path in manifests]


def _admitted(manifest: Path, keys: Sequence[str] | None) -> Bundle:
    root = manifest.parent
    if manifest.name == MANIFEST:
        return admit(open_bundle(root), keys)
    with TemporaryDirectory() as folder:
        plain = Path(folder)
        _link_plainly(manifest, plain)
        try:
            return admit(open_bundle(plain), keys)
        except BundleError as error:
            found = error.found.replace(folder, f"{root} ({manifest.name})")
            raise type(error)(found, error.expected, error.action) from None


def _link_plainly(manifest: Path, folder: Path) -> None:
    """Links a bundle's files, which lie under versioned names, to where they lie in a bundle."""
    root = manifest.parent
    try:
        table = json.loads(manifest.read_text("utf-8"))
        contract = Contract.from_json(table["contract"], str(manifest))
        models = versioned_names(Bundle(root, contract, table)).models
        content = [PurePosixPath(name) for name in table["content"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleCorruptError(
            f"{manifest} cannot be read ({type(error).__name__}: {error})", "a manifest", RESTORE
        ) from None
    (folder / MANIFEST).symlink_to(manifest.resolve())
    if (signatures := manifest.with_suffix(Path(SIGNATURES).suffix)).exists():
        (folder / SIGNATURES).symlink_to(signatures.resolve())
    for name in content:
        if name.is_absolute() or ".." in name.parts or len(name.parts) < 2:
            continue  # which opening the bundle then refuses
        step, *rest = name.parts
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(root.resolve().joinpath(models.get(step, step), *rest))
