"""The run folder: what each stage leaves behind, and how a later one finds it again.

Stages run for minutes and are killed in between. So every file appears whole or not at all, a
stage's `card.json` is its last file and means "done", and `run.json` tells which recipe, data and
package versions made it, so that two recipes never mix in one folder unnoticed.

    RUN/recipe.json  RUN/run.json  RUN/<stage>/{config.json, model.safetensors, card.json}
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from merkit.bundle import sha256_file
from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training import processes
from merkit_training.costs import device_name, read_costs
from merkit_training.recipe import Recipe, table_class
from merkit_training.settings import from_table
from merkit_training.stages import CHAIN, STAGES, builds_on, tables_read

CARD, CONFIG, MODEL = "card.json", "config.json", "model.safetensors"
ROUND_FROM = 1024  # elements; smaller tensors (biases, scales, statistics) stay float32
PACKAGES = (
    "merkit",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "numpy",
    "opencv-python-headless",
    "tokenizers",
)
"""Packages whose version can change what a run computes."""


def stage_seed(recipe: Recipe, stage: str) -> int:
    """The stage's own seed, 32 bits, so that stages draw independently of each other."""
    return zlib.crc32(f"{recipe.run.seed}/{stage}".encode())


def write_json(path: Path, value: object) -> None:
    """Writes plain values as JSON, through a temporary name."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, whoever else writes it, on this machine or another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(content)  # so that anyone may read it, unlike safetensors' save_file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote.

    Raises:
        BundleNotFoundError: no such file.
        BundleCorruptError: not JSON, or no object.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError:
        raise BundleNotFoundError(
            f"there is no {path}", "a finished stage", "run: merkit-train run RECIPE"
        ) from None
    except ValueError as error:
        raise BundleCorruptError(f"{path} is no JSON ({error})", "JSON", _redo(path)) from None
    if not isinstance(value, dict):
        raise BundleCorruptError(f"{path} holds {type(value).__name__}", "an object", _redo(path))
    return value


def save_step(
    run: Path,
    step: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    card: Mapping[str, Any],
) -> None:
    """Writes a trained step: configuration, weights, and last the card that marks it done.

    Of several processes the main one writes; all go on when it has.
    """
    folder = run / step
    if processes.is_main():
        write_json(folder / CONFIG, dict(config))
        weights = _weights(run, step)
        plain = {name: rounded(tensor, weights) for name, tensor in tensors.items()}
        write_bytes(folder / MODEL, save(plain))
        write_json(folder / CARD, dict(card))
    processes.join()


def load_step_files(run: Path, step: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights that `save_step` wrote.

    Raises:
        BundleNotFoundError: the stage has not been trained in this run.
        BundleCorruptError: a file is damaged.
    """
    folder = run / step
    config = read_json(folder / CONFIG)
    try:
        weights = load_file(folder / MODEL)
        return config, {
            name: tensor.float() if tensor.dtype is torch.float16 else tensor
            for name, tensor in weights.items()
        }
    except FileNotFoundError:
        raise BundleNotFoundError(
            f"{folder} holds no {MODEL}",
            "a finished stage",
            f"run: merkit-train run --stage {step}",
        ) from None
    except SafetensorError as error:
        raise BundleCorruptError(
            f"{folder / MODEL} is damaged ({error})", "safetensors", _redo(folder / MODEL)
        ) from None


def rounded(tensor: Tensor, weights: str) -> Tensor:
    """What is saved of a tensor: weight matrices are rounded here, once, before anything is
    measured with them, so that checkpoints and bundles hold the same values in few bytes.

    Args:
        tensor: of the state dict; what is small, or no matrix of float32, stays as it is.
        weights: `float16`, or `int8`: each row (output channel) on 255 steps up to its largest
            value. A step has 12 bits, so that every value is exact in float32 and an exporter
            finds the steps again (`merkit_export.compact`).
    """
    plain = tensor.detach().clone().contiguous()
    if plain.dtype is not torch.float32 or plain.numel() < ROUND_FROM:
        return plain
    if weights == "float16" or plain.ndim < 2:
        return plain.half()
    rows = plain.flatten(1)
    bits = (rows.abs().amax(dim=1, keepdim=True) / 127).view(torch.int32)
    step = ((bits + 0xFFF) >> 12 << 12).view(torch.float32)  # rounded up: no row exceeds 127 steps
    count = torch.where(step > 0, rows / step, 0.0).round()
    return (count * step).view_as(plain)


def _weights(run: Path, step: str) -> str:
    """What the run's recipe rounds this step's weights to."""
    # fusion is small, and measured before it is saved; pre-training is to be trained further
    if step == "fusion" or step.endswith("_pretraining"):
        return "float16"
    path = run / "recipe.json"
    table = read_json(path).get("run", {}) if path.exists() else {}
    return str(table.get("weights", "float16"))


