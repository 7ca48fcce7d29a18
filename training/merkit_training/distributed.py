"""One model in the hands of Accelerate: one process or many, whole or in shards.

DDP, FSDP and DeepSpeed act in a module's `forward`, while our losses call parts of a model as
they need. So the model is wrapped in a module whose forward runs *a function of the model*: the
loss of a step, or an evaluation. What a launcher chose (`accelerate launch --config_file`) needs
no line in any stage.

One process without a launcher computes bit for bit what a plain loop would.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, broadcast_object_list
from torch import Tensor, nn
from torch.distributed._composable_state import _module_state_mapping
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from merkit.errors import BundleCorruptError
from merkit_training import processes
from merkit_training.devices import following

T = TypeVar("T")


class Callee(nn.Module):
    """A model whose forward is any function of it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._no_split_modules = _blocks(model)  # what FSDP gathers one after the other

    def forward(self, function: Callable[[nn.Module], T]) -> T:
        return function(self.model)


class Trainer:
    """A model and its optimizer, prepared for however many processes there are.

    Args:
        model: trained in place.
        optimizer: over its parameters.
        accumulate: backward passes to each step of the optimizer.
        clip: largest norm of the gradient; 0 switches clipping off.
        samples: of one backward pass, over all processes; for DeepSpeed's books.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate: int,
        clip: float,
        samples: int,
    ) -> None:
        processes.join()
        self.model, self.clip = model, clip
        self.home = next(model.parameters()).device
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            gradient_accumulation_steps=accumulate,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        kind = self.accelerator.distributed_type
        self.sharded = kind in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        self._deepspeed = kind == DistributedType.DEEPSPEED
        if self._deepspeed:
            settings = self.accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = max(1, samples // processes.count())
            settings["gradient_accumulation_steps"] = accumulate
            settings["gradient_clipping"] = clip
        self._plain = PlainModule(model) if self.sharded else None
        optimizer.zero_grad(set_to_none=True)
        self.callee, self.optimizer = self.accelerator.prepare(Callee(model), optimizer)

    @property
    def device(self) -> torch.device:
        """Where the model is while it trains."""
        device: torch.device = self.accelerator.device
        return device

    def micro_step(self, loss: Callable[[nn.Module], Tensor], *, bf16: bool) -> None:
        """One backward pass; the last of `accumulate` steps the optimizer.

        Args:
            loss: of the model, a scalar.
            bf16: whether to run the loss under bfloat16 autocast.
        """
        self.callee.train()
        with self.accelerator.accumulate(self.callee):
            with self._context(bf16):
                value: Tensor = self.callee(loss)
            self.accelerator.backward(value)
            if self.accelerator.sync_gradients and self.clip > 0:
                self.accelerator.clip_grad_norm_(self.callee.parameters(), self.clip)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, function: Callable[[nn.Module], dict[str, float]]) -> dict[str, float]:
        """The main process's result of `function`, which all run: a sharded model needs all."""
        self.callee.eval()
        with self._context(False):
            scores: dict[str, float] = self.callee(function)
        return self.shared(scores)

    def shared(self, value: T) -> T:
        """The main process's value, in every process."""
        if processes.count() == 1:
            return value
        box: list[T] = [value]
        broadcast_object_list(box)
        return box[0]

    def mean(self, value: float) -> float:
        """The mean of a number over the processes."""
        if processes.count() == 1:
            return value
        return float(self.accelerator.reduce(torch.tensor(value, device=self.device), "mean"))

    def weights(self) -> dict[str, Tensor]:
        """The whole model's state dict; of a sharded model gathered, on the processor."""
        state: dict[str, Tensor] = self.model.state_dict()
        return {name: _whole(value) for name, value in state.items()} if self.sharded else state

    def save(self, folder: Path) -> None:
        """Writes this process's shards of the model and the optimizer; all must take part.

        Accelerate's own checkpoint of FSDP cannot be read again once a parameter has never had a
        gradient, as a head that a loss leaves out. And this one holds tensors, nothing pickled.
        """
        if self._deepspeed:
            self.accelerator.save_state(str(folder))
            return
        folder.mkdir(exist_ok=True)
        content = (self.model.state_dict(), self.optimizer.state_dict())
        torch.save(tree_map(_shard, content), folder / f"{processes.rank()}.pt")

    def load(self, folder: Path) -> None:
        """Reads what `save` wrote, with as many processes as then.

        Raises:
            BundleCorruptError: a file is damaged, or there are those of another number.
        """
        if self._deepspeed:
            self.accelerator.load_state(str(folder))
            return
        try:
            if len(list(folder.glob("*.pt"))) != processes.count():
                raise ValueError("another number of processes wrote it")
            path = folder / f"{processes.rank()}.pt"
            weights, optimizer = torch.load(path, "cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a damaged file
            raise BundleCorruptError(
                f"the shards in {folder} cannot be read ({error})",
                f"those of {processes.count()} processes",
                "launch as many as before, or remove the checkpoint to start the stage afresh",
            ) from None
        with torch.no_grad():
            for name, value in self.model.state_dict().items():
                _shard(value).copy_(weights[name])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        optimizer["state"] = {
            number: {key: _like(value, parameters[number]) for key, value in state.items()}
            for number, state in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)

    def release(self, weights: dict[str, Tensor] | None) -> None:
        """Makes the model a plain one again, where it was before, with these weights if given."""
        if self._plain is not None:
            self._plain.restore(self.weights() if weights is None else weights)
        elif weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(self.home)
        self.accelerator.free_memory()

    def _context(self, bf16: bool) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, enabled=bf16))
        stack.enter_context(following(self.device))
        return stack


