"""Entry points as Triton ensembles: one rendering for every cut through the pipeline.

An ensemble cannot skip a step, default an input or start in two places safely, so what a clip
lacks must be folded in as constants and the order of the first steps be fixed. Both are done
here, for the cuts of `merkit.pipeline.prune`, whatever they are.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from itertools import combinations
from typing import Any

from merkit.bundle import Bundle
from merkit.contract import Contract, DType, StepSpec, TensorSpec, canonical
from merkit.errors import InvalidInputError
from merkit.pipeline import Cut, EntryPoint, entry_points, prune, views
from merkit.serving.batching import wire
from merkit.serving.config import CONSTANTS, Names, config_text
from merkit.serving.constants import BATCH
from merkit.serving.deployment import Deployment

AFTER = "after"
"""An optional input of Python steps that orders them and carries nothing else.

Triton (24.10, seen in the debugger) deadlocks when two steps of an ensemble can start at once and
the first fails before the second is scheduled: the front end holds its request's lock and waits
for the ensemble's, the failing step the other way round, and the model never answers again. Bad
clips fail fast, so each ensemble starts with one step, and the others wait for it.
"""


def column(kind: DType = "int64") -> TensorSpec:
    """A small tensor by which one step can wait for another, or count the clips of a batch."""
    return TensorSpec(kind, ("batch", 1))


def rendered_entries(contract: Contract, deployment: Deployment) -> dict[str, EntryPoint]:
    """The entry points that a host offers, by name.

    Raises:
        InvalidInputError: one on request that has a name or tensors that it cannot have.
    """
    found = entry_points(contract) | (views(contract) if deployment.views else {})
    taken = {*found, CONSTANTS, *(step.name for step in contract.steps)}
    for name, custom in deployment.ensembles.items():
        if name in taken or not name.replace("_", "").isalnum():
            raise InvalidInputError(
                f"an ensemble on request is called {name!r}",
                "letters, digits and underscores, and no name that another model has",
                "call it otherwise",
            )
        if unknown := {*custom.inputs, *custom.outputs} - set(contract.tensors):
            raise InvalidInputError(
                f"the ensemble {name!r} names the tensors {sorted(unknown)}",
                f"some of {sorted(contract.tensors)}",
                "merkit inspect BUNDLE shows them",
            )
        found[name] = EntryPoint(name, custom.inputs, custom.outputs)
    return found


def parallel_steps(contract: Contract, deployment: Deployment) -> set[str]:
    """Steps that some entry point may run beside others: neither waits for the other."""
    found: set[str] = set()
    for entry in rendered_entries(contract, deployment).values():
        before: dict[str, set[str]] = {}
        makers: dict[str, str] = {}
        for step in prune(contract, entry).steps:
            direct = {makers[name] for name in step.inputs if name in makers}
            before[step.name] = direct.union(*(before[name] for name in direct))
            makers |= dict.fromkeys(step.outputs, step.name)
        for one, other in combinations(before, 2):
            if one not in before[other] and other not in before[one]:
                found |= {one, other}
    return found


def ensemble_config(bundle: Bundle, entry: EntryPoint, names: Names) -> str:
    """The config.pbtxt of an entry point: the steps of its cut, joined by tensor names."""
    contract = bundle.contract
    found = prune(contract, entry)
    config = {
        "name": names.entry(entry.name),
        "platform": "ensemble",
        "ensemble_scheduling": {"step": _scheduling(contract, entry, found, names)},
        "input": wire(contract.tensors, entry.inputs),
        "output": wire(contract.tensors, entry.outputs),
    }
    return config_text(config, bundle_parameters(bundle, names))


def bundle_parameters(bundle: Bundle, names: Names) -> dict[str, str]:
    """What a client learns from an entry point's config."""
    return {
        "contract_id": bundle.contract.contract_id,
        "bundle_id": bundle.bundle_id,
        "name": str(bundle.manifest.get("name", bundle.root.name)),
        "notice": str(bundle.manifest.get("notice", "")),
        "contract": canonical(bundle.contract.to_json()).decode("ascii"),
        **({"confident_from": least} if (least := bundle.confident_from) else {}),
        **({"models": json.dumps(dict(names.models), sort_keys=True)} if names.suffix else {}),
    }


def _scheduling(
    contract: Contract, entry: EntryPoint, found: Cut, names: Names
) -> list[dict[str, Any]]:
    """The steps of the cut, before them what makes its constants, and exactly one to start."""
    supplied = {*entry.inputs, *found.constants}
    used = {tensor for step in found.steps for tensor in step.inputs} | set(entry.outputs)
    steps = [_map(step, used - supplied, names) for step in found.steps]
    if found.constants:
        counted = _batch_column(contract, entry, found.steps)
        made = [counted in step["output_map"] for step in steps]
        place = made.index(True) + 1 if any(made) else 0
        steps.insert(place, _constants(contract, counted, found.constants, names))
    roots = [step for step in steps if set(step["input_map"].values()) <= set(entry.inputs)]
    python = {names.models[step.name] for step in contract.steps if step.kind == "python"}
    for other in roots[1:]:
        column = _column(contract, roots[0])
        if column is None or other["model_name"] not in python:
            raise InvalidInputError(
                f"the ensemble {entry.name!r} starts with {roots[0]['model_name']!r} and "
                f"{other['model_name']!r} at once, which can deadlock Triton",
                "one step that all others wait for",
                "begin at a tensor before both, or make two ensembles of it",
            )
        other["input_map"][AFTER] = column
    return steps


def _map(step: StepSpec, used: Collection[str], names: Names) -> dict[str, Any]:
    return {
        "model_name": names.models[step.name],
        "model_version": -1,
        "input_map": {tensor: tensor for tensor in step.inputs},
        "output_map": {tensor: tensor for tensor in step.outputs if tensor in used},
    }


def _constants(
    contract: Contract, counted: str, constants: Collection[str], names: Names
) -> dict[str, Any]:
    return {
        "model_name": names.models[CONSTANTS],
        "model_version": -1,
        "input_map": {BATCH[contract.tensors[counted].dtype]: counted},
        "output_map": {tensor: tensor for tensor in constants},
    }


def _batch_column(contract: Contract, entry: EntryPoint, steps: Collection[StepSpec]) -> str:
    """Where the constants' step learns how many clips there are: of a first step in Python, which
    then need not wait for it, or of what comes in."""
    first = [step for step in steps if set(step.inputs) <= set(entry.inputs)]
    made = [name for step in first if step.kind == "python" for name in step.outputs]
    for kind in BATCH:
        for name in (*made, *entry.inputs):
            if contract.tensors[name] == column(kind):
                return name
    raise InvalidInputError(
        f"the ensemble {entry.name!r} has constants but nothing to count clips by",
        "an input of shape [batch, 1]",
        "let a length come in, too",
    )


def _column(contract: Contract, scheduled: Mapping[str, Any]) -> str | None:
    """A column that a scheduled step makes and others read."""
    columns = (t for t in scheduled["output_map"] if contract.tensors[t] == column())
    return next(columns, None)
