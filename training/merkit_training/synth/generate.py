"""Writes the whole corpus with several processes, resumable, the same bytes for the same seed.

Samples are made in parts of fixed size. A part is written under a temporary name and renamed, so
a killed run loses at most the parts in hand; the next run does what is missing and then merges.
espeak-ng carries state from sentence to sentence, so each part that speaks gets a process of its
own and its sentences in order: that makes its sound depend on the seed alone.
"""

from __future__ import annotations

import json
import multiprocessing
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from merkit.errors import InvalidInputError
from merkit_training.corpus import CLIP_SPLITS, SET_SPLITS
from merkit_training.data.layout import write_table, write_text
from merkit_training.synth.card import write_card
from merkit_training.synth.clips import make_clip
from merkit_training.synth.config import SynthConfig
from merkit_training.synth.sets import (
    KINDS,
    Source,
    face_sample,
    sentence_sample,
    sequence_sample,
    utterance_sample,
)

SAMPLERS: dict[str, Callable[[Source, int], dict[str, Any]]] = {
    "faces": face_sample,
    "sequences": sequence_sample,
    "utterances": utterance_sample,
    "sentences": sentence_sample,
}
PART_SIZES = {
    "faces": 500,
    "sequences": 200,
    "utterances": 200,
    "sentences": 4000,
    "clips": 40,
}
SPEAKING = ("utterances", "clips")
CORPUS_KEYS = {  # MER's names for what a label file describes
    "test_multi": "test1_corpus",
    "test_noise": "test2_corpus",
    "test_semi": "test3_corpus",
}
ABSENT_VALENCE = -10.0


@dataclass(frozen=True)
class Part:
    """Samples `start` to `stop` of one set and split."""

    source: Source
    start: int
    stop: int
    out: Path

    @property
    def path(self) -> Path:
        """Where the part lies until it is merged."""
        pool = self.source.pool.replace("/", "-")
        ending = ".npz" if self.source.kind in ("faces", "sequences", "utterances") else ".json"
        return _scratch(self.out) / self.source.kind / f"{pool}-{self.start:06d}{ending}"


def generate(out: Path, config: SynthConfig, kinds: Sequence[str] = KINDS) -> None:
    """Writes the corpus, or what is missing of it, to `out`.

    Args:
        out: a folder; it is made if need be.
        config: sizes, shares and the seed.
        kinds: which of KINDS to write; the data card follows when all are there.

    Raises:
        InvalidInputError: an unknown kind, or a folder that holds another corpus.
    """
    if unknown := set(kinds) - set(KINDS):
        raise InvalidInputError(f"there is no set {sorted(unknown)}", f"some of {', '.join(KINDS)}")
    _claim(out, config)
    for kind in (k for k in KINDS if k in kinds and not _complete(out, k)):
        parts = list(_parts(out, config, kind))
        _make_parts(kind, parts, config.workers)
        _merge_clips(out, parts) if kind == "clips" else _merge_set(out, kind, parts)
        shutil.rmtree(_scratch(out) / kind)
    if all(_complete(out, kind) for kind in KINDS) and not (out / "card.json").exists():
        shutil.rmtree(_scratch(out), ignore_errors=True)
        write_card(out, config)


def _scratch(out: Path) -> Path:
    return out / ".parts"


def _claim(out: Path, config: SynthConfig) -> None:
    """Notes whose corpus grows here, so that a resumed run cannot mix two."""
    note = out / "synth.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = json.loads(note.read_text("utf-8")) if note.exists() else None
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"{out} cannot be used ({error})", "a folder for the corpus", "give another folder"
        ) from None
    wanted = {"identity": config.identity, "config": asdict(config)}
    if found is None:
        write_text(note, json.dumps(wanted, indent=1) + "\n")
    elif found.get("identity") != config.identity:
        raise InvalidInputError(
            f"{out} holds a corpus of another configuration ({found.get('identity')})",
            f"an empty folder, or one with the corpus {config.identity}",
            "remove the folder or give another one",
        )


def _complete(out: Path, kind: str) -> bool:
    last = {"sentences": "table.csv", "clips": CLIP_SPLITS[-1] + "/transcripts.csv"}
    return (out / kind / last.get(kind, "split.npy")).is_file()


def _parts(out: Path, config: SynthConfig, kind: str) -> Iterator[Part]:
    prefix = "clips/" if kind == "clips" else ""
    for split in CLIP_SPLITS if kind == "clips" else SET_SPLITS:
        count, size = getattr(config, f"{kind}_{split}"), PART_SIZES[kind]
        source = Source(config, kind, prefix + split)
        for start in range(0, count, size):
            yield Part(source, start, min(start + size, count), out)