class PlainModule:
    """What a module was before FSDP took it apart, so that it can be put together again.

    FSDP has no way back: it exchanges classes, parameters and hooks of the modules it shards.
    A stage goes on with its model after `fit`, and a later `fit` may shard it anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._kinds = {name: type(module) for name, module in model.named_modules()}
        self._hooks = {
            name: {key: dict(hooks) for key, hooks in vars(module).items() if "hooks" in key}
            for name, module in model.named_modules()
        }
        self._keys = {name: set(vars(module)) for name, module in model.named_modules()}
        self._parameters = {
            name: (id(value), value.requires_grad)
            for name, value in model.named_parameters(remove_duplicate=False)
        }

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Puts the module together with `weights`, a whole state dict; tied weights stay tied."""
        made: dict[int, nn.Parameter] = {}
        for name, module in self.model.named_modules():
            module.__class__ = self._kinds[name]
            _module_state_mapping.pop(module, None)
            for key in set(vars(module)) - self._keys[name]:
                del vars(module)[key]
            for key, hooks in self._hooks[name].items():
                vars(module)[key].clear()
                vars(module)[key].update(hooks)
            for key, value in module._parameters.items():
                if value is not None:
                    whole = f"{name}.{key}" if name else key
                    identity, trained = self._parameters[whole]
                    if identity not in made:
                        made[identity] = nn.Parameter(_whole(weights[whole]), trained)
                    module._parameters[key] = made[identity]
        self.model.load_state_dict(weights)  # the buffers, too


def _whole(value: Tensor) -> Tensor:
    """A tensor on the processor in float32 where it has shards or fewer bits."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return (value.float() if value.is_floating_point() else value).detach().cpu()


def _shard(value: Any) -> Any:
    """This process's part of a tensor; anything else as it is."""
    return value.to_local() if isinstance(value, DTensor) else value


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """A shard of the optimizer's as part of a tensor that lies as the parameter does."""
    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    mesh, at = parameter.device_mesh, parameter.placements
    value = value.to(parameter.device)
    return DTensor.from_local(
        value, mesh, at, shape=parameter.shape, stride=parameter.stride(), run_check=False
    )


def _blocks(model: nn.Module) -> list[str]:
    """Names of the classes that lists of modules hold: the layers of every architecture."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return sorted({type(block).__name__ for blocks in lists for block in blocks})
