"""What a bundle holds, and whether it does what it says.

A bundle travels: it is built on one host, signed, copied and served on others. `summary` lets a
person see which one they have; `verify` proves on the spot that it is whole and that it answers
soundly for every mix of modalities, without needing a clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merkit.admission import TRUSTED_KEYS, admit, configured_keys
from merkit.backends.base import Backend, strings
from merkit.bundle import Bundle, open_bundle
from merkit.contract import MODALITIES, Contract
from merkit.errors import InferenceError, MerkitError, NoEvidenceError, SignatureError
from merkit.hearing import Heard
from merkit.pipeline import BYTES_IN, DECODED_IN, HEARD, OUTCOME, cut
from merkit.results import Prediction
from merkit.signing import check_signature, read_public_keys, read_signatures

if TYPE_CHECKING:
    from merkit.backends.embedded import EmbeddedBackend

TOLERANCE = 1e-4
WORDS = "What a surprise!"


@dataclass(frozen=True)
class Check:
    """One line of `verify`."""

    name: str
    passed: bool
    detail: str


def summary(bundle: Bundle) -> dict[str, Any]:
    """The bundle's identities, steps, voters, sizes and provenance as plain values."""
    contract, manifest = bundle.contract, bundle.manifest
    content = manifest["content"]
    known = {"schema", "contract", "content", "step_digests", "contract_id", "bundle_id", "name"}
    return {
        "name": manifest.get("name", bundle.root.name),
        "contract_id": contract.contract_id,
        "bundle_id": bundle.bundle_id,
        "labels": list(contract.labels),
        "steps": [
            {
                "name": step.name,
                "kind": step.kind,
                "inputs": list(step.inputs),
                "outputs": list(step.outputs),
                "needs": list(step.needs),
                "digest": manifest.get("step_digests", {}).get(step.name),
                "bytes": sum(
                    entry["size"] for name, entry in content.items() if _of(name, step.name)
                ),
            }
            for step in contract.steps
        ],
        "tensors": contract.to_json()["tensors"],
        "hearing": contract.to_json().get("hearing"),
        "preprocessing": contract.to_json()["preprocessing"],
        "bytes": sum(entry["size"] for entry in content.values()),
        **{name: value for name, value in manifest.items() if name not in known},
    }


def describe(bundle: Bundle) -> Iterator[str]:
    """The summary as lines for a person."""
    found = summary(bundle)
    yield f"{found['name']}  ({_size(found['bytes'])} in {bundle.root})"
    if notice := found.get("notice"):
        yield f"  {notice}"
    yield ""
    yield f"  contract_id  {found['contract_id']}"
    yield f"  bundle_id    {found['bundle_id']}"
    yield f"  signed by    {signers(bundle)}"
    yield f"  labels       {', '.join(found['labels'])}"
    yield "  steps"
    for step in found["steps"]:
        digest = (step["digest"] or "")[:8]
        needs = f"needs {' or '.join(step['needs'])}" if step["needs"] else ""
        line = f"    {step['name']:<19} {step['kind']:<7} {_size(step['bytes']):>9}  {digest:<8}"
        yield f"{line}  {needs}".rstrip()
        yield f"      {', '.join(step['inputs'])} -> {', '.join(step['outputs'])}"
    yield "  entry points"
    for name, entry in (("clip bytes", BYTES_IN), ("decoded tensors", DECODED_IN)):
        steps = cut(bundle.contract.steps, entry, OUTCOME)
        yield f"    {name:<16} {', '.join(entry)} ({len(steps)} steps)"
    yield "  tensors"
    for name, spec in bundle.contract.tensors.items():
        yield f"    {name:<21} {spec.dtype:<8} [{', '.join(map(str, spec.shape))}]"
    yield "  voters, best first"
    for voter in found.get("voters", [v.__dict__ for v in bundle.contract.voters]):
        facts = ", ".join(f"{k} {_short(v)}" for k, v in voter.items() if k != "name")
        yield f"    {voter['name']:<8} {facts}"
    shown = {"name", "contract_id", "bundle_id", "labels", "steps", "tensors", "bytes", "voters"}
    for name in (n for n in found if n not in shown | {"notice"} and found[n] is not None):
        yield from _tree(name, found[name], 2)


def signers(bundle: Bundle) -> str:
    """Whose signatures the bundle carries, and what the configured keys say of them."""
    try:
        named = ", ".join(signature.key_id for signature in read_signatures(bundle)) or "nobody"
        keys = configured_keys()
        if keys is None:
            return f"{named} (not checked: {TRUSTED_KEYS} is not set)"
        trusted = check_signature(bundle, read_public_keys(keys))
        return f"{named} ({trusted} is trusted, and signed exactly this)"
    except SignatureError as error:
        return f"no trusted key: {error.found}"


