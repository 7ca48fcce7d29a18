"""Reads the synthetic corpus, and MER's own label files, without ever unpickling blindly.

Encoders read the single-modality sets as memory maps; fusion and the reports read clips. MER's
`label-6way.npz` holds pickled dictionaries, and a pickle can run anything, so those are read by
an unpickler that admits dictionaries, strings and numpy scalars alone.

Layout (written by merkit_training.synth):
    faces/      images.npy uint8 [n,64,64,3] RGB, labels.npy int64 (FACE8), split.npy int8,
                units.npy float32 [n,10] (the generator's action units, as drawn)
    sequences/  images.npy uint8 [n,4,64,64,3], labels.npy (MER6), split.npy, units.npy [n,4,10]
    utterances/ waveforms.npy int16 [n,samples] right padded, lengths.npy int64, labels.npy (MER6),
                prosody.npy float32 [n,8] standardised, split.npy, table.csv
    sentences/  table.csv (text, discrete, language, category, split)
    clips/SPLIT/ video/NAME.mp4, labels.csv, label-6way.npz, transcripts.csv, truth.jsonl
`split.npy` indexes SET_SPLITS.

`merkit_training.data.prepare` writes the same of own clips, with classes of its own (in card.json),
without what only a generator knows (units, prosody, truth), with the splits that there are, and
with clips/SPLIT/clips.jsonl (one `data.records.ClipRecord` a line) in place of video/.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit_training.labels import alias, classes_of

if TYPE_CHECKING:
    from merkit_training.data.records import ClipRecord

SET_SPLITS = ("train", "val")
CLIP_SPLITS = ("train", "val", "test_multi", "test_semi", "test_noise", "unlabelled")
FACE_SIDE = 64
TILES = 4
REGENERATE = "write the corpus with: merkit-train synth DIR, or merkit-train prepare MY.csv"


@dataclass(frozen=True)
class ArraySet:
    """One of the sets `faces`, `sequences`, `utterances`: arrays [n, ...] by file name."""

    arrays: Mapping[str, NDArray[Any]]  # memory maps, read-only
    split: NDArray[np.int8]

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name]

    def indices(self, split: str) -> NDArray[np.int64]:
        """Sample numbers of `train` or `val`."""
        return np.flatnonzero(self.split == SET_SPLITS.index(split))


@dataclass(frozen=True)
class Clip:
    """A talking clip. `label` is None in the split `unlabelled`."""

    name: str
    path: Path | None  # None: no media file; words, or faces, alone
    label: int | None  # of `labels.classes_of` the corpus
    text: str
    language: str
    truth: Mapping[str, Any]  # of synthetic clips alone
    group: str = ""  # the speaker or source video; "" if unknown
    record: ClipRecord | None = None  # of own clips alone


def open_set(root: Path, name: str) -> ArraySet:
    """Maps the arrays of `faces`, `sequences` or `utterances`.

    Raises:
        InvalidInputError: the set is missing, incomplete or malformed.
    """
    folder = root / name
    if (root / "clips").is_dir() and not folder.is_dir() and (root / "report.txt").is_file():
        raise InvalidInputError(
            f"no clip of {root} has anything for the set {name!r}",
            "clips with a face, sound and words in train and val, for every encoder",
            f"see {root / 'report.txt'}, add such clips and prepare again",
        )
    if not (folder / "split.npy").is_file():
        raise InvalidInputError(f"{folder} holds no split.npy", "a complete set", REGENERATE)
    try:
        arrays = {
            path.stem: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob("*.npy"))
        }
    except ValueError as error:
        raise InvalidInputError(f"{folder}: {error}", "numpy arrays", REGENERATE) from None
    counts = {key: len(array) for key, array in arrays.items()}
    if len(set(counts.values())) != 1:
        raise InvalidInputError(
            f"the arrays of {folder} have {counts} rows", "equal numbers of rows", REGENERATE
        )
    split = np.asarray(arrays.pop("split"))
    return ArraySet(arrays, split)


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file (UTF-8, a header line) by column name."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        raise InvalidInputError(f"there is no {path}", "a CSV file", REGENERATE) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{path}: {error}", "a CSV file in UTF-8", REGENERATE) from None


def read_sentences(root: Path, split: str) -> list[dict[str, str]]:
    """Rows (text, discrete, language, category, split) of the sentences of `train` or `val`."""
    return [r for r in read_table(root / "sentences" / "table.csv") if r["split"] == split]


def clip_splits(root: Path) -> tuple[str, ...]:
    """The splits of clips that a corpus has, the synthetic corpus's in its order first."""
    folder = root / "clips"
    found = {f.name for f in folder.iterdir() if f.is_dir()} if folder.is_dir() else set()
    return in_split_order(found)


def in_split_order(splits: Iterable[str]) -> tuple[str, ...]:
    """Distinct splits, those of CLIP_SPLITS in its order, then others by the alphabet."""
    order = {name: i for i, name in enumerate(CLIP_SPLITS)}
    return tuple(sorted(set(splits), key=lambda name: (order.get(name, len(order)), name)))


