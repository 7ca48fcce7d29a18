"""Is this bundle what that run computes? Asked of the files, at any later time.

A bundle is proven when it is built; it is copied, signed and kept after that. This asks again,
against the checkpoints, and on real media where clips are given. The verdict can be put on record
in the bundle, which loaders then heed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from merkit.bundle import Bundle, onnx_steps, open_bundle, write_manifest
from merkit.errors import ContractMismatchError, InvalidInputError
from merkit_export.clips import clips_of, compare_clips, decoded_clips
from merkit_export.origin import Origin, checkpoint_hashes, read_origin
from merkit_export.parity import compare_clips_steps, compare_steps
from merkit_export.report import Report
from merkit_export.tolerance import Budget, tolerance_of
from merkit_export.turns import in_turn

WRITTEN = ("schema", "contract_id", "bundle_id", "step_digests", "content", "contract")
"""Of a manifest, what `write_manifest` writes itself."""


def verify(
    path: Path,
    run: Path,
    clips: Sequence[Path] = (),
    limit: int = 0,
    budget: Budget = Budget(),  # noqa: B008  (frozen)
) -> Report:
    """Compares a bundle with the run it was built from.

    Args:
        path: the bundle.
        run: the run's folder.
        clips: folders with `video/` and, where words are given, `transcripts.csv`.
        limit: of each folder at most so many clips; 0: all.
        budget: what the answers of a bundle with lossy steps may cost.

    Raises:
        BundleError: the bundle or the run is damaged, or the two differ in contract.
        InvalidInputError: the bundle was built from other weights, or a folder holds no clips.
    """
    bundle = open_bundle(path)
    labels = bundle.contract.labels
    sets = {folder.name: clips_of(folder, labels, limit) for folder in clips}
    origin = read_origin(run)
    _same_origin(bundle, origin)
    tolerances = {
        s.name: tolerance_of(bundle.manifest, s.name) for s in onnx_steps(bundle.contract)
    }
    allowed = budget if any(t.lossy for t in tolerances.values()) else None
    decoded = [tensors for found in sets.values() for tensors in decoded_clips(bundle, found)]
    with in_turn(bundle, origin.modules) as (backend, modules):
        steps, made_up = compare_steps(backend, modules, tolerances, bool(sets))
        on_clips = compare_clips_steps(backend, modules, decoded, tolerances) if decoded else []
    outcomes = {name: compare_clips(bundle, run, found, allowed) for name, found in sets.items()}
    return Report(bundle, steps, made_up, outcomes, on_clips, allowed)


def record(report: Report) -> Bundle:
    """Writes the verdict into the bundle's manifest, as `validation.gate` and `releasable`.

    Signatures were made for the former manifest and hold no longer.
    """
    bundle = report.bundle
    kept = {key: value for key, value in bundle.manifest.items() if key not in WRITTEN}
    validation = {
        **kept.get("validation", {}),
        "gate": report.summary(),
        "releasable": report.passed,
        "unreleasable_because": list(report.failures()),
    }
    if report.passed:
        del validation["unreleasable_because"]
    digests = bundle.manifest["step_digests"]
    return write_manifest(bundle.root, bundle.contract, digests, {**kept, "validation": validation})


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
