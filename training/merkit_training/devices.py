"""Lets a loss written for the processor train a model that lies on an accelerator.

A loss gathers its samples from numpy, on the processor. Moving each of them by hand, in each
loss and each evaluation, is a line that is forgotten where no accelerator is at hand to complain.
So inside `following(device)` a tensor on the processor that meets one on the device follows it
there, and `Tensor.numpy` brings results back. On the processor alone nothing is intercepted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map


class _Following(TorchFunctionMode):
    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        if func is Tensor.numpy:
            return args[0].detach().cpu().numpy()
        tensors = [leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)]
        kinds = {tensor.device.type for tensor in tensors}
        if {"cpu", self.device.type} <= kinds and not _changes_processors(func, args):
            args, named = tree_map(self._follow, (args, named))
        return func(*args, **named)

    def _follow(self, leaf: Any) -> Any:
        return leaf.to(self.device) if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _changes_processors(func: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether the call changes a tensor on the processor in place: a copy elsewhere would be
    changed instead, and the result be lost. Torch copies, or says that devices differ."""
    name = getattr(func, "__name__", "")
    in_place = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return in_place and args[0].device.type == "cpu"


def following(device: torch.device) -> AbstractContextManager[object]:
    """A context in which tensors on the processor follow those on `device` they meet."""
    return nullcontext() if device.type == "cpu" else _Following(device)
