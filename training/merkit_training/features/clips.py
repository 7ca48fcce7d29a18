"""Which clips there are, and the key under which what an encoder said of one is kept.

Extraction runs for hours and is repeated: after a kill, with more clips, under another name. A
clip is therefore known by its content, never by its path: only what an encoder reads of it goes
into the key, so that a text encoder does not care which video the words came with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.bundle import sha256_file
from merkit.contract import canonical
from merkit.errors import InvalidInputError, MerkitError
from merkit_training.corpus import read_table
from merkit_training.data import ClipRecord, read_dataset
from merkit_training.data.files import RANK

if TYPE_CHECKING:
    from merkit_training.features.extractor import Extractor

FORMAT = 1
"""Part of every key: raise it when the meaning of a cached feature changes."""
BESIDE = frozenset({".csv", ".json", ".jsonl", ".npz", ".txt", ".md", ".toml"})
"""Suffixes of tables that lie beside clips; any other file that is no media is reported."""
TEXT_COLUMNS = ("text", "chinese", "english")


@dataclass(frozen=True)
class ClipList:
    """The clips of a source in order of name, and what of it is no clip."""

    clips: tuple[ClipRecord, ...]
    problems: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by name


@dataclass(frozen=True)
class Job:
    """What is computed once, however many clips have this content."""

    key: str
    clip: ClipRecord


def list_clips(source: Path, texts: Path | None = None, faces: Path | None = None) -> ClipList:
    """The clips of a folder of media, of a data set's folder, or of a manifest.

    Args:
        source: a folder whose files are clips, named by their stems; or whatever
            `merkit_training.data.read_dataset` reads.
        texts: a CSV of transcripts: `name` and one of `text`, `chinese`, `english`.
        faces: a folder of `<name>/<name>.npy` or `<name>.npy`, as OpenFace's for MER.

    Raises:
        InvalidInputError: nothing is there, or a table is malformed.
    """
    if source.is_dir() and any(_is_media(path) for path in source.iterdir()):
        listed = _folder(source)
    else:
        listed = _dataset(source)
    if faces is not None and not faces.is_dir():
        raise InvalidInputError(f"there is no folder {faces}", "faces", "check the path of --faces")
    words = _texts(texts) if texts else {}
    problems = dict(listed.problems)
    names = {clip.name for clip in listed.clips}
    problems |= {name: ("no clip of this name",) for name in sorted(words.keys() - names)}
    clips = tuple(
        replace(
            clip,
            text=words.get(clip.name, clip.text),
            faces=_faces(faces, clip.name) if faces else clip.faces,
        )
        for clip in listed.clips
    )
    return ClipList(clips, problems)


def clip_key(clip: ClipRecord, extractor: Extractor) -> str:
    """The key of an encoder's feature of a clip: 64 hexadecimal digits.

    Raises:
        InvalidInputError: a file that the encoder reads is missing.
    """
    content: dict[str, str] = {}
    reads = extractor.reads_of(clip)
    if "text" in reads:
        content["text"] = clip.text.strip()
    given_faces = "video" in reads and not extractor.pictures and clip.faces is not None
    if given_faces:
        content["faces"] = _hash(clip.faces)
    if "audio" in reads or ("video" in reads and not given_faces):
        if clip.path is None and "text" in reads and clip.text.strip():
            content["clip"] = ""  # words alone: an encoder of sound and words goes on without
        else:
            content["clip"] = f"{_hash(clip.path)} {clip.start} {clip.end}"
    told = {"format": FORMAT, "encoder": extractor.fingerprint, "content": content}
    return hashlib.sha256(canonical(told)).hexdigest()


def to_jobs(
    clips: Iterable[ClipRecord], key_of: Callable[[ClipRecord], str]
) -> tuple[dict[str, str], dict[str, str], list[Job]]:
    """Keys by clip name, errors by clip name, and the jobs: each content once."""
    keys: dict[str, str] = {}
    failed: dict[str, str] = {}
    jobs: dict[str, Job] = {}
    for clip in clips:
        try:
            key = key_of(clip)
        except MerkitError as error:
            failed[clip.name] = error.found
            continue
        keys[clip.name] = key
        jobs.setdefault(key, Job(key, clip))
    return keys, failed, list(jobs.values())


def _folder(folder: Path) -> ClipList:
    clips: dict[str, ClipRecord] = {}
    problems: dict[str, tuple[str, ...]] = {}
    files = (path for path in folder.iterdir() if path.is_file())
    for path in sorted(files, key=lambda p: (RANK.get(p.suffix.lower(), 0), p.name)):
        if not _is_media(path):
            if path.suffix.lower() not in BESIDE and not path.name.startswith("."):
                problems[path.name] = ("not a media file by its name; not read",)
        elif path.stem in clips:
            first = clips[path.stem].path
            problems[path.name] = (f"has the name of {first.name if first else ''}; not read",)
        else:
            clips[path.stem] = ClipRecord(path.stem, path)
    return ClipList(tuple(clips[name] for name in sorted(clips)), problems)


def _dataset(source: Path) -> ClipList:
    found = read_dataset(source)
    clips = tuple(sorted(found.records, key=lambda record: record.name))
    problems: dict[str, tuple[str, ...]] = {}
    for problem in found.problems:
        if not problem.name and not problem.lost:
            continue  # advice for training, such as on speakers
        told = f"{problem.kind} ({problem.detail})" if problem.detail else problem.kind
        name = problem.name or str(source)
        problems[name] = (*problems.get(name, ()), told)
    return ClipList(clips, problems)


def _texts(path: Path) -> dict[str, str]:
    rows = read_table(path)
    columns = set(rows[0]) if rows else {"name", "text"}
    if "name" not in columns or not columns & set(TEXT_COLUMNS):
        raise InvalidInputError(
            f"{path} has the columns {sorted(map(str, columns))}",
            f"name and one of {', '.join(TEXT_COLUMNS)}",
            "correct the header line",
        )
    return {
        row["name"]: next((row[c] for c in TEXT_COLUMNS if row.get(c)), "")
        for row in rows
        if row["name"]
    }


def _faces(folder: Path, name: str) -> Path | None:
    for path in (folder / name / f"{name}.npy", folder / f"{name}.npy"):
        if path.is_file():
            return path
    return None


def _is_media(path: Path) -> bool:
    return path.suffix.lower() in RANK and path.is_file()


def _hash(path: Path | None) -> str:
    if path is None:
        raise InvalidInputError("there is no file for this clip")
    try:
        return sha256_file(path)
    except OSError as error:
        raise InvalidInputError(f"{path.name} cannot be read ({error.strerror})") from None
