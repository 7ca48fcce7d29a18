"""Batching: where servers lose most of their speed without a word.

The dynamic batcher loads with almost any setting and then may never form a batch: variable
lengths, absent optional inputs or a forgotten max_batch_size keep each request alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from merkit.lint.config import CORE, GUIDE
from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, type_name

RAGGED = "Triton user guide, Ragged Batching"
BATCHER = GUIDE + ", Dynamic Batcher"
QUEUE_DELAY_US = 100_000
ORDERS = "after"
"""The optional input by which merkit's ensembles order their first steps. Requests of an entry
point that needs it do not mix with those of others, which is the lesser evil (`two-roots`)."""
FLATTENING = ("onnxruntime", "tensorrt", "tensorflow")
"""Backends that lay ragged inputs end to end and make batch inputs."""

PREFERRED = rule(
    "preferred-batch",
    "error",
    "a preferred batch size below 1 or above max_batch_size",
    CORE + " ValidateModelConfig",
    "dynamic batching preferred size must be",
)
NEVER = rule(
    "batcher-idle",
    "warning",
    "a dynamic batcher with max_batch_size 0: it never forms a batch",
    "core/src/backend_model.cc SetConfiguredScheduler; server 24.10 loads it",
)
PRIORITY = rule(
    "priority-level",
    "error",
    "a default or a queue policy of a priority level that does not exist",
    CORE + " ValidateModelConfig",
    "priority level",
)
PRIORITY_IDLE = rule(
    "priority-idle",
    "warning",
    "priorities without priority_levels: they are ignored",
    BATCHER + ", Priority Levels; server 24.10 loads it",
)
ORDER = rule(
    "preserve-ordering",
    "error",
    "preserve_ordering together with several priorities or with delayed time-outs",
    CORE + " ValidateModelConfig",
    "'preserve_ordering' is true",
)
DELAY = rule(
    "queue-delay",
    "warning",
    f"a queue delay above {QUEUE_DELAY_US // 1000} ms, which a request without company waits out",
    BATCHER + ", Delayed Batching: the unit is microseconds",
)
OPTIONAL = rule(
    "optional-batched",
    "error",
    "an optional input of an ONNX Runtime model that batches",
    "onnxruntime_backend/src/onnxruntime.cc ValidateInputs",
)
OPTIONAL_TENSORRT = rule(
    "optional-tensorrt",
    "error",
    "an optional input of a TensorRT model",
    "backend/src/backend_model.cc: only backends that ask for it may have optional inputs",
)
OPTIONAL_SPLITS = rule(
    "optional-splits",
    "warning",
    "an optional input with dynamic batching: requests with and without it never share a batch",
    "core/src/dynamic_batch_scheduler.cc; triton-inference-server/server issue 8288",
)
UNPADDED = rule(
    "variable-length",
    "warning",
    "an input of variable length with dynamic batching: only requests of one length share a batch",
    RAGGED + "; triton-inference-server/server issue 8156",
)
RAGGED_IDLE = rule(
    "ragged-idle",
    "warning",
    "allow_ragged_batch on a model that never batches, and no batch_input that counts it",
    RAGGED,
)
RAGGED_RANK = rule(
    "ragged-rank",
    "error",
    "a ragged input of more than one dimension: it would be laid end to end",
    RAGGED + ": backends require models to accept ragged inputs as 1-dimensional tensors",
)
RAGGED_BLIND = rule(
    "ragged-no-counts",
    "warning",
    "a ragged input of which no batch_input tells where each request begins",
    RAGGED + ", Batch Input",
)
BATCH_INPUT = rule(
    "batch-input",
    "error",
    "a batch_input of an unknown source, of several sources, or not TYPE_INT32 or TYPE_FP32",
    CORE + " ValidateBatchIO",
    "",
)
BATCH_INPUT_IDLE = rule(
    "batch-input-idle",
    "warning",
    "a batch_input of a backend that does not make them, such as python",
    "backend/src/backend_input_collector.cc is used by the C++ backends alone",
)
BATCH_OUTPUT = rule(
    "batch-output",
    "error",
    "a batch_output of an unknown source or target",
    CORE + " ValidateBatchIO",
    "unknown target output name",
)


def check(repository: Repository, _options: Options, _skip: Skip) -> Iterator[Finding]:
    """Batch sizes, queues, optional and ragged inputs of every model."""
    for model in repository.readable():
        if model.is_ensemble:
            continue
        if model.config.HasField("dynamic_batching"):
            yield from _sizes(model)
            yield from _queue(model)
        yield from _optional(model)
        yield from _ragged(model)
        yield from _batch_io(model)


def _sizes(model: Model) -> Iterator[Finding]:
    batcher, most = model.config.dynamic_batching, model.config.max_batch_size
    if most == 0 and not batcher.preferred_batch_size:
        action = "set max_batch_size and take the batch dimension out of dims, or drop the batcher"
        yield NEVER.at(model.name, "dynamic_batching", "max_batch_size is 0", action)
    for size in batcher.preferred_batch_size:
        if not 0 < size <= most:
            found = f"{size}, and max_batch_size is {most}"
            action = f"choose sizes from 1 to {most}" if most else "set max_batch_size"
            yield PREFERRED.at(model.name, "dynamic_batching.preferred_batch_size", found, action)
    if (delay := batcher.max_queue_delay_microseconds) > QUEUE_DELAY_US:
        place = "dynamic_batching.max_queue_delay_microseconds"
        yield DELAY.at(model.name, place, f"{delay} us are {delay / 1e6:g} s", "try 1000 to 5000")


def _queue(model: Model) -> Iterator[Finding]:
    batcher = model.config.dynamic_batching
    levels, default = batcher.priority_levels, batcher.default_priority_level
    place = "dynamic_batching.priority_levels"
    if levels == 0:
        if default or batcher.priority_queue_policy:
            yield PRIORITY_IDLE.at(model.name, place, "it is 0 or absent", "set how many there are")
    elif not 1 <= default <= levels:
        found = f"default_priority_level is {default} of {levels} levels"
        yield PRIORITY.at(model.name, place, found, f"choose a default from 1 to {levels}")
    for level in batcher.priority_queue_policy if levels else ():
        if not 1 <= level <= levels:
            found = f"a queue policy for level {level} of {levels} levels"
            yield PRIORITY.at(model.name, place, found, "drop it, or add levels")
    if not batcher.preserve_ordering:
        return
    place = "dynamic_batching.preserve_ordering"
    if levels > 1:
        yield ORDER.at(model.name, place, f"with {levels} priorities", "choose one of the two")
    policies = [batcher.default_queue_policy, *batcher.priority_queue_policy.values()]
    if any(p.timeout_action and p.default_timeout_microseconds for p in policies):
        found = "with timed-out requests put behind the others (DELAY)"
        yield ORDER.at(model.name, place, found, "let time-outs REJECT")


def _optional(model: Model) -> Iterator[Finding]:
    for tensor in model.config.input:
        if not tensor.optional or (tensor.name == ORDERS and model.parameter("step")):
            continue
        place = f"input {tensor.name}"
        if model.backend == "tensorrt":
            action = "make one model for each set of inputs, or send zeros and a mask"
            yield OPTIONAL_TENSORRT.at(model.name, place, "it is optional", action)
        elif model.backend == "onnxruntime" and model.batches:
            found = f"it is optional, and max_batch_size is {model.config.max_batch_size}"
            action = "send zeros and a mask, or set max_batch_size to 0"
            yield OPTIONAL.at(model.name, place, found, action)
        elif model.config.HasField("dynamic_batching") and model.batches:
            action = "make one model for each set of inputs, or send zeros and a mask"
            yield OPTIONAL_SPLITS.at(model.name, place, "it is optional", action)


def _ragged(model: Model) -> Iterator[Finding]:
    dynamic = model.config.HasField("dynamic_batching")
    counted = {source for entry in model.config.batch_input for source in entry.source_input}
    for tensor in model.config.input:
        place = f"input {tensor.name}"
        if not tensor.allow_ragged_batch:
            if dynamic and model.batches and -1 in tensor.dims:
                found = f"dims {list(tensor.dims)}, and requests are not padded to one length"
                action = "set allow_ragged_batch and un-rag in the model, or let clients pad"
                yield UNPADDED.at(model.name, place, found, action)
            continue
        if not (dynamic and model.batches) and tensor.name not in counted:
            found = "without max_batch_size and dynamic_batching nothing is ever batched"
            yield RAGGED_IDLE.at(model.name, place, found, "set both, or drop it")
        if model.backend in FLATTENING:
            if len(tensor.dims) > 1:
                found = f"dims {list(tensor.dims)}"
                yield RAGGED_RANK.at(
                    model.name, place, found, "flatten it, and say its sizes apart"
                )
            if tensor.name not in counted:
                action = "add a batch_input of kind BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO"
                yield RAGGED_BLIND.at(model.name, place, "no batch_input counts it", action)


def _batch_io(model: Model) -> Iterator[Finding]:
    config = model.config
    inputs = {tensor.name for tensor in config.input}
    outputs = {tensor.name for tensor in config.output}
    for entry in config.batch_input:
        place = f"batch_input {', '.join(entry.target_name)}"
        if len(entry.source_input) != 1:
            found = f"{len(entry.source_input)} source inputs"
            yield BATCH_INPUT.at(model.name, place, found, "name one source_input")
        for name in set(entry.source_input) - inputs:
            found = f"its source {name!r} is no input"
            yield BATCH_INPUT.at(model.name, place, found, f"name one of {sorted(inputs)}")
        if (dtype := type_name(entry)) not in ("INT32", "FP32"):
            found, action = f"it is TYPE_{dtype}", "write TYPE_INT32, and cast inside the model"
            yield BATCH_INPUT.at(model.name, place, found, action)
        if model.backend == "python":
            action = "drop it: Python models see each request and count for themselves"
            yield BATCH_INPUT_IDLE.at(model.name, place, "the backend is python", action)
    for entry in config.batch_output:
        place = f"batch_output {', '.join(entry.target_name)}"
        unknown = sorted(set(entry.source_input) - inputs)
        missing = sorted(set(entry.target_name) - outputs)
        if len(entry.source_input) != 1 or unknown or missing:
            found = f"source {list(entry.source_input)}, target {list(entry.target_name)}"
            action = "name one input and outputs that are there"
            yield BATCH_OUTPUT.at(model.name, place, found, action)
