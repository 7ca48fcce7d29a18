"""Which of a server's entry points a request is for, and what they are called there.

A server runs every step of the entry point it is asked for. So a decoded clip is looked at before
it is sent, and what is absent from it picks an entry point in which the absent modality's encoder
does not occur. What is sent is less, and the answer is the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from merkit.backends.base import Tensors, check_tensors
from merkit.contract import Contract
from merkit.errors import BundleCorruptError, ContractMismatchError, InvalidInputError
from merkit.pipeline import (
    DECODED_IN,
    DETAIL,
    HEARD,
    MODALITY_IN,
    OUTCOME,
    entry_points,
    prune,
    subset_name,
)
from merkit.presence import absent, held

DIGITS = 8
"""Of a bundle's id in the names of its models, where several bundles share a server."""


def choose(contract: Contract, tensors: Tensors) -> tuple[str, Tensors]:
    """The entry point for `tensors`, and those of them that it takes.

    A batch of decoded clips is sent to the entry point for what any of them holds. Where none
    holds anything, all is sent: whether there is something to judge, the pipeline decides.

    Raises:
        InvalidInputError: tensors that no entry point takes, or that the contract forbids.
    """
    points = entry_points(contract)
    check_tensors(contract, tensors)
    if present := _present(contract, tensors):
        entry = points[subset_name(present)]
        return entry.name, {name: tensors[name] for name in entry.inputs}
    for entry in points.values():
        if set(tensors) == set(entry.inputs):
            return entry.name, tensors
    raise InvalidInputError(
        f"the tensors {sorted(tensors)}",
        "; or ".join(", ".join(entry.inputs) for entry in points.values()),
        "give one of these sets",
    )


def wanted(contract: Contract, tensors: Tensors) -> tuple[str, ...]:
    """What is to be computed of `tensors`: as much as their entry point on a server gives."""
    detail = DETAIL if "clip" in tensors else ()
    hears = contract.hearing is not None and "text" in tensors
    if hears and (present := _present(contract, tensors)):
        hears = "text" in present
    return (*OUTCOME, *detail, *(HEARD if hears else ()))


def _present(contract: Contract, tensors: Tensors) -> tuple[str, ...]:
    """The modalities of decoded clips, whose words may not be wanted; none of other tensors."""
    names = set(tensors)
    if names not in (set(DECODED_IN), set(DECODED_IN) - {"text"}):
        return ()
    found = held(tensors, contract.preprocessing, contract.hearing is not None)
    return found or tuple(m for m in MODALITY_IN if names.issuperset(MODALITY_IN[m]))


def complete(contract: Contract, tensors: Tensors) -> Tensors:
    """`tensors` and the constants that their entry point folds in, for who walks the DAG itself."""
    for entry in entry_points(contract).values():
        if entry.absent and set(tensors) == set(entry.inputs):
            batch = len(tensors[entry.inputs[0]])
            names = prune(contract, entry).constants
            return {**{name: absent(contract, name, batch) for name in names}, **tensors}
    return tensors


@dataclass(frozen=True)
class ModelNames:
    """What a server calls the models of one bundle."""

    suffix: str = ""
    """Of entry points."""
    steps: Mapping[str, str] = field(default_factory=dict)
    """Names of steps by what the server calls them; where it has none, they are their own."""

    def entry(self, name: str) -> str:
        """The name of an entry point."""
        return name + self.suffix

    def step(self, model: str) -> str:
        """The step that a model is."""
        return self.steps.get(model, model)


def names_of(parameters: Mapping[str, str], suffix: str) -> ModelNames:
    """The names that an entry point's config parameters state."""
    stated = json.loads(parameters.get("models", "{}"))
    return ModelNames(suffix, {model: step for step, model in stated.items()})


def suffix_of(bundle: str) -> str:
    """What the names of that bundle's entry points end in, given the first digits of its id.

    Raises:
        InvalidInputError: fewer digits than names have, or something else.
    """
    digits = isinstance(bundle, str) and set(bundle) <= set("0123456789abcdef")
    if not digits or not DIGITS <= len(bundle) <= 32:
        raise InvalidInputError(
            f"the bundle {bundle!r}",
            f"the first {DIGITS} or more digits of a bundle_id",
            "merkit inspect BUNDLE shows it",
        )
    return f"-{bundle[:DIGITS]}"


def served_contract(parameters: Mapping[str, str], url: str, expected: str | None) -> Contract:
    """The contract inside the config parameters of an entry point at `url`.

    Raises:
        ContractMismatchError: there is none, it cannot be read, or it is not the one expected.
    """
    if "contract" not in parameters:
        raise ContractMismatchError(
            f"the model 'merkit' at {url} carries no contract in its config's parameters",
            "a server of a merkit bundle whose model-config can be read",
            "render the repository with merkit-export render, or ask the server's operator",
        )
    try:
        contract = Contract.from_json(json.loads(parameters["contract"]), url)
    except (ValueError, BundleCorruptError) as error:
        raise ContractMismatchError(
            f"the contract that {url} carries cannot be read ({error})",
            "one of this version of merkit",
            "use the same version of merkit on both sides",
        ) from None
    if expected is not None and contract.contract_id != expected:
        raise ContractMismatchError(
            f"{url} serves the contract {contract.contract_id}",
            expected,
            "connect to a server of the expected bundle, or reconnect to accept this one",
        )
    return contract
