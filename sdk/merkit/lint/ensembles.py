"""Ensembles: every tensor made once, wanted somewhere, and of one type and shape all the way.

The server checks an ensemble after all its models have loaded and stops at the first fault; what
is merely bad, such as two steps that can start at once, it does not mention at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from merkit.lint.config import CORE
from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, type_name

SCHEDULING = CORE + " ValidateEnsembleSchedulingConfig"
MAPPING = "core/src/ensemble_utils.cc ValidateTensorMapping"

PLATFORM = rule(
    "ensemble-platform",
    "error",
    "ensemble_scheduling without platform ensemble, that platform without it, or with a backend",
    CORE + " ValidateModelConfig",
    "ensemble",
)
FIELDS = rule(
    "ensemble-fields",
    "error",
    "instances, optimisation or warm-up of an ensemble, which runs nothing itself",
    SCHEDULING,
    "specified for ensemble",
)
STEP = rule(
    "ensemble-step",
    "error",
    "an ensemble without steps, or a step without model_name, input_map or output_map",
    CORE + " BuildEnsembleGraph",
    "must specify",
)
MISSING_MODEL = rule(
    "ensemble-missing-model",
    "error",
    "a step whose model, or whose version of it, is not in the repository",
    "core/src/model_repository_manager",
    "ensemble",
)
CIRCULAR = rule(
    "ensemble-circular",
    "error",
    "ensembles that contain one another",
    "core/src/model_repository_manager: circular dependency",
    "circular dependency",
)
UNKNOWN_INPUT = rule(
    "map-unknown-input",
    "error",
    "an input_map for an input that the model does not have",
    MAPPING,
    "is mapping to non-existing input",
)
UNKNOWN_OUTPUT = rule(
    "map-unknown-output",
    "error",
    "an output_map from an output that the model does not have",
    MAPPING,
    "is mapped from non-existing output",
)
MISSING_INPUT = rule(
    "map-missing-input",
    "error",
    "a required input of a step's model that input_map leaves out",
    MAPPING,
    "is not mapped to any ensemble tensor",
)
MADE_TWICE = rule(
    "made-twice",
    "error",
    "a tensor that two steps make",
    CORE + " BuildEnsembleGraph",
    "can appear in an output map only once",
)
MADE_BY_NOBODY = rule(
    "made-by-nobody",
    "error",
    "a tensor that a step reads, or the ensemble gives out, and nothing makes",
    SCHEDULING,
    "ensemble",
)
CYCLE = rule(
    "ensemble-cycle", "error", "steps that wait for one another", SCHEDULING, "not written"
)
UNUSED = rule(
    "ensemble-unused",
    "error",
    "an input of the ensemble, or a step's tensor, that nothing reads",
    SCHEDULING,
    "used",
)
DTYPE = rule(
    "ensemble-dtype",
    "error",
    "a tensor of one type where it is made and of another where it is read",
    "core/src/ensemble_utils.cc ValidateTensorConsistency",
    "inconsistent data type",
)
SHAPE = rule(
    "ensemble-shape",
    "error",
    "a tensor of one shape where it is made and of another where it is read",
    "core/src/ensemble_utils.cc ValidateTensorConsistency",
    "inconsistent shape",
)
BATCH = rule(
    "ensemble-batch",
    "error",
    "an ensemble that takes larger batches than one of its models",
    "core/src/ensemble_utils.cc ValidateEnsembleConfig",
    "allows maximum batch size",
)
OPTIONAL = rule(
    "ensemble-optional",
    "warning",
    "an optional input of the ensemble that a step requires: requests without it fail, as "
    "ensembles cannot skip steps",
    "triton-inference-server/server issue 8288; server 24.10 loads it",
)
TWO_ROOTS = rule(
    "two-roots",
    "warning",
    "two steps that can start at once: when the first fails quickly the server can deadlock and "
    "the ensemble never answers again",
    "server 24.10, seen in a debugger: front end and ensemble wait on each other's locks",
)
DECOUPLED = rule(
    "ensemble-decoupled",
    "warning",
    "a decoupled model makes the whole ensemble decoupled: plain requests are refused, only "
    "streams are answered",
    "Triton user guide, Decoupled Models; core/src/ensemble_utils.cc",
)


@dataclass(frozen=True)
class _Use:
    """How one side of an ensemble sees a tensor."""

    who: str
    dtype: str
    dims: tuple[int, ...]
    batches: bool

    @property
    def full(self) -> tuple[int, ...]:
        return (-1, *self.dims) if self.batches else self.dims

    def agrees(self, other: _Use) -> bool:
        return _compatible(self.dims, other.dims) or _compatible(self.full, other.full)


def check(repository: Repository, _options: Options, _skip: Skip) -> Iterator[Finding]:
    """The data flow of every ensemble."""
    for model in repository.readable():
        yield from _shape_of_config(model)
    for ensemble in repository.ensembles():
        yield from _steps(repository, ensemble)
        yield from _flow(ensemble)
        yield from _uses(repository, ensemble)
        yield from _roots(ensemble)
    yield from _circles(repository)


def _shape_of_config(model: Model) -> Iterator[Finding]:
    config = model.config
    named, joined = config.platform == "ensemble", config.HasField("ensemble_scheduling")
    if joined and not named:
        found = f"platform {config.platform!r} with ensemble_scheduling"
        yield PLATFORM.at(model.name, "platform", found, 'write platform: "ensemble"')
    elif named and not joined:
        found = 'platform "ensemble" without ensemble_scheduling'
        yield PLATFORM.at(model.name, "ensemble_scheduling", found, "write its steps")
    elif named and config.backend:
        found = f"an ensemble with the backend {config.backend!r}"
        yield PLATFORM.at(model.name, "backend", found, "drop the backend")
    if not joined:
        return
    for field, there in (
        ("instance_group", bool(config.instance_group)),
        ("optimization", config.HasField("optimization")),
        ("model_warmup", bool(config.model_warmup)),
    ):
        if there:
            action = "drop it here, and set it at the models that the ensemble joins"
            yield FIELDS.at(model.name, field, "an ensemble has none", action)
    if not config.ensemble_scheduling.step:
        yield STEP.at(model.name, "ensemble_scheduling", "there is no step", "add steps")


def _steps(repository: Repository, ensemble: Model) -> Iterator[Finding]:
    for number, step in enumerate(ensemble.config.ensemble_scheduling.step):
        place = f"step {number} {step.model_name}".strip()
        for field in ("model_name", "input_map", "output_map"):
            if not getattr(step, field):
                yield STEP.at(ensemble.name, place, f"it has no {field}", f"write its {field}")
        model = repository.models.get(step.model_name)
        if step.model_name and model is None:
            found = f"the repository holds no model {step.model_name!r}"
            yield MISSING_MODEL.at(
                ensemble.name, place, found, "add the model, or correct the name"
            )
        if model is None or model.config is None:
            continue
        if step.model_version > 0 and step.model_version not in model.served:
            found = f"version {step.model_version} of {list(model.served)}"
            yield MISSING_MODEL.at(ensemble.name, place, found, "write -1 for the latest")
        if model.complete:
            yield from _maps(ensemble, place, step, model)
        most = ensemble.config.max_batch_size
        if 0 < model.config.max_batch_size < most:
            found = f"the ensemble takes {most} at once, its model {model.config.max_batch_size}"
            yield BATCH.at(ensemble.name, place, found, "lower the ensemble's max_batch_size")
        if model.config.model_transaction_policy.decoupled:
            found = f"{model.name} may answer more than once, and so may the ensemble"
            yield DECOUPLED.at(ensemble.name, place, found, "call it as a stream, or use BLS")


def _maps(ensemble: Model, place: str, step: Any, model: Model) -> Iterator[Finding]:
    inputs = {tensor.name: tensor for tensor in model.config.input}
    outputs = {tensor.name for tensor in model.config.output}
    for name in sorted(set(step.input_map) - set(inputs)):
        action = f"map one of {sorted(inputs)}"
        found = f"{model.name} has no input {name!r}"
        yield UNKNOWN_INPUT.at(ensemble.name, f"{place} input_map", found, action)
    for name in sorted(set(step.output_map) - outputs):
        action = f"map one of {sorted(outputs)}"
        found = f"{model.name} has no output {name!r}"
        yield UNKNOWN_OUTPUT.at(ensemble.name, f"{place} output_map", found, action)
    optional = {t.name for t in ensemble.config.input if t.optional}
    for name, tensor in inputs.items():
        if tensor.optional:
            continue
        if name not in step.input_map:
            found = f"{model.name} needs {name!r}, which is not mapped"
            yield MISSING_INPUT.at(ensemble.name, f"{place} input_map", found, "map it")
        elif step.input_map[name] in optional:
            found = f"{step.input_map[name]!r} may be absent, and {model.name} requires it"
            action = "make it required, or render one ensemble for each set of inputs"
            yield OPTIONAL.at(ensemble.name, f"input {step.input_map[name]}", found, action)


def _flow(ensemble: Model) -> Iterator[Finding]:
    """Who makes each tensor, and who reads it."""
    steps = list(ensemble.config.ensemble_scheduling.step)
    given = {tensor.name for tensor in ensemble.config.input}
    wanted = {tensor.name for tensor in ensemble.config.output}
    makers: dict[str, list[str]] = defaultdict(list)
    readers: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        for tensor in step.output_map.values():
            makers[tensor].append(step.model_name)
        for tensor in step.input_map.values():
            readers[tensor].append(step.model_name)
    for tensor, names in makers.items():
        if len(names) > 1:
            found = f"{' and '.join(names)} both make it"
            yield MADE_TWICE.at(ensemble.name, f"tensor {tensor}", found, "rename one of the two")
    for tensor in sorted(set(readers) | wanted):
        if tensor not in given and tensor not in makers:
            who = readers.get(tensor) or ["the ensemble's output"]
            found = f"{who[0]} needs it, and nothing makes it"
            action = "map a step's output to it, or make it an input of the ensemble"
            yield MADE_BY_NOBODY.at(ensemble.name, f"tensor {tensor}", found, action)
    for tensor in sorted(given - set(readers)):
        found = "no step reads it"
        yield UNUSED.at(ensemble.name, f"input {tensor}", found, "drop it, or map it to a step")
    for tensor in sorted(set(makers) - set(readers) - wanted):
        found = f"{makers[tensor][0]} makes it, and nothing reads it"
        yield UNUSED.at(ensemble.name, f"tensor {tensor}", found, "drop it from the output_map")
    if waiting := _waiting(steps, given | (set(readers) - set(makers))):
        found = f"{', '.join(waiting)} wait for one another"
        yield CYCLE.at(ensemble.name, "ensemble_scheduling", found, "break the circle")


def _waiting(steps: Sequence[Any], ready: set[str]) -> list[str]:
    """Names of the steps that can never run, nobody's tensors taken as there."""
    left = [step for step in steps if step.input_map and step.output_map]
    while runnable := [step for step in left if set(step.input_map.values()) <= ready]:
        for step in runnable:
            ready |= set(step.output_map.values())
        left = [step for step in left if step not in runnable]
    return [step.model_name for step in left]


