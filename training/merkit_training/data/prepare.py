"""Own clips become a corpus in the layout that the synthetic one has: every stage runs on it.

Decoding is the long part, so it is done once, by worker processes, in parts that survive a kill.
What a clip lacks, or why it was left out, is written down with its name; nothing is dropped in
silence.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from tqdm import tqdm

from merkit.bundle import sha256_file
from merkit.contract import Preprocessing, canonical
from merkit.errors import InferenceError, InvalidInputError
from merkit_training.corpus import SET_SPLITS
from merkit_training.data.config import DataConfig
from merkit_training.data.evidence import plain, problems_from, read_evidence
from merkit_training.data.layout import (
    Sizes,
    Taught,
    write_sentences,
    write_sets,
    write_split,
    write_text,
)
from merkit_training.data.reading import read_dataset
from merkit_training.data.records import UNLABELLED, ClipRecord, Dataset, Problem, problem_lines
from merkit_training.data.splits import assign, halves

if TYPE_CHECKING:
    from merkit_training.recipe import Recipe

PART = 32
"""Clips of one part: what a kill loses at most of each worker, and what memory holds."""
SHAPING = (
    "frames_per_clip",
    "max_frame_side",
    "face_size",
    "face_margin",
    "grid",
    "sample_rate",
    "min_face_detections",
    "max_audio_seconds",
    "min_audio_seconds",
    "silence_dbfs",
)
"""Preprocessing constants that decide what is stored."""


@dataclass(frozen=True)
class Part:
    """Some clips, decoded by one worker; `taught` says whose arrays are kept."""

    path: Path
    records: tuple[ClipRecord, ...]
    taught: tuple[bool, ...]
    preprocessing: Preprocessing


def prepare(source: Path, out: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the corpus of `source` to `out`, or what is missing of it; returns its card.

    Args:
        source: what `read_dataset` reads.
        out: a folder; it is made if need be.
        recipe: its tables [data] and [preprocessing].

    Raises:
        InvalidInputError: nothing usable, or a folder that holds another corpus.
    """
    config, p = recipe.data, recipe.preprocessing
    dataset = read_dataset(source, config.classes)
    refuse_one_class(dataset)
    splits, remarks = assign(dataset.records, config)
    learns, judges, more = halves(dataset.records, splits, config)
    with _alone(out):
        _claim(out, dataset, config, p)
        if (out / "card.json").is_file():
            card: dict[str, Any] = json.loads((out / "card.json").read_text("utf-8"))
            return card
        return _write(out, recipe, dataset, splits, learns, judges, [*remarks, *more])


