"""A run without encoders, asked by features: what evaluate, submit and mine need of it.

`merkit-train fuse` makes runs from features whose encoders are elsewhere. Such a run cannot be
given a clip, so its clips are rows of stored features; a modality goes missing by being masked, and
noise and blur, which are done to clips, are left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from merkit.backends.base import Tensors
from merkit.contract import Contract, Preprocessing, TensorSpec, Voter
from merkit.errors import InvalidInputError
from merkit.voting import ranked_mode
from merkit_training.corpus import read_lines
from merkit_training.data.records import UNLABELLED, ClipRecord, Problem
from merkit_training.evaluation.answers import Answer, Answers, plain
from merkit_training.evaluation.conditions import CLEAN, effective
from merkit_training.evaluation.labelled import (
    COLUMNS,
    SUBSET,
    Item,
    LabelledSet,
    check_columns,
)
from merkit_training.evaluation.measure import patterns_asked
from merkit_training.evaluation.subject import VALENCE, Subject
from merkit_training.fusion.dataset import FeatureSet, read_features, test_splits
from merkit_training.fusion.folders import GroupFolder, find_groups
from merkit_training.fusion.fuse import CLIPS, features_of, stated_groups
from merkit_training.fusion.groups import modalities_of
from merkit_training.fusion.label_files import read_label_file
from merkit_training.fusion.model import load
from merkit_training.runs import read_json

PRESENCE = "presence"


class StoredBackend:
    """The fusion and vote of a run, from features; see `Backend`.

    `infer` takes float32 [batch, width] of each group by its name, and PRESENCE bool [batch,
    modalities].

    Raises:
        BundleNotFoundError, BundleCorruptError: the run's fusion is missing or damaged.
    """

    def __init__(self, run: Path) -> None:
        self.run = run
        self.fusion = load(run)
        facts = read_json(run / "fusion" / "config.json")
        batch = {g: TensorSpec("float32", ("batch", w)) for g, w in facts["widths"].items()}
        shown = TensorSpec("bool", ("batch", len(modalities_of(facts["widths"]))))
        voters = tuple(Voter(v["name"], tuple(v["groups"])) for v in facts["voters"])
        groups, tensors = self.fusion.groups, {**batch, PRESENCE: shown}
        self.contract = Contract(
            tuple(facts["labels"]), voters, groups, Preprocessing(), tensors, ()
        )
        contract_id = self.contract.contract_id
        self.identity: Mapping[str, str] = {
            "contract_id": contract_id,
            "backend": "torch, features",
        }

    def infer(
        self, tensors: Tensors, timings: dict[str, float] | None = None
    ) -> dict[str, NDArray[Any]]:
        """The outcome with the presence, and VALENCE if it was learnt."""
        started = time.perf_counter()
        if wrong := sorted({*self.contract.tensors} ^ {*tensors}):
            raise InvalidInputError(
                f"{', '.join(wrong)} is missing or not known",
                f"the tensors {', '.join(self.contract.tensors)}",
                "give features: this run has no encoders",
            )
        inputs = [
            torch.from_numpy(np.asarray(tensors[n])) for n in (*self.contract.groups, PRESENCE)
        ]
        with torch.inference_mode():
            branch_scores, shares = self.fusion.judge(*inputs)
        label, scores = ranked_mode(branch_scores.numpy())
        found: dict[str, NDArray[Any]] = {
            "label": label,
            "scores": scores,
            "branch_scores": branch_scores.numpy(),
            "branch_contributions": shares.numpy(),
            PRESENCE: np.asarray(tensors[PRESENCE]),
        }
        if timings is not None:
            timings["fusion"] = 1e3 * (time.perf_counter() - started)
        if self.fusion.config.valence:
            found[VALENCE] = self.fusion.valence(*inputs)
        return found

    def of(
        self, data: FeatureSet, shown: NDArray[np.bool_] | None = None
    ) -> dict[str, NDArray[Any]]:
        """`infer` of all clips of a set, seen with only `shown` [modalities]."""
        mask = None if shown is None else torch.from_numpy(shown)[None]
        names = (*self.contract.groups, PRESENCE)
        return self.infer({n: t.numpy() for n, t in zip(names, data.inputs(mask), strict=True)})

    def close(self) -> None:
        """Nothing to release."""


def stored_backend(subject: Subject) -> StoredBackend | None:
    """The subject's backend where it is asked by features; None for any other."""
    backend = subject.client.backend
    return backend if isinstance(backend, StoredBackend) else None


class StoredExaminer:
    """Answers on the clips of a set, in one pass for each pattern of missing modalities."""

    def __init__(self, backend: StoredBackend, data: FeatureSet) -> None:
        self.backend, self.data = backend, data

    def examine(self, items: Sequence[Item], hard: Sequence[Item]) -> dict[str, Answers]:
        """See `Asks`."""
        place = {name: i for i, name in enumerate(self.data.names)}
        data = self.data.select(torch.tensor([place[item.record.name] for item in items]))
        clean = self._ask(data, None)
        found = {n: Answers(a) for n, a in zip(data.names, clean, strict=True)}
        if not hard:
            return found
        chosen = data.select(torch.tensor([data.names.index(item.record.name) for item in hard]))
        for pattern in patterns_asked(data.modalities):
            shown = np.array([m in pattern.keep for m in data.modalities])
            for name, answer in zip(chosen.names, self._ask(chosen, shown), strict=True):
                known = found[name].clean
                meant = effective(pattern, known.present) if known else None
                if meant is not None and meant != CLEAN:
                    found[name].under[meant.key] = answer
        return found

    def close(self) -> None:
        """Nothing is kept."""

    def _ask(self, data: FeatureSet, shown: NDArray[np.bool_] | None) -> list[Answer]:
        said = self.backend.of(data, shown)
        there = said[PRESENCE]
        return [
            Answer(
                int(said["label"][i]),
                plain(said["scores"][i]),
                tuple(plain(row) for row in said["branch_scores"][i]),
                tuple(m for m, is_there in zip(data.modalities, there[i], strict=True) if is_there),
            )
            for i in range(len(data))
        ]


