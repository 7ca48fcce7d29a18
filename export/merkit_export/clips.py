"""Whole clips through both worlds: media file in, answer out, torch against the loaded bundle.

Steps that agree one by one on made-up tensors could still be fed differently: another frame,
another resampler, another token. So each clip of a split is predicted twice from its file, by
`merkit.load` as a user would call it, and by the same client with torch behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import merkit
from merkit.bundle import Bundle
from merkit.entry import decoded_entry
from merkit.errors import InvalidInputError, MerkitError
from merkit.media.limits import Limits
from merkit_export.outcome import Answer, OutcomeParity
from merkit_export.parity import THREADS
from merkit_export.reference import TorchBackend
from merkit_export.tolerance import Budget
from merkit_training.corpus import read_labels, read_table

STEP_CLIPS = 16
"""Of each set, on which single steps are compared: what differs there differs early."""
LABELS = ("labels.csv", "label-6way.npz")


class NamedClip(NamedTuple):
    """A clip of a set; `truth` is its class, "" where nobody says."""

    name: str
    path: Path
    text: str = ""
    truth: str = ""


def clips_of(folder: Path, classes: Sequence[str], limit: int = 0) -> list[NamedClip]:
    """The media files in `folder/video`, with their words of `folder/transcripts.csv`, and their
    classes of `folder/labels.csv` (`name,discrete`) or MER's `label-6way.npz`.

    Args:
        folder: a split of a corpus in MER's layout; the transcripts' columns are `name` and
            `chinese` or `english`.
        classes: of the bundle; labels of other classes do not count.
        limit: at most so many clips, the first by name; 0: all.

    Raises:
        InvalidInputError: no such folder, no clips in it, or a label file that cannot be read.
    """
    videos = folder / "video"
    paths = sorted(p for p in videos.iterdir() if p.is_file()) if videos.is_dir() else []
    if not paths:
        raise InvalidInputError(
            f"{videos} holds no clips" if videos.is_dir() else f"there is no folder {videos}",
            "a folder with media files in its subfolder video",
            "give a split of a corpus, such as data/tiny/clips/test_multi",
        )
    table = folder / "transcripts.csv"
    rows = read_table(table) if table.exists() else []
    texts = {row["name"]: row.get("chinese") or row.get("english") or "" for row in rows}
    truths = _labels(folder, classes)
    return [
        NamedClip(path.stem, path, texts.get(path.stem, ""), truths.get(path.stem, ""))
        for path in paths[: limit or None]
    ]


def _labels(folder: Path, classes: Sequence[str]) -> dict[str, str]:
    table = next((folder / name for name in LABELS if (folder / name).is_file()), None)
    if table is None:
        return {}
    if table.suffix == ".csv":  # of one's own classes, which have no other spellings
        rows = read_table(table)
        own = {row["name"]: row.get("discrete") or "" for row in rows}
        if all(label in classes for label in own.values()):
            return own
    return {name: label for name, label in read_labels(table).items() if label in classes}


def decoded_clips(bundle: Bundle, clips: Sequence[NamedClip]) -> list[Mapping[str, NDArray[Any]]]:
    """The first `STEP_CLIPS` of the clips as `pipeline.DECODED_IN`; those that cannot be decoded
    are left out: the whole pipeline is compared on them too."""
    decoded: list[Mapping[str, NDArray[Any]]] = []
    chosen = list(clips[:STEP_CLIPS])
    for clip in [*chosen, *(_heard(chosen) if bundle.contract.hearing else ())]:
        request = merkit.Clip(clip.path, clip.text)
        try:
            entry = decoded_entry(request, bundle.contract.preprocessing, Limits(), None, False)
        except MerkitError:
            continue
        decoded.append(entry.tensors)
    return decoded


def compare_clips(
    bundle: Bundle, run: Path, clips: Sequence[NamedClip], budget: Budget | None = None
) -> OutcomeParity:
    """Predicts every clip with the run in torch and with the bundle, each through a client.

    `budget` is what the bundle's answers may cost; None: they must be the same.
    """
    report = OutcomeParity(bundle.contract.labels, budget)
    clips = [*clips, *(_heard(clips) if bundle.contract.hearing else ())]
    requests = [merkit.Clip(clip.path, clip.text) for clip in clips]
    loaded = merkit.load(bundle.root, providers=["cpu"], threads=THREADS, allow_unreleasable=True)
    with loaded, merkit.Client(TorchBackend(run)) as reference:
        pairs = zip(reference.predict_many(requests), loaded.predict_many(requests), strict=True)
        progress = tqdm(pairs, desc="parity", total=len(clips), unit="clip", disable=None)
        for clip, (want, got) in zip(clips, progress, strict=True):
            report.add(clip.name, _answer(want), _answer(got), clip.truth)
    return report.close()


def _heard(clips: Sequence[NamedClip]) -> list[NamedClip]:
    """The first clips once more without their words, which then are recognised. What is true of
    them with their words is not known to be true without."""
    worded = [clip for clip in clips[:STEP_CLIPS] if clip.text.strip()]
    return [NamedClip(f"{clip.name} (heard)", clip.path) for clip in worded]


def _answer(found: merkit.Prediction | MerkitError) -> Answer | str:
    if isinstance(found, MerkitError):
        return type(found).__name__
    return found.label, np.array(list(found.scores.values()), np.float32)