def _uses(repository: Repository, ensemble: Model) -> Iterator[Finding]:
    """Compares each tensor with how it is first seen, as the server does."""
    first: dict[str, _Use] = {}
    for tensor, use in _all_uses(repository, ensemble):
        before = first.setdefault(tensor, use)
        place = f"tensor {tensor}"
        if before.dtype != use.dtype:
            found = f"{before.dtype} in {before.who}, {use.dtype} in {use.who}"
            yield DTYPE.at(ensemble.name, place, found, "cast it in a step between, or correct one")
        elif not before.agrees(use):
            found = f"{list(before.full)} in {before.who}, {list(use.full)} in {use.who}"
            yield SHAPE.at(ensemble.name, place, found, "let both sides write the same dims")


def _all_uses(repository: Repository, ensemble: Model) -> Iterator[tuple[str, _Use]]:
    for tensor in (*ensemble.config.input, *ensemble.config.output):
        dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
        yield tensor.name, _use(ensemble, tensor, dims)
    for step in ensemble.config.ensemble_scheduling.step:
        model = repository.models.get(step.model_name)
        if model is None or not model.complete:
            continue
        config = model.config
        for mapping, tensors in (
            (step.input_map, config.input),
            (step.output_map, config.output),
        ):
            for tensor in tensors:
                if tensor.name in mapping:
                    yield mapping[tensor.name], _use(model, tensor, tensor.dims)