def labelled_features(
    backend: StoredBackend,
    split: str,
    by: Sequence[str],
    labels: Path | None = None,
    features: Path | None = None,
) -> tuple[LabelledSet, FeatureSet]:
    """The clips that a report is about: of a split of the run itself, or of a label file.

    Args:
        backend: of the run.
        split: of the run, or of the file's column `split`.
        by: columns to group by.
        labels: a label file; None: the run's own clips.
        features: holds the folders of the run's groups, for `labels`.

    Raises:
        InvalidInputError: no such split or column, no labelled clip, features that do not fit, or
            one of `labels` and `features` without the other.
    """
    if (labels is None) != (features is None):
        given = "data" if features is None else "features"
        raise InvalidInputError(
            f"--{given} was given alone, and {backend.run} has no encoders",
            "--data with --features, or --split of the run's own clips",
            "give both, or --split",
        )
    facts: Mapping[str, Mapping[str, str]]
    problems: tuple[Problem, ...]
    if labels is None or features is None:
        data, facts = _own(backend.run, split)
        problems, left, source = (), 0, backend.run
    else:
        read = read_label_file(labels, backend.contract.labels)
        chosen = [r for r in read.records if not split or r.split == split]
        records = [r for r in chosen if r.label]
        if not records:
            raise InvalidInputError(
                f"{labels} has no labelled clip in the split {split!r}", "one", "correct --split"
            )
        data = read_for(backend, records, features)
        facts, problems, source = read.facts, read.problems, labels
        left = len(chosen) - len(records)
    check_columns(by, {c for known in facts.values() for c in known} | {"speaker"})
    items = sorted(_items(data, facts, backend.contract.labels, by), key=lambda i: i.record.name)
    return LabelledSet(source, split, tuple(items), problems, left), data


def read_for(backend: StoredBackend, records: Sequence[ClipRecord], root: Path) -> FeatureSet:
    """Features of new clips for a run, from folders below `root`; a clip without a file means what
    it meant when the run was fused."""
    folders, widths = folders_of(backend.run, root)
    absent = bool((stated_groups(backend.run) or {}).get("missing_is_absent"))
    labels = backend.contract.labels
    return features_of(records, labels, folders, widths, missing_is_absent=absent)


def folders_of(run: Path, root: Path) -> tuple[tuple[GroupFolder, ...], dict[str, int]]:
    """Folders and widths of a run's groups below `root`.

    Raises:
        InvalidInputError: a folder is missing, or the run reads groups of its own encoders too.
    """
    stated = stated_groups(run) or {"groups": {}, "all": []}
    if own := [group for group in stated["all"] if group not in stated["groups"]]:
        raise InvalidInputError(
            f"{run} also reads {', '.join(own)}, which encoders of another run made",
            "a run fused from feature folders alone, for clips that it has not seen",
            "extract all groups with merkit-train features, and fuse with --labels",
        )
    asked = [f"{name}={facts['folder']}" for name, facts in stated["groups"].items()]
    widths = {name: int(facts["width"]) for name, facts in stated["groups"].items()}
    return find_groups(root, asked), widths


def records_in(backend: StoredBackend, root: Path) -> list[ClipRecord]:
    """All clips of which a folder of the run's groups below `root` has a file.

    Raises:
        InvalidInputError: there is none, or see `folders_of`.
    """
    folders, _ = folders_of(backend.run, root)
    names = {path.stem for folder in folders for path in folder.path.glob("*.npy")}
    if not names:
        raise InvalidInputError(
            f"the feature folders below {root} are empty",
            f"files <clip>.npy in {', '.join(folder.path.name for folder in folders)}",
            "extract features, or check the path",
        )
    return [ClipRecord(name, split=UNLABELLED) for name in sorted(names)]


def _own(run: Path, split: str) -> tuple[FeatureSet, dict[str, dict[str, str]]]:
    splits = ("val", *test_splits(run))
    if split not in splits:
        raise InvalidInputError(
            f"the split is {split!r}", f"one of {', '.join(splits)}", "give --split, or --data"
        )
    rows = read_lines(run / "features" / CLIPS)
    known = {str(row["name"]): {k: str(v) for k, v in row.items() if k != "name"} for row in rows}
    return read_features(run / "features" / split), known


def _items(
    data: FeatureSet,
    facts: Mapping[str, Mapping[str, str]],
    labels: Sequence[str],
    by: Sequence[str],
) -> list[Item]:
    wanted = {SUBSET, *COLUMNS, *by}
    items = []
    for name, who, label in zip(data.names, data.identities, data.labels.tolist(), strict=True):
        said = {"speaker": "" if who.startswith("/") else who} | dict(facts.get(name, {}))
        told = {column: value for column, value in said.items() if column in wanted and value}
        items.append(Item(ClipRecord(name, label=labels[label]), label, told))
    return items