class RunCard:
    """`run.json`: what made this run, and what came of each stage done.

    It keeps the seed, the hash of the corpus' card (which holds those of its data), package
    versions, the hardware, and of each stage the scores, the seconds, the recipe's table and others
    that it read (`tables`), the marks of the stages that it read (`on`), and throughput and memory
    of each fit.
    """

    def __init__(self, run: Path, recipe: Recipe, corpus: Path) -> None:
        if run.exists() and not run.is_dir():
            raise InvalidInputError(f"{run} is a file", "a folder for the run, or a new name")
        self.run, self.recipe, self.path = run, recipe, run / "run.json"
        self.data = sha256_file(corpus / CARD) if (corpus / CARD).exists() else None
        self.content = self._read()
        self._refuse_other_origin()
        self._refuse_stale()
        processes.join()  # all have compared with what was recorded
        if processes.is_main():
            write_json(run / "recipe.json", recipe.to_json())

    def done(self, stage: str) -> bool:
        """Whether the stage's own card says that it has finished."""
        return (self.run / stage / CARD).exists()

    def record(self, stage: str, scores: Mapping[str, float], seconds: float) -> None:
        """Notes a finished stage; writes its card too, if the stage left that to us."""
        self.content = self._read()  # another stage may have finished meanwhile
        self.content |= {
            "name": self.recipe.run.name,
            "seed": self.recipe.run.seed,
            "data": self.data,
            "python": platform.python_version(),
            "packages": {name: _version(name) for name in PACKAGES},
            "hardware": hardware(),
        }
        tables = tables_read(self.recipe, stage)
        on = {s: self._mark(s) for s in builds_on(self.recipe, stage) if self.done(s)}
        if stage == "features" and scores.get("wordless"):  # the chain has written, or would have
            tables = ("hearing",) if self.done(CHAIN[0]) else ()
            on |= {s: self._mark(s) for s in CHAIN}
        self.content["stages"][stage] = {
            "scores": dict(scores),
            "seconds": round(seconds, 1),
            "recipe": self._of(stage),
            "tables": {name: self._of(name) for name in tables},
            "on": on,
            "fits": read_costs(self.run / stage),
        }
        if not self.done(stage):
            write_json(self.run / stage / CARD, {"scores": dict(scores)})
        write_json(self.path, self.content)

    def adopt(self, stage: str) -> None:
        """Notes a stage that is done and was killed before it was noted."""
        if stage not in self.content["stages"] and processes.is_main():
            self.record(stage, read_json(self.run / stage / CARD).get("scores", {}), 0.0)

    def _begun(self, stage: str) -> bool:
        """Whether a kill left something of the stage that it would go on with."""
        return self.done(stage) or any((self.run / stage).glob("*.checkpoint"))

    def _mark(self, stage: str) -> str | None:
        """A hash that changes when the stage is trained again; None if it is not there."""
        return sha256_file(self.run / stage / CARD) if self.done(stage) else None

    def _refuse_stale(self) -> None:
        """Refuses to go on where a stage was trained on what has been replaced or removed."""
        stale: list[str] = []
        for stage in STAGES:
            facts = self.content["stages"].get(stage, {}) if self.done(stage) else {}
            on = facts.get("on", {})
            if any(name in stale or self._mark(name) != mark for name, mark in on.items()):
                stale.append(stage)
        if stale:
            raise InvalidInputError(
                f"in {self.run} what {' and '.join(stale)} had been trained on was removed or "
                "trained again",
                "stages that were trained on those that are there",
                f"remove {', '.join(str(self.run / name) for name in stale)}, too",
            )

    def _read(self) -> dict[str, Any]:
        return read_json(self.path) if self.path.exists() else {"stages": {}}

    def _of(self, stage: str) -> dict[str, Any]:
        """The table that the recipe has for the stage, without what changes speed alone; of
        features which of them are of cleaned sound."""
        if stage == "features":
            hears = asdict(self.recipe.hearing)
            return {k: v for k, v in hears.items() if v == "cleaned"}
        return _meaning(stage, self.recipe.to_json().get(stage, {}))

    def _refuse_other_origin(self) -> None:
        finished = {s: v for s, v in self.content["stages"].items() if self.done(s)}
        begun = [s for s in STAGES if s not in finished and self._begun(s)]
        if not finished and not begun:
            return
        pairs: list[tuple[str, Any, Any]] = []
        if finished:
            pairs += [("seed", self.content["seed"], self.recipe.run.seed)]
            pairs += [("corpus", self.content["data"], self.data)]
        recorded_recipe = self.run / "recipe.json"
        if recorded_recipe.exists():
            was = read_json(recorded_recipe)
            told = (
                _meaning("preprocessing", was.get("preprocessing", {})),
                self._of("preprocessing"),
            )
            pairs += [("[preprocessing]", *told)]
            read = [name for s in begun for name in (s, *tables_read(self.recipe, s))]
            pairs += [(f"[{t}]", _meaning(t, was.get(t, {})), self._of(t)) for t in read]
        for stage, v in finished.items():
            known = {stage: v["recipe"], **v.get("tables", {})}
            pairs += [(f"[{t}]", _meaning(t, was), self._of(t)) for t, was in known.items()]
        for what, recorded, asked in pairs:
            unfinished = what == "corpus" and recorded is None  # trained before it had a card
            if recorded != asked and not unfinished:
                raise InvalidInputError(
                    f"{self.run} was begun with another {what}",
                    "{}, not {}".format(*_difference(recorded, asked)),
                    "choose another run folder, or remove what was trained with the old one",
                )


def hardware() -> dict[str, Any]:
    """What this process computes on, as far as the system tells."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "device": device_name(),
        "processes": processes.count(),
    }


def _meaning(table: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded table as it would be read today: a key added since has its default, and what
    changes speed alone is left out."""
    full = dict(values)
    with suppress(KeyError, InvalidInputError):  # a stage without a table, or a key that is gone
        full = asdict(from_table(table_class(table), values, table))
    return {k: v for k, v in json.loads(json.dumps(full)).items() if k != "threads"}


def _difference(recorded: Any, asked: Any) -> tuple[Any, Any]:
    """The two values, of tables only the keys in which they differ."""
    if not isinstance(recorded, dict) or not isinstance(asked, dict):
        return recorded, asked
    keys = [k for k in {**recorded, **asked} if recorded.get(k) != asked.get(k)]
    return {k: recorded.get(k) for k in keys}, {k: asked.get(k) for k in keys}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _redo(path: Path) -> str:
    return f"remove {path.parent} and run the stage again"
