"""From a bundle and labelled clips to a calibrated bundle.

The new bundle is the old one with a few numbers of its fusion graph replaced; what clients agree
on (the contract) stays, what identifies the weights (digests, bundle_id) changes. It appears
whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.bundle import (
    DEPLOYMENT_SUFFIXES,
    MANIFEST,
    SIDECARS,
    SIGNATURES,
    Bundle,
    open_bundle,
    write_manifest,
)
from merkit.calibration.check import check
from merkit.calibration.fit import Calibration, cross_fitted, fit, measures
from merkit.calibration.graph import read_constant, replace_constant
from merkit.calibration.labelled import Labelled, ask, read_labels
from merkit.contract import canonical
from merkit.errors import InvalidInputError
from merkit.voting import ranked_mode

TEMPERATURES, LOG_PRIOR = "temperatures", "log_prior"
"""Constants of the fusion graph, [voters] and [classes]."""
PARAMETER = 'parameters \\{{\n  key: "confident_from"\n  value \\{{\n{}\\}}\n\\}}\n'
"""How protobuf prints the threshold in a config, as a pattern."""
WRITTEN = ("schema", "contract_id", "bundle_id", "step_digests", "content", "contract")
"""Keys of a manifest that `write_manifest` makes itself."""


@dataclass(frozen=True)
class Outcome:
    """What a calibration did.

    Attributes:
        bundle: the new bundle.
        calibration: the numbers in its fusion graph.
        clips: how many labelled clips they were fitted on.
        failed: name and reason of each clip that could not be judged.
        before, after: WAF, accuracy, ECE and Brier score of the vote on these clips, before, and
            after by cross-fitting: no clip is calibrated by a fit that it took part in.
    """

    bundle: Bundle
    calibration: Calibration
    clips: int
    failed: tuple[tuple[str, Exception], ...]
    before: Mapping[str, float]
    after: Mapping[str, float]


def calibrate(
    bundle: str | os.PathLike[str],
    labels: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    prior: str | Mapping[str, float] | None = None,
    coverage: float | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Refits a bundle's temperatures, and its class prior if asked, on labelled clips.

    The manifest's `validation` then says what was proven of the new graph, and keeps what the
    gate found of the former one as such.

    Args:
        bundle: the bundle to start from.
        labels: a CSV file with `path` and `label`, and `text` where there is a transcript.
        out: the new bundle's folder, which must not exist.
        prior: how often each class is to be expected in use: `counts` (as often as in `labels`),
            `uniform`, shares by class name, or None: leave the bundle's expectation as it is.
        coverage: the share of clips on which the bundle shall call itself confident; sets the
            threshold of `Prediction.confident`.
        seed: of the folds of the cross-fitted measures.
        say: receives progress, one line at a time.

    Raises:
        InvalidInputError: `out` exists, too few clips, unknown labels, a prior for classes that
            no clip has, or a bundle whose graph keeps its calibration out of reach.
        BundleError: no bundle there, or a file of it is damaged.
        MerkitError: the new bundle does not say what was fitted; nothing is written.
        MissingExtraError: ONNX Runtime, or a package that decodes clips, is not installed.
    """
    target = Path(out)
    if target.exists():
        raise InvalidInputError(f"{target} exists", "a new folder", "choose another name")
    if Path(bundle).resolve() in target.resolve().parents:
        raise InvalidInputError(
            f"{target} lies in the bundle", "a folder beside it", "choose another --out"
        )
    if coverage is not None and not 0 < coverage <= 1:
        raise InvalidInputError(f"coverage is {coverage}", "more than 0, at most 1")
    from merkit.opening import load

    opened = open_bundle(bundle)
    model = opened.model_path("fusion").read_bytes()
    start = Calibration(
        tuple(read_constant(model, TEMPERATURES).tolist()),
        tuple(read_constant(model, LOG_PRIOR).tolist()),
    )
    clips, truth = read_labels(Path(labels), opened.contract)
    say(f"asking the bundle about {len(clips)} clips")
    with load(bundle) as client:
        told = ask(client, clips, truth)
    weights = _weights(prior, told.labels, opened.contract.labels)
    shift = prior is not None
    logits = start.undo(told.scores)
    found = fit(logits, told.voted, told.labels, start, weights, shift)
    honest = cross_fitted(logits, told.voted, told.labels, start, weights, shift, seed)
    before = measures(told.scores, told.labels, weights)
    after = measures(honest, told.labels, weights)
    details: dict[str, Any] = {
        "calibration": {
            "clips": len(told.labels),
            "prior": prior if prior is None or isinstance(prior, str) else dict(prior),
            "temperatures": _rounded(found.temperatures),
            "log_prior": _rounded(found.log_prior),
            "before": before,
            "after_cross_fitted": after,
            "from_bundle": opened.bundle_id,
        }
    }
    if coverage is not None:
        details["abstention"] = threshold(honest, told, coverage)

    def proven(written: Bundle) -> dict[str, Any]:
        say("asking the new bundle, which must say what was fitted")
        return check(written, clips, told, start, found)

    written = _write(opened, model, found, details, target, proven)
    return Outcome(written, found, len(told.labels), told.failed, before, after)