def _use(model: Model, tensor: Any, dims: Sequence[int]) -> _Use:
    return _Use(model.name, type_name(tensor), tuple(dims), model.batches)


def _compatible(one: Sequence[int], other: Sequence[int]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in pairs)


def _roots(ensemble: Model) -> Iterator[Finding]:
    given = {tensor.name for tensor in ensemble.config.input}
    roots = [
        step.model_name
        for step in ensemble.config.ensemble_scheduling.step
        if step.input_map and set(step.input_map.values()) <= given
    ]
    if len(roots) > 1:
        action = "let all but one wait for a tensor of the first, through an optional input, say"
        found = f"{' and '.join(roots)} start at once"
        yield TWO_ROOTS.at(ensemble.name, "ensemble_scheduling", found, action)


def _circles(repository: Repository) -> Iterator[Finding]:
    parts = {
        ensemble.name: {step.model_name for step in ensemble.config.ensemble_scheduling.step}
        for ensemble in repository.ensembles()
    }
    for name in parts:
        seen: set[str] = set()
        ahead = set(parts[name])
        while ahead:
            part = ahead.pop()
            if part not in seen:
                seen.add(part)
                ahead |= parts.get(part, set())
        if name in seen:
            found = "it contains itself"
            yield CIRCULAR.at(name, "ensemble_scheduling", found, "take that step out")
