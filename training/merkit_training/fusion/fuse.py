"""Fusion on features that other encoders made, alone or beside a run's own: a run without encoders.

Whoever has features and labels wants branches, folds, rankings, calibration and reports, and need
not have clips. What is written here is a run folder whose stages `features` and `fusion` are done,
so that everything that reads such a folder reads this one.

    RUN/corpus/card.json      the classes, and marks of the features and labels that made it
    RUN/features/SPLIT/       features by split;  RUN/features/groups.json: folder and width of each
    RUN/features/clips.jsonl  what the label file said of each clip
    RUN/fusion/               as the stage writes it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merkit.bundle import sha256_file
from merkit.contract import MODALITIES
from merkit.errors import InvalidInputError
from merkit_training.data.config import DataConfig
from merkit_training.data.records import UNLABELLED, ClipRecord, Problem
from merkit_training.data.splits import assign
from merkit_training.fusion import stage
from merkit_training.fusion.dataset import (
    FeatureSet,
    classes_in,
    is_own_data,
    read_features,
    test_splits,
)
from merkit_training.fusion.folders import GroupFolder, read_groups
from merkit_training.fusion.groups import all_and_each_without_one, check_voter, foreign
from merkit_training.fusion.label_files import LabelFile
from merkit_training.fusion.sharing import share_files
from merkit_training.fusion.tables import OWN
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import RunCard, read_json, write_bytes, write_json

STATED, CLIPS = "groups.json", "clips.jsonl"
NOT_SHARED = ("corpus", "features", "fusion", "logs", "recipe.json", "run.json")
"""Of a run that is fused anew."""


@dataclass(frozen=True)
class Material:
    """What is fused.

    Attributes:
        sets: features by split: train, val and tests.
        classes: in order.
        folders: of the groups that no step of the pipeline makes.
        facts: what is known of a clip, by name and column.
        own: the data are somebody's own, and not drawn.
        folds: how many folds the labels state; 0: none.
        marks: hashes of what it was made of.
        problems: clips that were left out, and remarks.
        origin: the run whose clips they are; None: clips of a label file.
        missing_is_absent: what a clip without a file means, of these folders and later ones.
    """

    sets: Mapping[str, FeatureSet]
    classes: tuple[str, ...]
    folders: tuple[GroupFolder, ...]
    facts: Mapping[str, Mapping[str, str]]
    own: bool
    folds: int
    marks: Mapping[str, str]
    problems: tuple[Problem, ...]
    origin: Path | None = None
    missing_is_absent: bool = False

    @property
    def groups(self) -> tuple[str, ...]:
        """All groups in order."""
        return tuple(self.sets["train"].groups)


def from_labels(
    folders: Sequence[GroupFolder],
    labels: LabelFile,
    config: DataConfig,
    *,
    missing_is_absent: bool = False,
) -> Material:
    """Features of the labelled clips, divided as the labels say and `config` where they do not.

    Raises:
        InvalidInputError: see `folders.read_groups` and `data.splits.assign`; or a fold of one, or
            a class.
    """
    if len(found := {record.label for record in labels.records if record.label}) < 2:
        raise InvalidInputError(
            f"every labelled clip is {', '.join(found)}", "two classes or more", "check --labels"
        )
    folds = labels.folds()
    stated = [
        replace(r, split="train") if r.name in folds and not r.split else r for r in labels.records
    ]
    splits, problems = assign(stated, config)
    chosen = [i for i, split in enumerate(splits) if split != UNLABELLED]
    whole = features_of(
        [labels.records[i] for i in chosen], labels.classes, folders,
        missing_is_absent=missing_is_absent,
    )  # fmt: skip
    rows: dict[str, list[int]] = {}
    for row, i in enumerate(chosen):
        rows.setdefault(splits[i], []).append(row)
    sets = {split: whole.select(torch.tensor(own)) for split, own in rows.items()}
    train = sets["train"]
    if folds:
        sets["train"] = replace(train, identities=_folds(train.names, folds))
    return Material(
        sets, labels.classes, tuple(folders), labels.facts, True,
        len({folds[name] for name in train.names}) if folds else 0,
        {g: _mark(values) for g, values in whole.groups.items()} | {"labels": _told(sets)},
        (*labels.problems, *problems), None, missing_is_absent,
    )  # fmt: skip


def from_run(
    run: Path, folders: Sequence[GroupFolder], *, missing_is_absent: bool = False
) -> Material:
    """Features of a run's own clips with those of other encoders, matched by the clips' names.

    Raises:
        InvalidInputError: the run has no features, a group is called as a modality is, or as
            `folders.read_groups`.
    """
    known = {*read_features(run / "features" / "train").groups, *MODALITIES}
    if taken := [f.name for f in folders if f.name in known]:
        raise InvalidInputError(
            f"a group is called {taken[0]!r}, as a group of the run or a modality is",
            f"a name beside {', '.join(sorted(known))}",
            "call it otherwise: --groups NAME=FOLDER",
        )
    sets, marks = {}, {}
    for split in ("train", "val", *test_splits(run)):
        data = read_features(run / "features" / split)
        marks[split] = sha256_file(run / "features" / split / "features.safetensors")
        if folders:
            data = data.with_groups(
                read_groups(folders, data.names, missing_is_absent=missing_is_absent)
            )
        sets[split] = data
    for folder in folders:
        widths = {split: data.widths()[folder.name] for split, data in sets.items()}
        if len(set(widths.values())) > 1:
            raise InvalidInputError(
                f"the features in {folder.path} are {widths} wide",
                "one width",
                "extract them again",
            )
        marks[folder.name] = _mark(torch.cat([data.groups[folder.name] for data in sets.values()]))
    facts = {name: said for data in sets.values() for name, said in _known_of(data).items()}
    return Material(
        sets, classes_in(run), tuple(folders), facts, is_own_data(run), 0, marks, (), run,
        missing_is_absent,
    )  # fmt: skip


def features_of(
    records: Sequence[ClipRecord],
    classes: Sequence[str],
    folders: Sequence[GroupFolder],
    widths: Mapping[str, int] | None = None,
    *,
    missing_is_absent: bool = False,
) -> FeatureSet:
    """Features of clips from folders; a clip without a label is labelled -1."""
    names = tuple(record.name for record in records)
    empty = FeatureSet(
        names=names,
        identities=tuple(record.group or f"/{record.name}" for record in records),
        subsets=("",) * len(names),
        labels=torch.tensor([classes.index(r.label) if r.label else -1 for r in records]),
        presence=torch.zeros(len(names), 0, dtype=torch.bool),
        groups={},
        valence=torch.tensor([float("nan") if r.valence is None else r.valence for r in records]),
    )
    read = read_groups(folders, names, widths, missing_is_absent=missing_is_absent)
    return empty.with_groups(read)


def branches_of(material: Material, recipe: Recipe, asked: Sequence[str] = ()) -> tuple[str, ...]:
    """The voters: those asked for, else the recipe's where it names them for these groups or none
    but the pipeline's are there, else one of all groups and one without each.

    Raises:
        InvalidInputError: one is not made of different groups that are there.
    """
    own, others = recipe.fusion.voters, foreign(material.groups)
    kept = own if set(recipe.fusion.groups) == set(others) else ()
    voters = tuple(asked) or kept or all_and_each_without_one(material.groups)
    try:
        for name in voters:
            check_voter(name, material.groups)
    except ValueError as error:
        raise InvalidInputError(f"--voters: {error}", "such as clip+wavlm", "correct it") from None
    return voters


def fuse(material: Material, recipe: Recipe, voters: Sequence[str], out: Path) -> dict[str, float]:
    """Writes the run `out`; returns the stage's scores, {} where it was done before.

    Of `recipe` the tables [fusion], [data] and [run] count; a run's features keep the others of the
    run that made them.

    Raises:
        InvalidInputError: `out` was begun with other features, labels or options.
    """
    others = foreign(material.groups)
    folds = material.folds or recipe.fusion.folds
    try:
        config = replace(recipe.fusion, groups=others, voters=tuple(voters), folds=folds)
    except ValueError as error:
        raise InvalidInputError(f"the options of fusion: {error}", action="correct them") from None
    if material.origin is not None:  # the encoders and what they were fed are the run's
        made = recipe_from(read_json(material.origin / "recipe.json"))
        recipe = replace(made, data=recipe.data, run=recipe.run)
    recipe = replace(recipe, fusion=config)
    corpus, features = out / "corpus", out / "features"
    _begin(corpus / "card.json", material)
    before = stated_groups(material.origin) if material.origin else None
    if material.origin is not None and not others:  # nothing but its own: it exports as it did
        share_files(material.origin, out, NOT_SHARED)
    card = RunCard(out, recipe, corpus)
    if not card.done("features"):
        for split, data in material.sets.items():
            data.save(features / split)
        lines = [
            json.dumps({**said, "name": n}, ensure_ascii=False)
            for n, said in material.facts.items()
        ]
        write_bytes(features / CLIPS, "".join(f"{line}\n" for line in lines).encode())
        widths = material.sets["train"].widths()
        stated = {
            f.name: {"folder": f.path.name, "width": widths[f.name]} for f in material.folders
        }
        absent = material.missing_is_absent
        if before:
            stated, absent = before["groups"] | stated, absent or before["missing_is_absent"]
        if stated:
            facts = {"groups": stated, "all": list(material.groups), "missing_is_absent": absent}
            write_json(features / STATED, facts)
        card.record(
            "features", {f"{s}_clips": float(len(d)) for s, d in material.sets.items()}, 0.0
        )
    if card.done("fusion"):
        return {}
    scores = stage.train(recipe, corpus, out)
    card.record("fusion", scores, float(read_json(out / "fusion" / "card.json")["seconds"]))
    return scores


def stated_groups(run: Path) -> dict[str, Any] | None:
    """What `fuse` noted of groups that no encoder of the run makes; None for any other run."""
    path = run / "features" / STATED
    return read_json(path) if path.is_file() else None


def _begin(path: Path, material: Material) -> None:
    card = {
        **({"kind": OWN} if material.own else {}),
        "labels": list(material.classes),
        "clips": {split: len(data) for split, data in material.sets.items()},
        "marks": dict(material.marks),
    }
    if not path.is_file() and (path.parent.parent / "run.json").exists():
        raise InvalidInputError(
            f"{path.parent.parent} holds a run that was trained on clips",
            "a folder of its own for what is fused",
            "choose another --out",
        )
    if path.is_file() and (before := read_json(path)) != card:
        changed = [k for k in {**before, **card} if before.get(k) != card.get(k)]
        raise InvalidInputError(
            f"{path.parent.parent} was begun with other {', '.join(changed)}",
            "the features and labels that it was begun with",
            "choose another --out",
        )
    write_json(path, card)


def _folds(names: Sequence[str], folds: Mapping[str, str]) -> tuple[str, ...]:
    """The folds in place of speakers, who no two folds share."""
    if without := [name for name in names if name not in folds]:
        raise InvalidInputError(
            f"{len(without)} of {len(names)} training clips have no fold, as {without[0]}",
            "the column fold for each of them, or for none",
            "fill the column, or remove it",
        )
    stated = tuple(f"fold {folds[name]}" for name in names)
    if len(set(stated)) < 2:
        raise InvalidInputError(
            f"all training clips are in {stated[0]}", "two folds or more", "correct the column fold"
        )
    return stated


def _known_of(data: FeatureSet) -> dict[str, dict[str, str]]:
    """Speaker and subset of each clip, where known."""
    return {
        name: ({} if who.startswith("/") else {"speaker": who}) | ({"subset": kind} if kind else {})
        for name, who, kind in zip(data.names, data.identities, data.subsets, strict=True)
    }


def _mark(values: Tensor) -> str:
    return hashlib.sha256(values.contiguous().numpy().tobytes()).hexdigest()[:32]


def _told(sets: Mapping[str, FeatureSet]) -> str:
    """A hash of which clip is in which split, with which label and speaker or fold."""
    told = [
        [split, data.names, data.identities, data.labels.tolist(), repr(data.valence.tolist())]
        for split, data in sorted(sets.items())
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
