"""The one training loop, so that every stage resumes, shuffles and reports in the same way.

A run takes most of an hour on two cores and is often interrupted. Were each stage to keep its own
loop, each would lose its own share of that hour. `fit` continues from its last checkpoint to the
same weights as an undisturbed run: order, learning rate and random numbers are functions of
(seed, step) alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from merkit.errors import BundleCorruptError, InvalidInputError, MerkitError
from merkit_training.settings import Amount, Count, Natural, Share

Loss = Callable[[nn.Module, NDArray[np.int64]], Tensor]
Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class FitConfig:
    """How long and how fast to learn."""

    epochs: Count  # passes over the samples
    batch_size: Count  # samples a step
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

    Before each step torch's global generator is seeded from (seed, step): take augmentation and
    dropout from it, or from `step_rng()`, and a resumed run equals an undisturbed one.

    Args:
        model: what to train; parameters with `requires_grad=False` stay as they are.
        loss: `loss(model, indices)` gathers the samples `indices` (int64) and returns a scalar.
        count: number of samples.
        config: the schedule.
        folder: where the checkpoint `{name}.checkpoint` goes. It stays after the end, so that a
            stage of several fits resumes at the right one; `clear_checkpoints` removes it.
        name: tells several fits of one stage apart.
        evaluate: called in eval mode, without gradients, after each epoch; the *first* value of
            its result chooses the best epoch (larger is better).

    Returns:
        `evaluate`'s scores of the best epoch, with `loss` (mean of the last epoch), `epoch` (the
        best, from 1) and `seconds` (of training, interruptions not counted).

    Raises:
        InvalidInputError: no samples, or a checkpoint of another configuration.
        MerkitError: the loss is not finite.
    """
    if count < 1:
        raise InvalidInputError(f"{name} has {count} samples", "at least one")
    folder.mkdir(parents=True, exist_ok=True)
    state = _State(model, config, count, folder / f"{name}.checkpoint")
    with tqdm(total=state.total, initial=state.step, desc=name, unit="step", mininterval=1) as bar:
        while state.step < state.total:
            _one_step(state, loss)
            bar.update()
            if state.step % state.per_epoch == 0:
                state.end_epoch(evaluate)
                bar.set_postfix({k: f"{v:.3f}" for k, v in state.scores.items()})
    if state.best is not None:
        model.load_state_dict(state.best)
    model.eval()
    return {**state.best_scores, "seconds": round(state.seconds, 1)}


def step_rng() -> np.random.Generator:
    """A numpy generator for the step under way; call it once a step."""
    return np.random.default_rng(torch.initial_seed())


def clear_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of finished fits, once the stage's own weights are written."""
    for path in folder.glob("*.checkpoint"):
        path.unlink()


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
        self.per_epoch = max(1, count // config.batch_size)
        self.total = self.per_epoch * config.epochs
        self.optimizer = _optimizer(model, config)
        self.step, self.loss_sum, self.seconds = 0, 0.0, 0.0
        self.best: dict[str, Tensor] | None = None
        self.scores: dict[str, float] = {}
        self.best_scores: dict[str, float] = {}
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))
        self._load()
        self._started = self._saved = time.monotonic()

    def batch(self) -> NDArray[np.int64]:
        """Sample numbers of the step under way; each epoch has its own seeded order."""
        epoch, i = divmod(self.step, self.per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.config.seed, epoch])
            self._order = (epoch, rng.permutation(self.count).astype(np.int64))
        return self._order[1][i * self.config.batch_size : (i + 1) * self.config.batch_size]

    def after_step(self, loss: float) -> None:
        self.step += 1
        self.loss_sum += loss
        ended = self.step % self.per_epoch == 0  # end_epoch saves
        if not ended and time.monotonic() - self._saved > self.config.checkpoint_seconds:
            self.save()

    def end_epoch(self, evaluate: Evaluate | None) -> None:
        self.scores = {}
        if evaluate is not None:
            self.model.eval()
            with torch.no_grad():
                self.scores = evaluate(self.model)
        scores = {**self.scores, "loss": self.loss_sum / self.per_epoch}
        chosen_by = next(iter(self.scores), None)
        if chosen_by is None:
            better = True
        else:
            better = self.best is None or scores[chosen_by] > self.best_scores[chosen_by]
        if better:
            self.best_scores = {**scores, "epoch": float(self.step // self.per_epoch)}
            if chosen_by is not None:
                self.best = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.best_scores["loss"], self.scores, self.loss_sum = scores["loss"], scores, 0.0
        self.save()

    def save(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._started
        self._started = self._saved = now
        content = {
            "fingerprint": self._fingerprint(),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict() if self.step < self.total else None,
            "best": self.best,
            "best_scores": self.best_scores,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(content, temporary)
        temporary.replace(self.path)

    def _load(self) -> None:
        if not self.path.exists():
            return
        try:
            content: dict[str, Any] = torch.load(self.path, weights_only=True)
            fingerprint = content["fingerprint"]
        except Exception as error:  # torch raises many types for a damaged file
            raise BundleCorruptError(
                f"the checkpoint {self.path} cannot be read ({type(error).__name__})",
                "what this stage wrote",
                "remove it to start the stage afresh",
            ) from None
        if fingerprint != self._fingerprint():
            raise InvalidInputError(
                f"the checkpoint {self.path} is of another configuration",
                "the schedule, sizes and number of samples of this run",
                "remove it to start the stage afresh, or choose another run folder",
            )
        self.model.load_state_dict(content["model"])
        if content["optimizer"] is not None:
            self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.loss_sum = content["step"], content["loss_sum"]
        self.seconds = content["seconds"]
        self.best, self.best_scores = content["best"], content["best_scores"]

    def _fingerprint(self) -> dict[str, Any]:
        shapes = {name: list(p.shape) for name, p in self.model.named_parameters()}
        schedule = asdict(self.config)
        del schedule["checkpoint_seconds"]
        return {"config": schedule, "count": self.count, "shapes": shapes}


def _one_step(state: _State, loss: Loss) -> None:
    config = state.config
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config, state.step, state.total)
    torch.manual_seed(1_000_003 * config.seed + state.step)
    state.model.train()
    state.optimizer.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=config.bf16):
        value = loss(state.model, state.batch())
    number = float(value.detach())
    if not math.isfinite(number):
        raise MerkitError(
            f"the loss became {number} at step {state.step} of {state.path.stem}",
            "a finite loss",
            "lower lr or raise warmup in the recipe",
        )
    value.backward()  # type: ignore[no-untyped-call]
    if config.clip > 0:
        nn.utils.clip_grad_norm_(state.model.parameters(), config.clip)
    state.optimizer.step()
    state.after_step(number)


def _optimizer(model: nn.Module, config: FitConfig) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
