"""Is this bundle what that run computes? Asked of the files, at any later time.

A bundle is proven when it is built; it is copied, signed and kept after that. This asks again,
against the checkpoints, and on real media where clips are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merkit.backends.embedded import EmbeddedBackend
from merkit.bundle import Bundle, open_bundle
from merkit.errors import ContractMismatchError, InvalidInputError
from merkit_export.clips import clips_of, compare_clips
from merkit_export.origin import Origin, checkpoint_hashes, read_origin
from merkit_export.parity import THREADS, compare_steps
from merkit_export.report import Report


def verify(path: Path, run: Path, clips: Sequence[Path] = (), limit: int = 0) -> Report:
    """Compares a bundle with the run it was built from.

    Args:
        path: the bundle.
        run: the run's folder.
        clips: folders with `video/` and, where words are given, `transcripts.csv`.
        limit: of each folder at most so many clips; 0: all.

    Raises:
        BundleError: the bundle or the run is damaged, or the two differ in contract.
        InvalidInputError: the bundle was built from other weights, or a folder holds no clips.
    """
    sets = {folder.name: clips_of(folder, limit) for folder in clips}
    bundle, origin = open_bundle(path), read_origin(run)
    _same_origin(bundle, origin)
    backend = EmbeddedBackend(bundle, providers=["cpu"], threads=THREADS)
    try:
        steps, made_up = compare_steps(backend, origin.modules)
    finally:
        backend.close()
    outcomes = {name: compare_clips(bundle, run, found) for name, found in sets.items()}
    return Report(bundle, steps, made_up, outcomes)


def _same_origin(bundle: Bundle, origin: Origin) -> None:
    found, expected = bundle.contract.contract_id, origin.contract.contract_id
    if found != expected:
        raise ContractMismatchError(
            f"the bundle {bundle.root} has contract {found}",
            f"{expected}, that of the run {origin.run}",
            "give the run that it was built from, or build it again",
        )
    stated = bundle.manifest.get("provenance", {}).get("checkpoints", {})
    actual = checkpoint_hashes(origin.run)
    if differing := sorted(name for name in actual if stated.get(name) != actual[name]):
        raise InvalidInputError(
            f"the bundle {bundle.root} was built from other weights of {', '.join(differing)}",
            f"the checkpoints in {origin.run}",
            "give the run that it was built from, or build it again",
        )
