"""Broken models, one for each rule that Triton's core and its Python backend judge.

Each case is the config of a good model with one thing broken. Two tests read them: one asks lint
for exactly that finding, the other asks the real server whether it refuses what lint calls an
error, with the words that the rule quotes, and loads what lint calls a mere warning.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from merkit.lint import Options

OPTIONS = Options(server_version=(24, 10), server_args={"disable-auto-complete-config": ""}, gpus=0)
"""The server of the tests: configs as they are written, no GPU."""
MODEL_PY = """import triton_python_backend_utils as pb


class TritonPythonModel:
    def execute(self, requests):
        found = [pb.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb.InferenceResponse([pb.Tensor("OUT", array)]) for array in found]
"""
RELAY = "relay"
CASE = "case"
GOOD = """
name: "case"
backend: "python"
max_batch_size: 4
input { name: "IN" data_type: TYPE_FP32 dims: 3 }
output { name: "OUT" data_type: TYPE_FP32 dims: 3 }
instance_group { kind: KIND_CPU count: 1 }
"""
GOOD_ENSEMBLE = """
name: "case"
platform: "ensemble"
max_batch_size: 4
input { name: "X" data_type: TYPE_FP32 dims: 3 }
output { name: "Y" data_type: TYPE_FP32 dims: 3 }
ensemble_scheduling {
  step { model_name: "relay" model_version: -1
    input_map { key: "IN" value: "X" } output_map { key: "OUT" value: "M" } }
  step { model_name: "relay" model_version: -1
    input_map { key: "IN" value: "M" } output_map { key: "OUT" value: "Y" } }
}
"""
GOOD_FILES = ("1/model.py",)
CONTROL = """sequence_batching { control_input { name: "START" control {
  kind: CONTROL_SEQUENCE_START int32_false_true: [ 0, 1 ] } } }
"""


@dataclass(frozen=True)
class Case:
    """A model with one thing broken.

    Attributes:
        rule: the finding that lint must report, and no other about this model.
        config: its config.pbtxt; None for none.
        files: files of the model's folder; `.py` files are good models, others a few bytes.
        hangs: the server neither loads nor refuses it, it waits for good.
        crashes: the server may end over it.
    """

    name: str
    rule: str
    config: str | None
    files: tuple[str, ...] = GOOD_FILES
    hangs: bool = False
    crashes: bool = False


def write_relay(repository: Path) -> None:
    """The good model that the ensembles call."""
    after = 'input { name: "AFTER" data_type: TYPE_FP32 dims: 3 optional: true }\n'
    _write(repository / RELAY, GOOD.replace('"case"', '"relay"') + after, GOOD_FILES)


def write_case(repository: Path, case: Case, name: str = CASE) -> None:
    """The case's model, under another name where several stand side by side."""
    config = case.config and case.config.replace('"case"', f'"{name}"')
    _write(repository / name, config, case.files)


def _write(folder: Path, config: str | None, files: tuple[str, ...]) -> None:
    folder.mkdir(parents=True)
    if config is not None:
        (folder / "config.pbtxt").write_text(config, "utf-8")
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(MODEL_PY if name.endswith(".py") else "12", "utf-8")


def _swap(text: str, old: str, new: str, count: int = -1) -> str:
    assert old in text, f"{old!r} is not in the good config"
    return text.replace(old, new, count)


def _edit(base: str) -> Callable[..., str]:
    return lambda old, new, count=-1: _swap(base, old, new, count)


one, many = _edit(GOOD), _edit(GOOD_ENSEMBLE)
DIMS = "data_type: TYPE_FP32 dims: 3"
EMPTY = ("1/.gitkeep",)
WARMUP = 'model_warmup { name: "w" batch_size: 1 inputs { key: "IN" value { %s } } }\n'
WARM = "data_type: TYPE_FP32 dims: 3"
ORDER = "dynamic_batching { preserve_ordering: true %s }\n"
SECOND = 'input_map { key: "IN" value: "M" } output_map { key: "OUT" value: "Y" }'