def _make_parts(kind: str, parts: Iterable[Part], workers: int) -> None:
    parts = list(parts)
    todo = [part for part in parts if not part.path.exists()]
    for part in todo:
        part.path.parent.mkdir(parents=True, exist_ok=True)
    total = sum(p.stop - p.start for p in parts)
    done = total - sum(p.stop - p.start for p in todo)
    lifetime = 1 if kind in SPEAKING else None
    # a plain fork would copy the locks of whatever threads the caller has: cv2 then never returns
    clean = multiprocessing.get_context("forkserver")
    clean.set_forkserver_preload([__name__])
    with (
        clean.Pool(workers, _quiet, maxtasksperchild=lifetime) as pool,
        tqdm(total=total, initial=done, desc=kind, unit="sample") as bar,
    ):
        for count in pool.imap_unordered(_make_part, todo, chunksize=1):
            bar.update(count)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    cv2.setNumThreads(1)


def _make_part(part: Part) -> int:
    """Makes one part in a worker process; the number of its samples."""
    numbers = range(part.start, part.stop)
    temporary = part.path.with_name(f".{part.path.name}.tmp")
    if part.source.kind == "clips":
        folder = part.out / part.source.pool / "video"
        folder.mkdir(parents=True, exist_ok=True)
        rows = [make_clip(part.source, number, folder) for number in numbers]
        temporary.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    else:
        samples = [SAMPLERS[part.source.kind](part.source, number) for number in numbers]
        rows = [sample.pop("row") for sample in samples if "row" in sample]
        if part.path.suffix == ".json":
            temporary.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
        else:
            arrays = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
            arrays["rows"] = np.array(json.dumps(rows, ensure_ascii=False))
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)
    temporary.replace(part.path)
    return len(numbers)


def _merge_set(out: Path, kind: str, parts: Sequence[Part]) -> None:
    """Joins the parts into the set's arrays and table; `split.npy` or the table comes last."""
    folder = out / kind
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, str]] = []
    maps: dict[str, Any] = {}
    total, at = sum(p.stop - p.start for p in parts), 0
    for part in parts:
        if part.path.suffix == ".json":
            rows += json.loads(part.path.read_text("utf-8"))
            continue
        with np.load(part.path, allow_pickle=False) as loaded:
            rows += json.loads(str(loaded["rows"]))
            for key in set(loaded.files) - {"rows"}:
                piece = loaded[key]
                if key not in maps:
                    temporary = folder / f".{key}.npy.tmp"
                    shape = (total, *piece.shape[1:])
                    maps[key] = np.lib.format.open_memmap(temporary, "w+", piece.dtype, shape)
                maps[key][at : at + len(piece)] = piece
        at += part.stop - part.start
    if kind == "utterances":
        values = maps["prosody"]
        values[:] = (values - values.mean(0)) / values.std(0)
    for key in list(maps):
        maps.pop(key).flush()
        (folder / f".{key}.npy.tmp").replace(folder / f"{key}.npy")
    if rows:
        write_table(folder / "table.csv", list(rows[0]), rows)
    if kind != "sentences":
        splits = [SET_SPLITS.index(p.source.pool) for p in parts for _ in range(p.start, p.stop)]
        temporary = folder / ".split.tmp.npy"
        np.save(temporary, np.array(splits, np.int8))
        temporary.replace(folder / "split.npy")


def _merge_clips(out: Path, parts: Sequence[Part]) -> None:
    """Writes each split's label files, transcripts and truth; transcripts come last."""
    for split in CLIP_SPLITS:
        folder = out / "clips" / split
        (folder / "video").mkdir(parents=True, exist_ok=True)
        mine = [p for p in parts if p.source.pool == f"clips/{split}"]
        truths = [row for p in mine for row in json.loads(p.path.read_text("utf-8"))]
        lines = [json.dumps(truth, ensure_ascii=False) + "\n" for truth in truths]
        write_text(folder / "truth.jsonl", "".join(lines))
        if split != "unlabelled":
            labels = [{"name": t["name"], "discrete": t["discrete"]} for t in truths]
            write_table(folder / "labels.csv", ("name", "discrete"), labels)
            entries = {t["name"]: {"emo": t["discrete"], "val": ABSENT_VALENCE} for t in truths}
            table: dict[str, Any] = {CORPUS_KEYS.get(split, "train_corpus"): entries}
            temporary = folder / ".label-6way.npz.tmp"
            with temporary.open("wb") as file:
                np.savez(file, **table)
            temporary.replace(folder / "label-6way.npz")
        spoken = [
            {
                "name": t["name"],
                "chinese": t["text"] if t["language"] == "zh" else "",
                "english": t["text"] if t["language"] == "en" else "",
            }
            for t in truths
        ]
        write_table(folder / "transcripts.csv", ("name", "chinese", "english"), spoken)
