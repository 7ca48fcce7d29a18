"""Which steps Triton may batch across requests, and what their configs must say for it.

Triton joins requests only where every input agrees in shape, and takes a wrong word about the
batch axis without complaint until the first request. So both follow here from the contract: a
step can share a run when, but for the batch axis, its tensors are of fixed size or ragged
(`merkit.ragged`); the deployment says whether and how far.

Other steps in Triton's Python backend *collect*: they take all that waits in one call, compute
clip by clip, and answer all at once. That saves them nothing. But steps that answered one by one
would hand clips to the encoders one by one, which then never find two to share a run.

Ensembles do not batch; Triton lets them call models that do, whose tensors then show the batch
axis that these leave out of their `dims`. No preferred sizes are set: the batcher then takes
what waits, up to the maximum, which Triton's own guide advises unless one size is much faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from merkit.contract import Contract, Preprocessing, StepSpec, TensorSpec
from merkit.errors import InvalidInputError
from merkit.ragged import span_name, widths_name
from merkit.serving.deployment import MOST, QueuePolicy, StepDeployment

WIRE_TYPES = {
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float32": "TYPE_FP32",
    "bool": "TYPE_BOOL",
    "string": "TYPE_STRING",
}
PICTURES = "frames"
"""The tensor beside which all others are small."""
CALL_BYTES = 64 << 20
"""Of pictures that a collecting step takes at once: they all lie in shared memory meanwhile."""
USUAL_CLIP_BYTES = 8 << 20


def can_batch(contract: Contract, step: StepSpec) -> bool:
    """Whether requests to `step` can share one run of its graph."""
    ragged = {r.values for r in step.ragged}
    sizes = [
        size
        for name in (*step.inputs, *step.outputs)
        if name not in ragged
        for size in contract.tensors[name].shape[1:]
    ]
    return step.kind == "onnx" and not any(isinstance(size, str) for size in sizes)


def collects(contract: Contract, step: StepSpec, backend: str) -> bool:
    """Whether the step answers many requests in one call, though each is computed alone."""
    return backend == "python" and not can_batch(contract, step)


def collecting(
    contract: Contract, step: StepSpec, choice: StepDeployment, own: StepDeployment
) -> StepDeployment:
    """The choice for a step that collects: what waits goes along, and nothing waits for company.

    Args:
        contract: the pipeline.
        step: one of its steps.
        choice: this host's choices for the step, with every field filled in.
        own: those that the host made for this very step, which hold as they are.
    """
    most, delay = own.max_batch_size, own.queue_delay_us
    if most is None:
        fit = _clips_at_once(contract, step)
        most = min(choice.max_batch_size or 0, fit) if fit > 1 else 0
    return replace(choice, max_batch_size=most, queue_delay_us=delay or 0)


def _clips_at_once(contract: Contract, step: StepSpec) -> int:
    """How many clips of the largest pictures `CALL_BYTES` hold; any number where there are none."""
    names = (*step.inputs, *step.outputs)
    if PICTURES not in names:
        return MOST
    held = _picture_bytes(contract.preprocessing) + USUAL_CLIP_BYTES * ("clip" in names)
    return CALL_BYTES // held


def _picture_bytes(p: Preprocessing) -> int:
    return 3 * p.frames_per_clip * p.max_frame_side**2


def max_batch_size(contract: Contract, step: StepSpec, choice: StepDeployment, native: bool) -> int:
    """The config's `max_batch_size`; 0 where the step's tensors carry the batch axis themselves.

    A graph that takes ragged inputs is fed by Triton's own backends only through its batcher, so
    there a step whose batching is switched off still has 1, and takes requests of one clip.
    """
    if native and not can_batch(contract, step):
        return 0
    least = 1 if native and step.ragged else 0
    return max(least, choice.max_batch_size or 0)


def permitted(
    manifest: Mapping[str, Any], step: StepSpec, choice: StepDeployment
) -> StepDeployment:
    """The choice as far as the bundle allows it: a step in a precision that scales activations
    over the whole batch (the manifest's `precision` says so) runs one clip at a time."""
    table = manifest.get("precision")
    stated = table.get(step.name) if isinstance(table, Mapping) else None
    if isinstance(stated, Mapping) and stated.get("batches") is False:
        return replace(choice, max_batch_size=0)
    return choice


def batch_fields(
    contract: Contract, step: StepSpec, choice: StepDeployment, backend: str
) -> dict[str, Any]:
    """The config's fields that have to do with batches, as plain values of `ModelConfig`.

    Args:
        contract: the pipeline.
        step: one of its steps.
        choice: this host's choices for the step, with every field filled in.
        backend: Triton's backend for the step; all but `python` are fed by Triton itself.

    Returns:
        `max_batch_size` (always), `input`, `output`, and, where they apply, `dynamic_batching`
        and `batch_input`.

    Raises:
        InvalidInputError: a queue's timeout that is no longer than the delay.
    """
    native = backend != "python"
    most = max_batch_size(contract, step, choice, native)
    if not most:
        return {
            "max_batch_size": 0,
            "input": wire(contract.tensors, step.inputs),
            "output": wire(contract.tensors, step.outputs),
        }
    fields: dict[str, Any] = {
        "max_batch_size": most,
        "input": wire(contract.tensors, step.inputs, batched=True),
        "output": wire(contract.tensors, step.outputs, batched=True),
    }
    for tensor in fields["input"]:
        if -1 in tensor["dims"]:
            tensor["allow_ragged_batch"] = True
    if native and step.ragged:
        fields["batch_input"] = [
            {
                "kind": kind,
                "target_name": [name(r)],
                "data_type": "TYPE_INT32",
                "source_input": [r.values],
            }
            for r in step.ragged
            for kind, name in (
                ("BATCH_ITEM_SHAPE", widths_name),
                ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", span_name),
            )
        ]
    if choice.max_batch_size:
        fields["dynamic_batching"] = _dynamic(step.name, choice)
    return fields


def wire(
    tensors: Mapping[str, TensorSpec], names: Iterable[str], batched: bool = False
) -> list[dict[str, Any]]:
    """Inputs or outputs of a config; of a `batched` model without the batch axis.

    Triton has no tensor of no dimension: what is [batch] gets one of size 1 on the wire.
    """
    found = []
    for name in names:
        shape = tensors[name].shape[1:] if batched else tensors[name].shape
        dims = [-1 if isinstance(size, str) else size for size in shape]
        tensor = {"name": name, "data_type": WIRE_TYPES[tensors[name].dtype], "dims": dims or [1]}
        found.append(tensor if dims else {**tensor, "reshape": {}})
    return found


def _dynamic(step: str, choice: StepDeployment) -> dict[str, Any]:
    delay = choice.queue_delay_us or 0
    fields: dict[str, Any] = {"max_queue_delay_microseconds": delay}
    queue = choice.queue or QueuePolicy()
    if 0 < 1000 * queue.timeout_ms <= delay:
        raise InvalidInputError(
            f"requests to {step!r} wait {delay} us for company and {queue.timeout_ms:g} ms at most",
            "a timeout longer than the delay: a clip alone would always be refused",
            "raise queue.timeout_ms, or lower queue_delay_us",
        )
    policy: dict[str, Any] = {}
    if queue.max_size:
        policy["max_queue_size"] = queue.max_size
    if queue.timeout_ms:
        policy["default_timeout_microseconds"] = round(1000 * queue.timeout_ms)
        policy["timeout_action"] = queue.on_timeout.upper()
    if policy:
        fields["default_queue_policy"] = policy
    if queue.priorities:
        fields["priority_levels"] = queue.priorities
        fields["default_priority_level"] = queue.default_priority or queue.priorities
    return fields