CASES = (
    Case("a folder that is no model", "stray-folder", None, ("notes/readme.txt",)),
    Case("no config", "no-config-strict", None),
    Case("an unknown field", "config-syntax", GOOD + "batch: 3\n"),
    Case("an unknown type", "config-syntax", one("TYPE_FP32", "TYPE_FLOAT", 1)),
    Case("two schedulers", "config-syntax", GOOD + CONTROL + "dynamic_batching { }\n"),
    Case(
        "a newer field",
        "field-newer",
        GOOD + 'model_metrics { metric_control { metric_identifier { family: "f" } } }\n',
    ),
    Case("a parameter twice", "double-key", GOOD + 'parameters { key: "a" }\n' * 2),
    Case("another name", "name-folder", one('"case"', '"other"')),
    Case("no version", "no-version", GOOD, ("model.py",)),
    Case("an ensemble without a version", "no-version", GOOD_ENSEMBLE, ()),
    Case(
        "a version that is not there",
        "version-missing",
        GOOD + "version_policy { specific { versions: [ 1, 3 ] } }\n",
    ),
    Case("a version with a zero", "version-name", GOOD, ("1/model.py", "02/model.py")),
    Case("no model file", "no-model-file", GOOD, EMPTY, hangs=True),
    Case(
        "no label file", "label-file", one("dims: 3 }\ninst", 'dims: 3 label_filename: "l" }\ninst')
    ),
    Case("no backend", "no-backend", one('backend: "python"', 'platform: "keras"')),
    Case("a mistyped backend", "unknown-backend", one('"python"', '"onnx"')),
    Case(
        "a foreign platform",
        "platform-backend",
        one('backend: "python"', 'backend: "pytorch" platform: "tensorrt_plan"'),
        ("1/model.pt",),
    ),
    Case("a negative batch", "max-batch-negative", one("batch_size: 4", "batch_size: -1")),
    Case("no batch size", "max-batch-omitted", one("max_batch_size: 4\n", "")),
    Case("a nameless tensor", "tensor-name", one('name: "IN" ', "")),
    Case("a typeless tensor", "tensor-type", one("data_type: TYPE_FP32 ", "", 1)),
    Case("a tensor without dims", "tensor-dims", one("dims: 3", "", 1)),
    Case("a dimension of zero", "dim-value", one("dims: 3", "dims: 0", 1)),
    Case(
        "an input twice",
        "double-tensor",
        GOOD + 'input { name: "IN" data_type: TYPE_FP32 dims: 3 }\n',
    ),
    Case(
        "no output",
        "no-tensors",
        one('output { name: "OUT" data_type: TYPE_FP32 dims: 3 }\n', ""),
    ),
    Case("another size", "reshape", one("dims: 3", "dims: 3 reshape { shape: [ 2, 2 ] }", 1)),
    Case(
        "an empty reshape",
        "reshape",
        GOOD.replace("size: 4", "size: 0").replace("dims: 3", "dims: 1 reshape { }", 1),
    ),
    Case("a flat image", "image-format", one("dims: 3", "dims: 3 format: FORMAT_NCHW", 1)),
    Case("a shape tensor", "shape-tensor", one("dims: 3", "dims: 3 is_shape_tensor: true", 1)),
    Case("a CPU with GPUs", "instance-gpus", one("count: 1", "count: 1 gpus: 0")),
    Case("no GPU there", "no-gpu", one("KIND_CPU", "KIND_GPU")),
    Case("a profile", "instance-profile", one("count: 1", 'count: 1 profile: "0"')),
    Case("BF16 on the wire", "bf16-wire", one("TYPE_FP32", "TYPE_BF16", 1)),
    Case(
        "a decoupled cache",
        "cache-decoupled",
        GOOD + "response_cache { enable: true } model_transaction_policy { decoupled: true }\n",
    ),
    Case(
        "a larger preferred batch",
        "preferred-batch",
        GOOD + "dynamic_batching { preferred_batch_size: 8 }\n",
    ),
    Case(
        "a batcher that never batches",
        "batcher-idle",
        one("batch_size: 4", "batch_size: 0") + "dynamic_batching { }\n",
    ),
    Case(
        "no default priority",
        "priority-level",
        GOOD + "dynamic_batching { priority_levels: 2 }\n",
    ),
    Case(
        "a policy of no priority",
        "priority-level",
        GOOD
        + "dynamic_batching { priority_levels: 2 default_priority_level: 1 "
        + "priority_queue_policy { key: 3 value { max_queue_size: 1 } } }\n",
    ),
    Case(
        "priorities without levels",
        "priority-idle",
        GOOD + "dynamic_batching { default_priority_level: 1 }\n",
    ),
    Case(
        "ordered priorities",
        "preserve-ordering",
        GOOD + ORDER % "priority_levels: 2 default_priority_level: 1",
    ),
    Case(
        "ordered delays",
        "preserve-ordering",
        GOOD
        + ORDER % "default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 9 }",
    ),
    Case(
        "seconds for microseconds",
        "queue-delay",
        GOOD + "dynamic_batching { max_queue_delay_microseconds: 500000 }\n",
    ),
    Case(
        "an optional input that splits batches",
        "optional-splits",
        one("dims: 3", "dims: 3 optional: true", 1) + "dynamic_batching { }\n",
    ),
    Case(
        "lengths that differ",
        "variable-length",
        one("dims: 3", "dims: -1") + "dynamic_batching { }\n",
    ),
    Case("ragged alone", "ragged-idle", one("dims: 3", "dims: 3 allow_ragged_batch: true", 1)),
    Case(
        "a batch input of nothing",
        "batch-input",
        one('"python"', '"identity"')
        + 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_INT32 }\n',
    ),
    Case(
        "a batch input for Python",
        "batch-input-idle",
        GOOD
        + 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_INT32 '
        + 'source_input: "IN" }\n',
    ),
    Case(
        "a batch output of nothing",
        "batch-output",
        GOOD
        + 'batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "N" '
        + 'source_input: "IN" }\n',
    ),
    Case(
        "a control without values",
        "sequence-control",
        GOOD + CONTROL.replace("int32_false_true: [ 0, 1 ]", ""),
    ),
    Case(
        "a control twice",
        "sequence-control",
        GOOD
        + CONTROL.replace(
            "sequence_batching {",
            "sequence_batching { control_input { "
            'name: "AGAIN" control { kind: CONTROL_SEQUENCE_START fp32_false_true: [ 0, 1 ] } }',
        ),
    ),
    Case(
        "a larger sequence batch",
        "sequence-strategy",
        GOOD
        + "sequence_batching { oldest { max_candidate_sequences: 4 preferred_batch_size: 8 } }\n",
    ),
    Case(
        "a slot of two",
        "sequence-strategy",
        GOOD + "sequence_batching { direct { minimum_slot_utilization: 2 } }\n",
    ),
    Case(
        "a cached sequence", "sequence-cache", GOOD + CONTROL + "response_cache { enable: true }\n"
    ),
    Case("no warm-up file", "warmup-file", GOOD + WARMUP % f'{WARM} input_data_file: "f"'),
    Case(
        "half a warm-up file",
        "warmup-file",
        GOOD + WARMUP % f'{WARM} input_data_file: "f"',
        ("1/model.py", "warmup/f"),
    ),
    Case(
        "a variable warm-up",
        "warmup-dims",
        one("dims: 3", "dims: -1") + WARMUP % "data_type: TYPE_FP32 dims: -1 zero_data: true",
    ),
    Case("a warm-up of nothing", "warmup-data", GOOD + WARMUP % WARM),
    Case(
        "a warm-up of another type",
        "warmup-inputs",
        GOOD + WARMUP % "data_type: TYPE_INT32 dims: 3 zero_data: true",
    ),
    Case(
        "a warm-up of another shape",
        "warmup-inputs",
        GOOD + WARMUP % "data_type: TYPE_FP32 dims: 5 zero_data: true",
    ),
    Case(
        "a warm-up without the input",
        "warmup-inputs",
        GOOD + 'model_warmup { name: "w" batch_size: 1 }\n',
    ),
    Case(
        "a warm-up that is skipped",
        "warmup-idle",
        GOOD + (WARMUP % f"{WARM} zero_data: true").replace("batch_size: 1", ""),
    ),
    Case(
        "a warm-up of too many",
        "warmup-batch",
        GOOD + (WARMUP % f"{WARM} zero_data: true").replace("batch_size: 1", "batch_size: 9"),
        crashes=True,
    ),
    Case(
        "an ensemble without its platform",
        "ensemble-platform",
        many('platform: "ensemble"\n', 'backend: "python"\n'),
    ),
    Case(
        "a platform without its ensemble",
        "ensemble-platform",
        GOOD_ENSEMBLE[: GOOD_ENSEMBLE.index("ensemble_scheduling")],
        EMPTY,
    ),
    Case(
        "an ensemble with a backend",
        "ensemble-platform",
        GOOD_ENSEMBLE + 'backend: "python"\n',
        EMPTY,
    ),
    Case(
        "an ensemble's instances", "ensemble-fields", GOOD_ENSEMBLE + "instance_group { }\n", EMPTY
    ),
    Case(
        "an ensemble's optimisation", "ensemble-fields", GOOD_ENSEMBLE + "optimization { }\n", EMPTY
    ),
    Case("an ensemble's warm-up", "ensemble-fields", GOOD_ENSEMBLE + "model_warmup { }\n", EMPTY),
    Case(
        "no step",
        "ensemble-step",
        GOOD_ENSEMBLE[: GOOD_ENSEMBLE.index("ensemble_scheduling")] + "ensemble_scheduling { }\n",
        EMPTY,
    ),
    Case("a missing model", "ensemble-missing-model", many('"relay"', '"nobody"', 1), EMPTY),
    Case(
        "a missing version", "ensemble-missing-model", many("_version: -1", "_version: 7", 1), EMPTY
    ),
    Case(
        "an ensemble in itself",
        "ensemble-circular",
        many('"relay"', '"case"', 1).replace(
            '"IN" value: "X" } output_map { key: "OUT"', '"X" value: "X" } output_map { key: "Y"'
        ),
        EMPTY,
    ),
    Case(
        "an input that is not there",
        "map-unknown-input",
        many('value: "M" } output', 'value: "M" } input_map { key: "IN2" value: "M" } output'),
        EMPTY,
    ),
    Case(
        "an output that is not there",
        "map-unknown-output",
        many(
            SECOND, SECOND.replace('"Y" }', '"Y" } output_map { key: "OUT2" value: "Z" }')
        ).replace(
            'output { name: "Y"',
            'output { name: "Z" data_type: TYPE_FP32 dims: 3 }\noutput { name: "Y"',
        ),
        EMPTY,
    ),
    Case(
        "a tensor made twice",
        "made-twice",
        many(
            "ensemble_scheduling {",
            """ensemble_scheduling {
  step { model_name: "relay" model_version: -1
    input_map { key: "IN" value: "M" } output_map { key: "OUT" value: "Y" } }""",
        ),
        EMPTY,
    ),
    Case(
        "a tensor made by nobody",
        "made-by-nobody",
        many(SECOND, SECOND.replace('"M"', '"Q"')).replace(
            'output { name: "Y"',
            'output { name: "M" data_type: TYPE_FP32 dims: 3 }\noutput { name: "Y"',
        ),
        EMPTY,
    ),
    Case(
        "an unused tensor",
        "ensemble-unused",
        many(SECOND, SECOND.replace('"Y"', '"Z"')).replace('name: "Y"', 'name: "M"'),
        EMPTY,
    ),
    Case(
        "an unused input",
        "ensemble-unused",
        many("output {", 'input { name: "U" data_type: TYPE_FP32 dims: 3 }\noutput {'),
        EMPTY,
    ),
    Case(
        "another type",
        "ensemble-dtype",
        many(f'"Y" {DIMS}', '"Y" data_type: TYPE_INT64 dims: 3'),
        EMPTY,
    ),
    Case(
        "another shape",
        "ensemble-shape",
        many(f'"Y" {DIMS}', '"Y" data_type: TYPE_FP32 dims: 4'),
        EMPTY,
    ),
    Case("a larger batch", "ensemble-batch", many("batch_size: 4", "batch_size: 8"), EMPTY),
    Case(
        "an optional input that is required",
        "ensemble-optional",
        many(f'"X" {DIMS}', f'"X" {DIMS} optional: true'),
        EMPTY,
    ),
    Case(
        "two roots",
        "two-roots",
        many(SECOND, SECOND.replace('"M"', '"X"')).replace(
            'output { name: "Y"',
            'output { name: "M" data_type: TYPE_FP32 dims: 3 }\noutput { name: "Y"',
        ),
        EMPTY,
    ),
    Case(
        "steps that wait for one another",
        "ensemble-cycle",
        many('value: "X" }', 'value: "X" } input_map { key: "AFTER" value: "Y" }'),
        EMPTY,
    ),
    Case(
        "no environment",
        "execution-env",
        GOOD + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "/none.tar.gz" } }\n',
    ),
)

