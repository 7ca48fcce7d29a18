"""A run with somebody else's encoder in the place of its own.

Features of another encoder mean something else to every branch, and may have another width, so a
bundle cannot just swap the file: fusion must be trained anew on them. The new run holds all that
stays, the foreign encoder as a finished stage, and neither features nor fusion; `merkit-train run`
then makes those two, and `merkit-export build` a bundle.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.steps.tokenize import JOINT_FILE, TEXT_FILE
from merkit_export.adopt.check import check
from merkit_export.adopt.read import Adoptable, read_folder
from merkit_export.parity import StepParity
from merkit_training.encoders.adopted import ADOPTED, GRAPH, AdoptedEncoder, Pool
from merkit_training.fusion.sharing import share_files
from merkit_training.runs import CARD, read_json, write_json
from merkit_training.settings import from_table

REMADE = ("features", "fusion")
"""Stages that read every encoder's output."""


def adopt(
    folder: Path,
    step: str,
    run: Path,
    out: Path,
    pool: Pool = "mean",
    say: Callable[[str], None] = print,
) -> StepParity:
    """Writes the run `out`: the run `run` with the encoder in `folder` as its `step`.

    Args:
        folder: what `optimum-cli export onnx` wrote.
        step: one of `adopt.read.READS`.
        run: a finished run; it is not changed.
        out: a new folder.
        pool: how positions become one feature.
        say: receives what differs from the contract, a line each.

    Returns:
        How the graph that would ship compares with the original file.

    Raises:
        InvalidInputError: the folder cannot be that step, or `out` exists.
        BundleError: the run is unfinished or damaged, or the encoder cannot be loaded.
        MerkitError: the graph that would ship computes something else.
    """
    if out.exists():
        raise InvalidInputError(f"{out} exists", "a new folder for the run", "choose another name")
    recipe, record = read_json(run / "recipe.json"), read_json(run / "run.json")
    table = recipe.get("preprocessing", {})
    p = from_table(Preprocessing, table, "recipe.json [preprocessing]")
    found = measured(read_folder(folder, step, p, pool), p)
    for note in found.notes:
        say(f"{step}: {note}")
    parity = check(found, p)
    temporary = out.parent / f".{out.name}.{os.getpid()}.new"
    try:
        _write(found, run, temporary, record)
        temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return parity


def measured(found: Adoptable, p: Preprocessing) -> Adoptable:
    """The same with the width of its features, found by running it once."""
    encoder = AdoptedEncoder(found.config, found.graph)
    side = p.grid * p.face_size
    values, length = torch.zeros(1, 3, side, side), None
    if found.config.reads != "pixel_values":
        sound = found.config.reads == "input_values"
        values = torch.zeros(1, p.sample_rate if sound else 2).to(
            torch.float32 if sound else torch.int64
        )
        length = torch.tensor([[values.shape[1]]])
    try:
        width = encoder(values, length).shape[-1]
    except Exception as error:  # onnxruntime has exceptions of its own
        raise BundleCorruptError(
            f"{found.graph} fails on {list(values.shape)} ({str(error).splitlines()[0]})",
            "an encoder that runs on the contract's inputs",
            "export it again with dynamic sizes, or adopt another",
        ) from None
    return replace(found, config=replace(found.config, hidden=width))


def _write(found: Adoptable, run: Path, out: Path, record: dict[str, Any]) -> None:
    share_files(run, out, (*REMADE, found.step))
    stage = out / found.step
    stage.mkdir(parents=True)
    for path in sorted(found.folder.glob(f"{GRAPH}*")):  # its external data, too
        shutil.copyfile(path, stage / path.name)
    if found.config.reads == "input_ids":
        _take_tokenizer(found.folder / TEXT_FILE, out / "tokenizer")
    write_json(stage / ADOPTED, asdict(found.config))
    stages = {k: v for k, v in record.get("stages", {}).items() if k not in REMADE}
    own = stages.get(found.step, {})
    stages[found.step] = {"scores": {}, "seconds": 0.0, "recipe": own.get("recipe", {}), "on": {}}
    replaced = {found.step, "tokenizer"}
    for facts in stages.values():  # what was trained on the former keeps its own weights
        facts["on"] = {k: v for k, v in facts.get("on", {}).items() if k not in replaced}
    write_json(stage / CARD, {"scores": {}, "adopted": found.config.kind})
    write_json(out / "run.json", {**record, "stages": stages})


def _take_tokenizer(new: Path, folder: Path) -> None:
    """The text encoder's tokeniser; a joint model that shared the former keeps it."""
    joint, text = folder / JOINT_FILE, folder / TEXT_FILE
    if not joint.exists():
        text.rename(joint)
    text.unlink(missing_ok=True)
    shutil.copyfile(new, text)