def refuse_one_class(dataset: Dataset) -> None:
    """InvalidInputError where there is nothing to tell apart."""
    if len(dataset.classes) < 2:
        found = f"{len(dataset.records)} usable clips of {len(dataset.classes)} classes"
        raise InvalidInputError(
            "\n".join([f"{dataset.source} has {found}", *problem_lines(dataset.problems)]),
            "labels of at least two classes",
            "check the column discrete (or label), or name the classes in [data]",
        )


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Refuses a folder that another process is filling: both would write the same names."""
    try:
        import fcntl  # not on every system
    except ModuleNotFoundError:
        yield
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = os.open(out, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise _unusable(out, error) from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process, however it ends
    except BlockingIOError:
        os.close(folder)
        raise InvalidInputError(
            f"another process is preparing {out}", "one at a time", "wait, or give another folder"
        ) from None
    try:
        yield
    finally:
        os.close(folder)


def _write(
    out: Path,
    recipe: Recipe,
    dataset: Dataset,
    splits: Sequence[str],
    learns: Sequence[bool],
    judges: Sequence[bool],
    remarks: Sequence[Problem],
) -> dict[str, Any]:
    """Decodes and writes what is missing of a claimed corpus; its card."""
    config, p = recipe.data, recipe.preprocessing
    wanted = [i for i, split in enumerate(splits) if split != UNLABELLED]
    taught = [learns[i] or splits[i] == "val" for i in wanted]
    parts = list(_parts([dataset.records[i] for i in wanted], taught, out, p))
    _decode(parts, config.workers)
    facts = [fact for part in parts for fact in _facts(part)]
    problems = [*dataset.problems, *remarks]
    problems += [found for fact in facts for found in problems_from(fact["problems"])]
    usable = {
        i: not any(q["lost"] for q in f["problems"]) for i, f in zip(wanted, facts, strict=True)
    }
    rows = [
        Taught(
            dataset.records[i],
            "val" if splits[i] == "val" else "train",
            dataset.classes.index(dataset.records[i].label or ""),
            fact["crops"],
            fact["samples"],
        )
        for i, fact, kept in zip(wanted, facts, taught, strict=True)
        if kept and usable[i]
    ]
    problems += _absent(rows)
    write_sets(out, rows, _pieces(parts, rows), Sizes(p.face_size, p.grid**2))
    write_sentences(out, rows)
    chosen = {i: splits[i] for i in wanted if usable[i] and (judges[i] or splits[i] != "train")}
    chosen |= {i: UNLABELLED for i, split in enumerate(splits) if split == UNLABELLED}
    for split in sorted(set(chosen.values())):
        own = [dataset.records[i] for i, s in chosen.items() if s == split]
        write_split(out / "clips" / split, [_settled(record, split) for record in own])
    card = _card(out, dataset, config, p, rows, chosen, problems, facts)
    shutil.rmtree(out / ".parts", ignore_errors=True)
    return card


def _absent(rows: Sequence[Taught]) -> list[Problem]:
    """What no clip of a split holds, so that the encoders of it cannot be trained."""
    found = []
    for split in SET_SPLITS:
        own = [row for row in rows if row.split == split]
        has = {
            "faces": any(row.crops for row in own),
            "sound": any(row.samples for row in own),
            "words": any(row.record.text for row in own),
        }
        for name in (name for name, there in has.items() if not there):
            detail = f"no clip of {split} has any: the stages that need it will refuse"
            found.append(Problem(f"no {name} at all", "", detail, lost=False))
    return found


def _settled(record: ClipRecord, split: str) -> ClipRecord:
    """The record with absolute paths, so that the corpus can be moved."""
    paths = {k: v.resolve() for k in ("path", "faces") if (v := getattr(record, k))}
    return replace(record, split=split, **paths)


def _claim(out: Path, dataset: Dataset, config: DataConfig, p: Preprocessing) -> None:
    """Notes whose corpus grows here, so that a resumed run cannot mix two."""
    clips = [
        r.to_json() | {"bytes": r.path.stat().st_size if r.path else 0} for r in dataset.records
    ]
    shaping = {k: v for k, v in asdict(config).items() if k != "workers"}
    constants = {name: getattr(p, name) for name in SHAPING}
    whole = canonical([clips, list(dataset.classes), shaping, constants])
    identity = hashlib.sha256(whole).hexdigest()[:32]
    note = out / "prepare.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        found = json.loads(note.read_text("utf-8")) if note.exists() else None
    except (OSError, ValueError) as error:
        raise _unusable(out, error) from None
    if found is None and any(out.iterdir()):
        raise InvalidInputError(
            f"{out} is not empty and was not written by merkit-train prepare",
            "a new or empty folder",
            "give another folder",
        )
    if found is not None and found.get("identity") != identity:
        raise InvalidInputError(
            f"{out} was prepared from other clips, labels or settings",
            "the same data, [data] and [preprocessing] as before",
            "remove the folder, or give another one",
        )
    told = {"identity": identity, "source": str(dataset.source), "config": asdict(config)}
    write_text(note, json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def _unusable(out: Path, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"{out} cannot be used ({error})", "a folder for the corpus", "give another folder"
    )


def _parts(
    records: Sequence[ClipRecord], taught: Sequence[bool], out: Path, p: Preprocessing
) -> Iterator[Part]:
    for start in range(0, len(records), PART):
        own = slice(start, start + PART)
        path = out / ".parts" / f"{start:08d}.npz"
        yield Part(path, tuple(records[own]), tuple(taught[own]), p)


def _decode(parts: Sequence[Part], workers: int) -> None:
    """Makes the parts that are not there yet."""
    todo = [part for part in parts if not part.path.exists()]
    total = sum(len(part.records) for part in parts)
    done = total - sum(len(part.records) for part in todo)
    if not todo:
        return
    todo[0].path.parent.mkdir(exist_ok=True)
    # a plain fork would copy the locks of whatever threads the caller has: cv2 then never returns
    clean = multiprocessing.get_context("forkserver")
    with (
        ProcessPoolExecutor(min(workers, len(todo)), clean, _quiet) as pool,
        tqdm(total=total, initial=done, desc="prepare", unit="clip") as bar,
    ):
        try:
            for made in as_completed([pool.submit(_make_part, part) for part in todo]):
                bar.update(made.result())
        except BrokenProcessPool as error:  # a plain Pool would wait for the dead forever
            raise InferenceError(
                f"a process that decodes died ({error})",
                "processes that live until the end",
                "give the same command again; with [data] workers = 1 there is more memory",
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its workers
    cv2.setNumThreads(1)


def _make_part(part: Part) -> int:
    """Decodes the clips of a part in a worker; how many."""
    facts, crops, sounds = [], [], []
    for record, kept in zip(part.records, part.taught, strict=True):
        found = read_evidence(record, part.preprocessing)
        shown = found.crops if kept and not found.lost else found.crops[:0]
        heard = found.waveform if kept and not found.lost else found.waveform[:0]
        crops.append(shown)
        sounds.append(np.round(heard * 32767).astype(np.int16))
        counts = {"crops": len(shown), "samples": len(heard)}
        facts.append(found.facts | counts | {"problems": plain(found.problems)})
    temporary = part.path.with_name(f".{part.path.name}.tmp")
    with temporary.open("wb") as file:
        np.savez(
            file,
            allow_pickle=False,
            facts=np.array(json.dumps(facts, ensure_ascii=False)),
            crops=np.concatenate(crops),
            sounds=np.concatenate(sounds),
        )
    temporary.replace(part.path)
    return len(part.records)


def _facts(part: Part) -> list[dict[str, Any]]:
    with np.load(part.path, allow_pickle=False) as loaded:
        facts: list[dict[str, Any]] = json.loads(str(loaded["facts"]))
    return facts


def _pieces(parts: Sequence[Part], rows: Sequence[Taught]) -> Iterator[tuple[Taught, Any, Any]]:
    """The arrays of the clips that teach, in order, a part in memory at a time."""
    waiting = iter(rows)
    clip = next(waiting, None)
    for part in parts:
        with np.load(part.path, allow_pickle=False) as loaded:
            facts = json.loads(str(loaded["facts"]))
            crops, sounds = loaded["crops"], loaded["sounds"]
        face = sample = 0
        for record, fact in zip(part.records, facts, strict=True):
            if clip is not None and clip.record.name == record.name:
                yield (
                    clip,
                    crops[face : face + fact["crops"]],
                    sounds[sample : sample + fact["samples"]],
                )
                clip = next(waiting, None)
            face, sample = face + fact["crops"], sample + fact["samples"]


def _card(
    out: Path,
    dataset: Dataset,
    config: DataConfig,
    p: Preprocessing,
    rows: Sequence[Taught],
    chosen: dict[int, str],
    problems: Sequence[Problem],
    facts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Writes report.txt, problems.jsonl and, last, card.json."""
    clips: dict[str, Counter[str]] = {}
    for i, split in chosen.items():
        clips.setdefault(split, Counter())[dataset.records[i].label or UNLABELLED] += 1
    kinds = Counter(problem.kind for problem in problems)
    files = sorted(path for path in out.rglob("*") if path.suffix in (".npy", ".csv", ".jsonl"))
    media = hashlib.sha256("".join(str(fact.get("sha256")) for fact in facts).encode())
    card = {
        "kind": "own data",
        "source": str(dataset.source),
        "labels": list(dataset.classes),
        "face_labels": list(dataset.classes),
        "counts": {f"clips/{split}": dict(tally) for split, tally in sorted(clips.items())}
        | {
            f"encoders/{split}": dict(Counter(r.record.label for r in rows if r.split == split))
            for split in ("train", "val")
        }
        | {"faces": sum(r.crops for r in rows), "utterances": sum(r.samples > 0 for r in rows)},
        "seconds": round(sum(fact.get("seconds") or 0 for fact in facts), 1),
        "problems": dict(kinds.most_common()),
        "config": asdict(config),
        "preprocessing": {name: getattr(p, name) for name in SHAPING},
        "sha256": {path.relative_to(out).as_posix(): sha256_file(path) for path in files}
        | {"media": media.hexdigest()},
    }
    lines = [json.dumps(asdict(problem), ensure_ascii=False) + "\n" for problem in problems]
    write_text(out / "problems.jsonl", "".join(lines))
    write_text(out / "report.txt", "\n".join(report_lines(card, problems)) + "\n")
    write_text(out / "card.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    return card


def report_lines(card: dict[str, Any], problems: Sequence[Problem]) -> list[str]:
    """What was made, and the problems by kind with the first clips of each."""
    lines = [f"classes: {', '.join(card['labels'])}"]
    for name, found in card["counts"].items():
        if isinstance(found, dict):
            shares = ", ".join(f"{label} {count}" for label, count in found.items())
            lines.append(f"{name}: {sum(found.values())} ({shares})")
        else:
            lines.append(f"{name}: {found}")
    return [*lines, *problem_lines(problems)]