IMAGE = GOOD.replace("dims: 3", "dims: [ -1, -1, 3 ]")
STREAM = GOOD.replace("size: 4", "size: 0").replace(
    "output {", 'input { name: "STREAM" data_type: TYPE_BOOL dims: 1 optional: true }\noutput {'
)
SOUND = (
    Case("a good model", "", GOOD),
    Case("images of any size", "", IMAGE),
    Case(
        "a stream with optional inputs",
        "",
        STREAM + "model_transaction_policy { decoupled: true }\n",
    ),
    Case(
        "labels and a reshape",
        "",
        one("dims: 3 }\ninst", 'dims: 3 reshape { shape: [ 3, 1 ] } label_filename: "l" }\ninst'),
        ("1/model.py", "l"),
    ),
    Case("a sequence", "", GOOD + CONTROL),
    Case(
        "priorities and time-outs",
        "",
        GOOD
        + "dynamic_batching { preferred_batch_size: [ 2, 4 ] max_queue_delay_microseconds: 1000 "
        + "priority_levels: 2 default_priority_level: 2 default_queue_policy { max_queue_size: 9 "
        + "timeout_action: DELAY default_timeout_microseconds: 9000 } "
        + "priority_queue_policy { key: 1 value { max_queue_size: 5 } } }\n",
    ),
    Case("a warm-up", "", GOOD + WARMUP % f"{WARM} random_data: true"),
    Case(
        "all of its versions",
        "",
        GOOD + "version_policy { all { } }\n",
        ("1/model.py", "3/model.py", "notes/readme.txt"),
    ),
    Case("an ensemble", "", GOOD_ENSEMBLE, EMPTY),
    Case(
        "a batch for an ensemble without one",
        "",
        GOOD_ENSEMBLE.replace("size: 4", "size: 0").replace("dims: 3", "dims: [ -1, 3 ]"),
        EMPTY,
    ),
    Case("a reshape to nothing", "", one("dims: 3 }\ninst", "dims: 1 reshape { } }\ninst")),
)
"""Models with which nothing is wrong, however odd they look."""
