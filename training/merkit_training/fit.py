"""The one training loop, so that every stage resumes, shuffles and reports in the same way.

A run takes most of an hour on two cores and is often interrupted. Were each stage to keep its own
loop, each would lose its own share of that hour. `fit` continues from its last checkpoint to the
same weights as an undisturbed run: order, learning rate and random numbers are functions of
(seed, step) alone.

Under a launcher (`merkit-train run --processes`, torchrun, `accelerate launch`) each process takes
its interleaved share of each batch; what DDP, FSDP and DeepSpeed need is in `distributed`.
"""

from __future__ import annotations

import math
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from merkit.errors import BundleCorruptError, InvalidInputError, MerkitError
from merkit_training import processes
from merkit_training.distributed import Trainer
from merkit_training.journal import Journal
from merkit_training.settings import Amount, Count, Natural, Share

Loss = Callable[[nn.Module, NDArray[np.int64]], Tensor]
Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to learn."""

    epochs: Count  # passes over the samples
    batch_size: Count  # samples a backward pass, over all processes
    lr: Amount  # peak learning rate, reached after the warm-up
    weight_decay: Amount = 0.05  # on matrices only, not on biases, gains and norms
    warmup: Share = 0.05  # share of all steps in which the rate rises linearly
    clip: Amount = 1.0  # largest norm of the gradient; 0 switches clipping off
    seed: Natural = 0  # of the order of samples and of all random numbers in a step
    label_smoothing: Share = 0.0  # for the loss to read: `fit` itself ignores it
    optimizer: Literal["adamw", "sgd"] = "adamw"
    momentum: Share = 0.9  # of sgd
    betas: tuple[Share, Share] = (0.9, 0.98)  # of adamw
    bf16: bool = False  # run the loss under bfloat16 autocast
    checkpoint_seconds: Amount = 45.0  # a killed run loses no more than this
    accumulate: Count = 1  # backward passes to each step of the optimizer


SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints of models that take long to save


def fit(
    model: nn.Module,
    loss: Loss,
    count: int,
    config: FitConfig,
    folder: Path,
    *,
    name: str,
    evaluate: Evaluate | None = None,
) -> dict[str, float]:
    """Trains `model` in place; leaves the best weights in it (the last without `evaluate`).

    Before each backward pass torch's global generator is seeded from (seed, step): take
    augmentation and dropout from it, or from `step_rng()`, and a resumed run equals an
    undisturbed one.

    Args:
        model: what to train; parameters with `requires_grad=False` stay as they are.
        loss: `loss(model, indices)` gathers the samples `indices` (int64), which are this
            process's share of the batch, and returns a scalar, the mean over them. It may build
            tensors on the processor: they follow the model to its device (`devices`).
        count: number of samples.
        config: the schedule.
        folder: RUN/<stage>. The checkpoint `{name}.checkpoint` goes there and stays after the
            end, so that a stage of several fits resumes at the right one; `clear_checkpoints`
            removes it. Curves go to RUN/logs/<stage>/{name}, costs to `fits.json`.
        name: tells several fits of one stage apart.
        evaluate: called in eval mode, without gradients, after each epoch; the *first* value of
            its result chooses the best epoch (larger is better). Every process calls it with all
            of the model; the main process's scores count.

    Returns:
        `evaluate`'s scores of the best epoch, with `loss` (mean of the last epoch), `epoch` (the
        best, from 1) and `seconds` (of training, interruptions not counted).

    Raises:
        InvalidInputError: too few samples, or a checkpoint of another configuration.
        MerkitError: the loss is not finite.
    """
    if count < 1:
        raise InvalidInputError(f"{name} has {count} samples", "at least one")
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(model, config, count, folder / f"{name}.checkpoint")
    if state.step < state.total:
        _train(state, loss, evaluate)
    state.trainer.release(state.best_weights())
    model.eval()
    return state.trainer.shared({**state.best_scores, "seconds": round(state.seconds, 1)})


def step_rng() -> np.random.Generator:
    """A numpy generator for the backward pass under way; call it once in each."""
    return np.random.default_rng(torch.initial_seed())


def clear_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of finished fits, once the stage's own weights are written."""
    processes.join()
    if processes.is_main():
        for path in folder.glob("*.checkpoint*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def learning_rate(config: FitConfig, step: int, total: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    warm = max(1, round(config.warmup * total))
    if step < warm:
        return config.lr * (step + 1) / warm
    progress = (step - warm) / max(1, total - warm)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


class _State:
    """Everything a checkpoint holds."""

    def __init__(self, model: nn.Module, config: FitConfig, count: int, path: Path) -> None:
        self.model, self.config, self.count, self.path = model, config, count, path
        self.step_size = min(count, config.batch_size * config.accumulate)  # samples of a step
        if self.step_size // config.accumulate < processes.count():
            raise InvalidInputError(
                f"{path.stem} has {self.step_size} samples for a step of {config.accumulate} "
                f"backward passes in {processes.count()} processes",
                "at least one for each process and pass",
                "train in fewer processes, or lower accumulate in the recipe",
            )
        self.per_epoch = max(1, count // self.step_size)
        self.total = self.per_epoch * config.epochs
        self.trainer = Trainer(
            model,
            _optimizer(model, config),
            accumulate=config.accumulate,
            clip=config.clip,
            samples=config.batch_size,
        )
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}
        self.best_scores: dict[str, float] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        self._load()
        processes.join()  # nobody may save, or clear, before all have read
        self._started = self._saved = time.monotonic()
        self._interval = config.checkpoint_seconds
        self.journal = Journal(path.parent, path.stem, self.step, self.total)

    def passes(self) -> list[tuple[NDArray[np.int64], float]]:
        """For each backward pass of the step under way this process's sample numbers and the
        weight of their mean loss; each epoch has its own seeded order."""
        epoch, i = divmod(self.step, self.per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.config.seed, epoch])
            self._order = (epoch, rng.permutation(self.count).astype(np.int64))
        batch = self._order[1][i * self.step_size : (i + 1) * self.step_size]
        parts = np.array_split(batch, self.config.accumulate)
        shares = [part[processes.rank() :: processes.count()] for part in parts]
        equal = len(batch) / (len(parts) * processes.count())
        return [(share, len(share) / equal) for share in shares]

    def after_step(self, loss: float) -> None:
        self.step += 1
        self.loss_sum += loss
        ended = self.step % self.per_epoch == 0  # end_epoch saves
        due = not ended and time.monotonic() - self._saved > self._interval
        if self.trainer.shared(due) if self.trainer.sharded else due and processes.is_main():
            self.save()

    def end_epoch(self, evaluate: Evaluate | None) -> None:
        self.scores = {} if evaluate is None else self.trainer.evaluate(evaluate)
        self.journal.evaluation(self.step, self.scores)
        scores = {**self.scores, "loss": self.loss_sum / self.per_epoch}
        chosen_by = next(iter(self.scores), None)
        if chosen_by is None or not self.best_scores:
            better = True
        else:
            better = scores[chosen_by] > self.best_scores[chosen_by]
        if better:
            self.best_scores = {**scores, "epoch": float(self.step // self.per_epoch)}
            if chosen_by is not None:
                self._keep_best()
        self.best_scores["loss"], self.scores, self.loss_sum = scores["loss"], scores, 0.0
        if self.trainer.sharded or processes.is_main():
            self.save()

    def best_weights(self) -> dict[str, Tensor] | None:
        """The weights of the best epoch; None if nothing was evaluated, or nothing since."""
        if self.trainer.sharded and self._best_path.exists():
            best: dict[str, Tensor] = torch.load(self._best_path, weights_only=True, mmap=True)
            return best
        return self.best

    def save(self) -> None:
        """Writes the checkpoint. One process does; of a sharded model all take part."""
        self.journal.flush()
        begun = time.monotonic()
        self.seconds += begun - self._started
        self._started = begun
        sharded, going_on = self.trainer.sharded, self.step < self.total
        content = {
            "fingerprint": self._fingerprint(),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "model": None if sharded else self.model.state_dict(),
            "optimizer": self.trainer.optimizer.state_dict() if going_on and not sharded else None,
            "best": self.best,
            "best_scores": self.best_scores,
        }
        if sharded:
            self.trainer.save(self._shards(self.step))
            processes.join()
        if processes.is_main():
            _write(self.path, content)
            for path in self.path.parent.glob(f"{self.path.name}-*"):  # shards of earlier steps
                if path != self._shards(self.step):
                    shutil.rmtree(path)
        self._saved = time.monotonic()
        if self.config.checkpoint_seconds > 0:
            self._interval = max(self._interval, (self._saved - begun) / SAVING_SHARE)

    @property
    def _best_path(self) -> Path:
        return self.path.with_suffix(".checkpoint_best")

    def _shards(self, step: int) -> Path:
        return self.path.with_name(f"{self.path.name}-{step}")

    def _keep_best(self) -> None:
        weights = self.trainer.weights()
        if not self.trainer.sharded:
            # on the processor: an accelerator is seldom large enough for the model twice
            self.best = {k: v.detach().to("cpu", copy=True) for k, v in weights.items()}
        elif processes.is_main():  # once, in a file: every process will need it, at the end
            _write(self._best_path, weights)

    def _load(self) -> None:
        if not self.path.exists():
            return
        try:
            content: dict[str, Any] = torch.load(self.path, "cpu", weights_only=True)
            fingerprint = content["fingerprint"]
        except Exception as error:  # torch raises many types for a damaged file
            raise BundleCorruptError(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__})",
                "what this stage wrote",
                "remove it to start the stage afresh",
            ) from None
        defaults = {f.name: f.default for f in fields(FitConfig) if f.default is not MISSING}
        del defaults["checkpoint_seconds"]
        fingerprint["config"] = defaults | fingerprint["config"]  # it may be older than a field
        sharded = content["model"] is None
        if fingerprint != self._fingerprint() or sharded != self.trainer.sharded:
            raise InvalidInputError(
                f"the checkpoint {self.path} is of another configuration",
                "the schedule, sizes, number of samples and kind of launch of this run",
                "remove it to start the stage afresh, or choose another run folder",
            )
        self.step, self.loss_sum = content["step"], content["loss_sum"]
        if sharded:
            self.trainer.load(self._shards(self.step))
        else:
            self.model.load_state_dict(content["model"])
        if content["optimizer"] is not None:
            self.trainer.optimizer.load_state_dict(content["optimizer"])
        self.seconds = content["seconds"]
        self.best, self.best_scores = content["best"], content["best_scores"]

    def _fingerprint(self) -> dict[str, Any]:
        shapes = {name: list(p.shape) for name, p in self.model.named_parameters()}
        schedule = asdict(self.config)
        del schedule["checkpoint_seconds"]
        return {"config": schedule, "count": self.count, "shapes": shapes}


