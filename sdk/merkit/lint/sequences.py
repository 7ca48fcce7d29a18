"""Sequence batching: control inputs and strategies, each with rules of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from merkit.lint.config import CORE
from merkit.lint.findings import Finding, Skip, rule
from merkit.lint.options import Options
from merkit.lint.repository import Model, Repository, enum_name

SWITCHES = ("CONTROL_SEQUENCE_START", "CONTROL_SEQUENCE_END", "CONTROL_SEQUENCE_READY")
IDENTITY = "CONTROL_SEQUENCE_CORRID"
IDENTITY_TYPES = ("TYPE_UINT64", "TYPE_INT64", "TYPE_UINT32", "TYPE_INT32", "TYPE_STRING")

CONTROL = rule(
    "sequence-control",
    "error",
    "a sequence control without a name, given twice, or without exactly one pair of values",
    CORE + " GetBooleanSequenceControlProperties, GetTypedSequenceControlProperties",
    "sequence batching",
)
STRATEGY = rule(
    "sequence-strategy",
    "error",
    "a preferred batch above max_batch_size, or a slot utilisation outside 0 to 1",
    CORE + " ValidateModelConfig",
    "sequence batching",
)
CACHE = rule(
    "sequence-cache",
    "error",
    "a response cache on a sequence model, whose answers depend on what came before",
    CORE + " ValidateModelConfig",
    "Response Cache does not currently support",
)


def check(repository: Repository, _options: Options, _skip: Skip) -> Iterator[Finding]:
    """The sequence batcher of every model that has one."""
    for model in repository.readable():
        if model.config.HasField("sequence_batching"):
            yield from _controls(model)
            yield from _strategy(model)
            if model.config.response_cache.enable:
                found = "enabled on a sequence model"
                yield CACHE.at(model.name, "response_cache", found, "disable it")


def _controls(model: Model) -> Iterator[Finding]:
    inputs = model.config.sequence_batching.control_input
    place = "sequence_batching.control_input"
    for name, times in Counter(entry.name for entry in inputs).items():
        if not name or times > 1:
            found = f"{times} are called {name!r}" if name else "one has no name"
            yield CONTROL.at(model.name, place, found, "give each a name of its own")
    kinds = Counter(enum_name(c, "kind") for entry in inputs for c in entry.control)
    for kind in (kind for kind, times in kinds.items() if times > 1):
        yield CONTROL.at(model.name, place, f"{kind} is there {kinds[kind]} times", "keep one")
    for entry in inputs:
        for control in entry.control:
            if wrong := _wrong_values(control):
                yield CONTROL.at(model.name, f"{place} {entry.name}", *wrong)


def _wrong_values(control: Any) -> tuple[str, str] | None:
    kind = enum_name(control, "kind")
    pairs = [control.int32_false_true, control.fp32_false_true, control.bool_false_true]
    given = [pair for pair in pairs if pair]
    if kind in SWITCHES and [len(pair) for pair in given] != [2]:
        found = f"{kind} has {len(given)} kinds of values, of lengths {[len(p) for p in given]}"
        return found, "give one pair, such as int32_false_true: [ 0, 1 ]"
    if kind == IDENTITY and (given or enum_name(control, "data_type") not in IDENTITY_TYPES):
        found = f"{kind} of {enum_name(control, 'data_type')}" + (" with values" if given else "")
        return found, f"give it a data_type of {', '.join(IDENTITY_TYPES)} and no values"
    return None


def _strategy(model: Model) -> Iterator[Finding]:
    batcher, most = model.config.sequence_batching, model.config.max_batch_size
    for size in batcher.oldest.preferred_batch_size:
        if not 0 < size <= most:
            found = f"{size}, and max_batch_size is {most}"
            place = "sequence_batching.oldest.preferred_batch_size"
            yield STRATEGY.at(model.name, place, found, "choose sizes up to max_batch_size")
    if not 0 <= (share := batcher.direct.minimum_slot_utilization) <= 1:
        place = "sequence_batching.direct.minimum_slot_utilization"
        yield STRATEGY.at(model.name, place, f"it is {share:g}", "choose a share from 0 to 1")