def read_clips(root: Path, split: str) -> list[Clip]:
    """The clips of a split, in order of name.

    Raises:
        InvalidInputError: an unknown split, or a missing or malformed file.
    """
    folder, classes = root / "clips" / split, classes_of(root)
    known = clip_splits(root) or CLIP_SPLITS
    if split not in known:
        expected = f"one of {', '.join(known)}"
        raise InvalidInputError(f"the split {split!r} is unknown", expected, "correct it")
    if (folder / "clips.jsonl").is_file():
        clips = [_own_clip(value, classes, folder) for value in read_lines(folder / "clips.jsonl")]
    else:
        clips = _drawn_clips(folder, classes, labelled=split != "unlabelled")
    return sorted(clips, key=lambda clip: clip.name)


def _own_clip(value: Mapping[str, Any], classes: Sequence[str], folder: Path) -> Clip:
    from merkit_training.data.records import ClipRecord

    try:
        record = ClipRecord.from_json(value)
        label = None if record.label is None else classes.index(record.label)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{folder / 'clips.jsonl'} is malformed ({error})",
            "what merkit-train prepare wrote",
            "prepare the corpus again",
        ) from None
    return Clip(
        record.name, record.path, label, record.text, record.language, {}, record.group, record
    )


def _drawn_clips(folder: Path, classes: Sequence[str], *, labelled: bool) -> list[Clip]:
    """Clips in MER's files; truth.jsonl beside them only if they were drawn."""
    rows = read_table(folder / "transcripts.csv")
    drawn = (folder / "truth.jsonl").is_file()
    truths = {t["name"]: t for t in read_lines(folder / "truth.jsonl")} if drawn else {}
    labels = read_labels(folder / "labels.csv") if labelled else {}
    clips = []
    for row in rows:
        name, language = row["name"], "zh" if row["chinese"] else "en"
        text = row["chinese"] or row["english"]
        if (drawn and name not in truths) or (labelled and name not in labels):
            expected = "each clip in labels.csv and truth.jsonl"
            raise InvalidInputError(f"{folder} says nothing of {name}", expected, REGENERATE)
        truth = truths.get(name, {})
        label = classes.index(labels[name]) if labelled else None
        path, group = folder / "video" / f"{name}.mp4", str(truth.get("identity", ""))
        clips.append(Clip(name, path, label, text, language, truth, group))
    return clips


def read_labels(path: Path) -> dict[str, str]:
    """Canonical labels by clip name, from MER's CSV (`name,discrete`) or `label-6way.npz`.

    Raises:
        InvalidInputError: missing columns, an unknown label, or a pickle that holds more than
            dictionaries, strings and numpy scalars.
    """
    if path.suffix == ".npz":
        found = {}
        for corpus in read_mer_npz(path).values():
            found.update({name: alias(str(entry["emo"])) for name, entry in corpus.items()})
        return found
    rows = read_table(path)
    if rows and not {"name", "discrete"} <= set(rows[0]):
        raise InvalidInputError(
            f"{path} has the columns {list(rows[0])}", "name,discrete", "correct the label file"
        )
    return {row["name"]: alias(row["discrete"]) for row in rows}


def read_mer_npz(path: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """MER's `label-6way.npz`: {corpus: {clip: {"emo": ..., "val": ...}}}; nothing is executed.

    Raises:
        InvalidInputError: not such a file, or one that asks for anything but plain values.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [n for n in archive.namelist() if n.endswith(".npy")]
            loaded = {n[:-4]: _plain_object(archive.read(n)) for n in members}
    except (OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as error:
        raise InvalidInputError(
            f"{path} cannot be read safely ({error})",
            "an .npz of dictionaries of strings and numbers, as MERTools writes them",
            "use the label file in CSV form",
        ) from None
    for corpus in loaded.values():
        if not isinstance(corpus, dict) or not all(isinstance(e, dict) for e in corpus.values()):
            raise InvalidInputError(
                f"{path} holds {type(corpus).__name__}", "dictionaries by clip name", "correct it"
            )
    return loaded


class _PlainUnpickler(pickle.Unpickler):
    """Admits what MERTools' files need: dictionaries, strings, numpy scalars and their arrays."""

    ADMITTED = frozenset({"dtype", "ndarray", "_reconstruct", "scalar"})

    def find_class(self, module: str, name: str) -> Any:
        numpy_core = module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if not numpy_core or name not in self.ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        if name in ("dtype", "ndarray"):
            return getattr(np, name)
        return getattr(import_module("numpy._core.multiarray"), name)


def _plain_object(data: bytes) -> Any:
    """The object in the bytes of a .npy file whose single element is a pickled object."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in read:
        raise ValueError(f"a .npy of version {version}")
    shape, _, dtype = read[version](file)
    if not dtype.hasobject or shape != ():
        raise ValueError(f"an array {shape} of {dtype} instead of one dictionary")
    try:
        content = _PlainUnpickler(file).load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a malformed pickle raises almost anything
        raise ValueError(f"malformed pickle: {error}") from None
    return content.item() if isinstance(content, np.ndarray) else content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON objects, one a line; InvalidInputError where the file is missing or damaged."""
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    except FileNotFoundError:
        raise InvalidInputError(f"there is no {path}", "a complete corpus", REGENERATE) from None
    except ValueError as error:
        raise InvalidInputError(f"{path}: {error}", "a JSON object a line", REGENERATE) from None