def threshold(scores: NDArray[np.float64], told: Labelled, coverage: float) -> dict[str, float]:
    """The score from which on `coverage` of the clips are answered, and how well those are."""
    winner, means = ranked_mode(scores.astype(np.float32))
    confidence = means.max(axis=1)
    least = float(np.quantile(confidence, 1 - coverage, method="lower"))
    sure = confidence >= least
    return {
        "coverage": float(sure.mean()),
        "threshold": least,
        "accuracy": float((winner == told.labels)[sure].mean()),
    }


def _weights(
    prior: str | Mapping[str, float] | None, labels: NDArray[np.int64], names: tuple[str, ...]
) -> NDArray[np.float64] | None:
    """How much each clip must count for the clips to have the prior; None: all alike."""
    if prior is None or prior == "counts":
        return None
    if prior == "uniform":
        shares = dict.fromkeys(names, 1.0)
    elif isinstance(prior, str):
        raise InvalidInputError(f"prior is {prior!r}", "'counts', 'uniform' or shares by class")
    else:
        shares = dict(prior)
    if set(shares) != set(names) or not all(
        isinstance(v, int | float) and np.isfinite(v) and v >= 0 for v in shares.values()
    ):
        raise InvalidInputError(
            f"the prior names {', '.join(map(str, shares)) or 'no class'}",
            f"a share, not negative, for each of {', '.join(names)}",
            "correct the prior",
        )
    counts = np.bincount(labels, minlength=len(names))
    wanted = np.array([shares[name] for name in names], np.float64)
    if missing := [n for n, c, w in zip(names, counts, wanted, strict=True) if w > 0 and not c]:
        raise InvalidInputError(
            f"no labelled clip is {', '.join(missing)}, which the prior expects",
            "at least one clip of each class that it expects",
            "label such clips, or use the prior 'counts'",
        )
    weights: NDArray[np.float64] = (wanted / np.maximum(counts, 1))[labels]
    if not weights.any():
        raise InvalidInputError("the prior expects no class", "some share above zero")
    return weights


def _write(
    opened: Bundle,
    model: bytes,
    found: Calibration,
    details: dict[str, Any],
    target: Path,
    proven: Callable[[Bundle], dict[str, Any]],
) -> Bundle:
    """The new bundle, in a folder beside its place until it is whole and proven."""
    values = {TEMPERATURES: found.temperatures, LOG_PRIOR: found.log_prior}
    digests, manifest = dict(opened.manifest["step_digests"]), opened.manifest
    base = manifest.get("calibration", {}).get("base_digest", digests["fusion"])
    numbers = [struct.pack(f"<{len(v)}f", *v).hex() for v in values.values()]
    digests["fusion"] = hashlib.sha256(canonical([base, *numbers])).hexdigest()
    details["calibration"]["base_digest"] = base
    for name, numbers_of in values.items():
        model = replace_constant(model, name, np.array(numbers_of, np.float32))
    voters = [
        {**voter, "temperature": temperature}
        for voter, temperature in zip(manifest["voters"], found.temperatures, strict=True)
    ]
    kept = {k: v for k, v in manifest.items() if k not in WRITTEN}
    folder = target.parent / f".{target.name}.{os.getpid()}.new"
    suffixes = (f"*{suffix}" for suffix in DEPLOYMENT_SUFFIXES)
    stale = shutil.ignore_patterns(MANIFEST, SIGNATURES, SIDECARS, *suffixes)
    try:
        shutil.copytree(opened.root, folder, ignore=stale)
        (folder / "fusion" / "1" / "model.onnx").write_bytes(model)
        told = {**kept, "voters": voters, **details}
        written = write_manifest(folder, opened.contract, digests, told)
        told["validation"] = _validation(kept.get("validation", {}), proven(written))
        written = write_manifest(folder, opened.contract, digests, told)
        for config in folder.glob("*/config.pbtxt"):
            config.write_text(_restated(config.read_text("utf-8"), opened, written), "utf-8")
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Bundle(target, written.contract, written.manifest)


def _validation(former: Mapping[str, Any], proof: dict[str, Any]) -> dict[str, Any]:
    """What is known of the new graph; the gate and the scores were those of the first one."""
    verdict = ("releasable", "unreleasable_because")
    first = {key: value for key, value in former.items() if key not in verdict}
    return {
        **{key: former[key] for key in verdict if key in former},
        "before_calibration": former.get("before_calibration", first),
        "calibrated": proof,
    }


def _restated(config: str, old: Bundle, new: Bundle) -> str:
    """A rendered config with what it states of the bundle: its identity and threshold."""
    if old.bundle_id not in config:  # of a step, not of an entry point
        return config
    config = re.sub(PARAMETER.format(r"[^}]*"), "", config)
    config = config.replace(old.bundle_id, new.bundle_id)
    stated = PARAMETER.replace("\\", "").format(f'    string_value: "{new.confident_from}"\n  ')
    return config + (stated if new.confident_from else "")


def _rounded(values: tuple[float, ...]) -> list[float]:
    return [round(value, 6) for value in values]
