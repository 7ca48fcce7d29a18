"""LoRA: small trainable factors beside frozen matrices, merged away before anything is saved.

The seed compares full fine-tuning with LoRA. peft has the factors, but wraps a model so that its
weights change names, and a run saved that way would load nowhere else. Here factors are injected
into a module in place, and merged back into plain weights under their former names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from merkit.errors import InvalidInputError


@dataclass(frozen=True)
class LoraSettings:
    """Sizes of the factors, and where they stand."""

    rank: int = 16
    alpha: float = 32.0  # the product of the factors counts alpha / rank times
    dropout: float = 0.05  # of what enters the factors
    targets: tuple[str, ...] = ()  # last parts of the names of linear layers; none: all of them


def add_lora(module: nn.Module, settings: LoraSettings) -> None:
    """Adds factors to `module` in place; all else in it is frozen.

    The factors' product starts at zero, so that the module computes what it did before.

    Raises:
        InvalidInputError: no linear layer is called as `settings.targets` say.
    """
    from peft import LoraConfig, inject_adapter_in_model

    linear = [name for name, part in module.named_modules() if _is_linear(part)]
    wanted = settings.targets or tuple(linear)
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            known = sorted({name.rpartition(".")[2] for name in linear})
            raise InvalidInputError(
                f"no linear layer is called {target!r}", f"among {', '.join(known)}", "correct it"
            )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(wanted),
    )
    inject_adapter_in_model(config, module)


def merge_lora(module: nn.Module) -> None:
    """Adds each product to its matrix and takes the factors out, in place.

    Names and shapes are then those from before `add_lora`, and every parameter can train again.
    """
    from peft.tuners.lora import LoraLayer

    for name, part in list(module.named_modules()):
        if isinstance(part, LoraLayer):
            part.merge(safe_merge=True)
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, part.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config
    module.requires_grad_(True)


def _is_linear(part: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(part, nn.Linear | Conv1D)