def _train(state: _State, loss: Loss, evaluate: Evaluate | None) -> None:
    """All steps that are left, and an evaluation after each epoch."""
    with tqdm(
        total=state.total,
        initial=state.step,
        desc=state.path.stem,
        unit="step",
        mininterval=1,
        disable=not processes.is_main(),
    ) as bar:
        while state.step < state.total:
            started, rate = time.monotonic(), learning_rate(state.config, state.step, state.total)
            mean = _one_step(state, loss, rate)
            seconds = time.monotonic() - started
            curves = {"loss": mean, "lr": rate}
            state.journal.step(state.step, state.step_size, seconds, curves)
            state.after_step(mean)
            bar.update()
            if state.step % state.per_epoch == 0:
                state.end_epoch(evaluate)
                bar.set_postfix({k: f"{v:.3f}" for k, v in state.scores.items()})
    state.journal.close(state.path.parent, state.path.stem)


def _one_step(state: _State, loss: Loss, rate: float) -> float:
    """One step of the optimizer; returns the mean loss over its samples."""
    config, losses = state.config, []
    for group in state.trainer.optimizer.param_groups:
        group["lr"] = rate
    for number, (indices, weight) in enumerate(state.passes()):
        torch.manual_seed(_seed(config.seed, state.step, number))

        def weighted(
            model: nn.Module,
            indices: NDArray[np.int64] = indices,
            weight: float = weight,
        ) -> Tensor:
            value = loss(model, indices)
            losses.append(float(value.detach()) * weight)
            if not math.isfinite(losses[-1]):
                raise MerkitError(
                    f"the loss became {losses[-1]} at step {state.step} of {state.path.stem}",
                    "a finite loss",
                    "lower lr or raise warmup in the recipe",
                )
            return value if weight == 1 else value * weight

        state.trainer.micro_step(weighted, bf16=config.bf16)
    return state.trainer.mean(sum(losses) / len(losses))


def _seed(seed: int, step: int, number: int) -> int:
    """Of a backward pass: its own for each step, pass and process."""
    first = 1_000_003 * seed + step
    at = (number, processes.rank())
    return first if at == (0, 0) else zlib.crc32(f"{first}/{at}".encode())


def _write(path: Path, content: object) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(content, temporary)
    temporary.replace(path)


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
