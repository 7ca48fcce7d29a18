"""Whole clips through both worlds: media file in, answer out, torch against the loaded bundle.

Steps that agree one by one on made-up tensors could still be fed differently: another frame,
another resampler, another token. So each clip of a split is predicted twice from its file, by
`merkit.load` as a user would call it, and by the same client with torch behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import merkit
from merkit.bundle import Bundle
from merkit.errors import InvalidInputError, MerkitError
from merkit_export.parity import THREADS, Answer, OutcomeParity
from merkit_export.reference import TorchBackend
from merkit_training.corpus import read_table

NamedClip = tuple[str, Path, str]
"""Name, media file, transcript."""


def clips_of(folder: Path, limit: int = 0) -> list[NamedClip]:
    """The media files in `folder/video`, with their words of `folder/transcripts.csv`.

    Args:
        folder: a split of a corpus in MER's layout; the transcripts' columns are `name` and
            `chinese` or `english`.
        limit: at most so many clips, the first by name; 0: all.

    Raises:
        InvalidInputError: no such folder, or no clips in it.
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
    return [(path.stem, path, texts.get(path.stem, "")) for path in paths[: limit or None]]


def compare_clips(bundle: Bundle, run: Path, clips: Sequence[NamedClip]) -> OutcomeParity:
    """Predicts every clip with the run in torch and with the bundle, each through a client."""
    report = OutcomeParity()
    requests = [merkit.Clip(path, text) for _, path, text in clips]
    loaded = merkit.load(bundle.root, providers=["cpu"], threads=THREADS)
    with loaded, merkit.Client(TorchBackend(run)) as reference:
        pairs = zip(reference.predict_many(requests), loaded.predict_many(requests), strict=True)
        progress = tqdm(pairs, desc="parity", total=len(clips), unit="clip", disable=None)
        for (name, _, _), (want, got) in zip(clips, progress, strict=True):
            report.add(name, _answer(want), _answer(got))
    return report


def _answer(found: merkit.Prediction | MerkitError) -> Answer | str:
    if isinstance(found, MerkitError):
        return type(found).__name__
    return found.label, np.array(list(found.scores.values()), np.float32)
