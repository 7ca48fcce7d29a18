"""The text of a config.pbtxt, and the names that models have in a repository.

Triton's own schema writes it, so a field that does not exist cannot be rendered. Names are a
matter of their own since two bundles may share a repository: then each model is called after what
it holds, and what both hold alike lies there once (design 2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from merkit.backends.entries import DIGITS, suffix_of
from merkit.bundle import Bundle
from merkit.contract import Contract, StepSpec, canonical
from merkit.errors import MissingExtraError

CONSTANTS = "absent"
"""The model that makes the constants of cuts, see `merkit.serving.constants`."""
HEAD = "# Rendered by merkit: a change here is lost at the next rendering.\n"


@dataclass(frozen=True)
class Names:
    """What the models of one bundle are called."""

    models: Mapping[str, str]
    """Of each step, and of `CONSTANTS`."""
    suffix: str = ""
    """Of each entry point."""

    def entry(self, name: str) -> str:
        """The name of an ensemble, or of another model that stands for a whole bundle."""
        return name + self.suffix


def plain_names(contract: Contract) -> Names:
    """Steps and entry points under their own names: one bundle to a repository."""
    return Names({name: name for name in (*(s.name for s in contract.steps), CONSTANTS)})


def versioned_names(bundle: Bundle) -> Names:
    """`face_encoder-1a2b3c4d`, `merkit-<bundle8>`: several bundles to a repository.

    A graph is named after its step digest alone, so that bundles of different contracts share it,
    too; a step in Python after its resources and all that it reads in the contract.
    """
    models = {
        s.name: f"{s.name}-{step_identity(bundle, s)[:DIGITS]}" for s in bundle.contract.steps
    }
    tensors = {name: asdict(spec) for name, spec in bundle.contract.tensors.items()}
    models[CONSTANTS] = f"{CONSTANTS}-{_digest(tensors)[:DIGITS]}"
    return Names(models, suffix_of(bundle.bundle_id))


def step_identity(bundle: Bundle, step: StepSpec) -> str:
    """Hexadecimal; equal where two bundles' steps do the same."""
    stated = str(bundle.manifest["step_digests"].get(step.name, ""))
    if step.kind == "onnx" and stated:
        return stated
    contract = bundle.contract
    wire = {name: asdict(contract.tensors[name]) for name in (*step.inputs, *step.outputs)}
    constants = [asdict(contract.preprocessing)]
    if contract.hearing is not None:
        constants.append(asdict(contract.hearing))
    return _digest([stated, asdict(step), wire, *constants])


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def config_text(config: Mapping[str, Any], parameters: Mapping[str, str]) -> str:
    """The config as protobuf text.

    `max_batch_size` is always spelt out: protobuf leaves zeros out, and Triton takes absence for
    leave to guess.

    Raises:
        MissingExtraError: tritonclient, which holds the schema, is not installed.
    """
    try:
        from google.protobuf import json_format, text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError:
        raise MissingExtraError.of("tritonclient", "triton") from None

    fields = dict(config)
    size = fields.pop("max_batch_size", 0)
    fields["parameters"] = {key: {"string_value": value} for key, value in parameters.items()}
    message = json_format.ParseDict(fields, model_config_pb2.ModelConfig())
    return f"{HEAD}max_batch_size: {size}\n{text_format.MessageToString(message)}"