def verify(path: str | os.PathLike[str]) -> Iterator[Check]:
    """Checks a bundle from its bytes to its answers; stops where nothing further can be tried."""
    from merkit.backends.embedded import EmbeddedBackend

    try:
        bundle = open_bundle(path)
    except MerkitError as error:
        yield Check("content", False, str(error))
        return
    total = _size(sum(entry["size"] for entry in bundle.manifest["content"].values()))
    count = len(bundle.manifest["content"])
    yield Check("content", True, f"{count} files, {total}, every hash as the manifest states")
    yield _check_admission(bundle)
    yield _check_configs(bundle)
    try:
        backend = EmbeddedBackend(bundle)
    except MerkitError as error:
        yield Check("graphs", False, str(error))
        return
    try:
        graphs = sum(step.kind == "onnx" for step in bundle.contract.steps)
        yield Check(
            "graphs", True, f"{graphs} load and carry contract {bundle.contract.contract_id}"
        )
        for pattern in product((True, False), repeat=len(MODALITIES)):
            yield _check_pattern(backend, pattern)
        if bundle.contract.hearing is not None:
            yield _check_hearing(backend)
    finally:
        backend.close()


def _check_admission(bundle: Bundle) -> Check:
    try:
        admit(bundle)
    except MerkitError as error:
        return Check("admission", False, str(error))
    return Check("admission", True, f"released; signed by {signers(bundle)}")


def _check_configs(bundle: Bundle) -> Check:
    configs = sorted(bundle.root.glob("*/config.pbtxt"))
    foreign = [
        path.parent.name
        for path in configs
        if bundle.contract.contract_id not in path.read_text("utf-8", "replace")
    ]
    if foreign:
        return Check("configs", False, f"of another contract: {', '.join(foreign)}; render again")
    return Check("configs", True, f"{len(configs)} rendered, all of this contract")


def _check_pattern(backend: Backend, pattern: tuple[bool, ...]) -> Check:
    present = [m for m, there in zip(MODALITIES, pattern, strict=True) if there]
    name = "+".join(present) or "nothing"
    try:
        given = dummy(backend.contract, present)
        if backend.contract.hearing and "text" not in present:
            del given["text"]  # else a pipeline that hears might find words in the noise
        outputs = backend.infer(given)
        found = Prediction.from_outputs(outputs, backend.contract, source=name)
        _check_answer(found, present)
    except NoEvidenceError:
        passed = not present
        return Check(name, passed, "refused" if passed else "refused though something is there")
    except MerkitError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"{found.label} {found.scores[found.label]:.3f}")


def _check_hearing(backend: EmbeddedBackend) -> Check:
    """Lets the chain listen to a second of noise as if somebody spoke in it."""
    contract = backend.contract
    given = dummy(contract, ["audio"])
    sound, length = given["waveform"], given["waveform_length"]
    speech = {"speech": sound, "speech_length": length, "mixture_length": length}
    given |= {name: value for name, value in speech.items() if name in contract.tensors}
    given["quality"] = strings("")
    try:
        made = backend.compute(given, HEARD)
        heard = Heard.read(made["hearing"][0, 0])
    except MerkitError as error:
        return Check("hearing", False, str(error))
    said = f"of noise it made {len(made['words'][0, 0])} characters, from {heard.source}"
    return Check("hearing", not heard.warnings, "; ".join(heard.warnings) or said)


def _check_answer(found: Prediction, present: list[str]) -> None:
    total = sum(found.scores.values())
    if list(found.modalities) != present:
        wrong, expected = f"modalities {list(found.modalities)}", f"{present}"
    elif abs(total - 1) > TOLERANCE:
        wrong, expected = f"scores that sum to {total:.6f}", "1"
    elif found.scores[found.label] < max(found.scores.values()):
        wrong, expected = f"label {found.label} without the largest score", "the largest score"
    elif abs(sum(found.contributions.values()) - 1) > TOLERANCE:
        wrong, expected = f"contributions {dict(found.contributions)}", "a sum of 1"
    else:
        return
    raise InferenceError(wrong, expected, "export the bundle again")


def dummy(contract: Contract, present: list[str]) -> dict[str, NDArray[Any]]:
    """`DECODED_IN` with noise for the modalities in `present` and nothing for the others."""
    p = contract.preprocessing
    rng = np.random.default_rng(0)
    faces = 4 if "video" in present else 0
    samples = p.sample_rate if "audio" in present else 0
    crops = rng.integers(0, 256, (1, faces, p.face_size, p.face_size, 3), dtype=np.uint8)
    sound = rng.normal(0, 0.1, (1, samples)).astype(np.float32)
    return {
        "face_crops": crops,
        "face_count": np.array([[faces]], np.int64),
        "waveform": sound,
        "waveform_length": np.array([[samples]], np.int64),
        "text": strings(WORDS if "text" in present else ""),
    }


def _of(file: str, step: str) -> bool:
    return Path(file).parts[0] == step


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 10_000 else f"{count} B"


def _short(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _tree(name: str, value: object, indent: int) -> Iterator[str]:
    pad = " " * indent
    if isinstance(value, dict) and value:
        yield f"{pad}{name}"
        for key, inner in value.items():
            yield from _tree(str(key), inner, indent + 2)
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        yield f"{pad}{name}"
        for number, inner in enumerate(value):
            yield from _tree(str(number), inner, indent + 2)
    else:
        flat = ", ".join(map(str, value)) if isinstance(value, list) else _short(value)
        yield f"{pad}{name:<20} {flat}"
