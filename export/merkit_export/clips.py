"""Whole clips through both worlds: media file in, answer out, torch against the loaded bundle.

Steps that agree one by one on made-up tensors could still be fed differently: another frame,
another resampler, another token. So each clip of a split is predicted twice from its file, by
`merkit.load` as a user would call it, and by the same client with torch behind it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

import merkit
from merkit.bundle import Bundle
from merkit.errors import InvalidInputError, MerkitError
from merkit_export.parity import THREADS, Answer, OutcomeParity
from merkit_export.reference import TorchBackend
from merkit_training.corpus import read_clips

NamedClip = tuple[str, Path, str]
"""Name, media file, transcript."""
SPLITS = ("test_multi", "test_semi", "test_noise")


def clips_of(corpus: Path, splits: Sequence[str], limit: int = 0) -> list[NamedClip]:
    """The clips of a corpus's splits, of each split at most `limit` (0: all).

    Raises:
        InvalidInputError: a split that does not exist, or is empty.
    """
    found = []
    for split in splits:
        clips = read_clips(corpus, split)
        found += [(f"{split}/{c.name}", c.path, c.text) for c in clips[: limit or None]]
    if not found:
        raise InvalidInputError(f"the splits {', '.join(splits)} hold no clips", "at least one")
    return found


def compare_clips(bundle: Bundle, run: Path, clips: Iterable[NamedClip]) -> OutcomeParity:
    """Predicts every clip with the run in torch and with the bundle, each through a client."""
    report = OutcomeParity()
    loaded = merkit.load(bundle.root, providers=["cpu"], threads=THREADS)
    with loaded, merkit.Client(TorchBackend(run)) as reference:
        for name, path, text in tqdm(clips, desc="parity", unit="clip", disable=None):
            report.add(name, *(_answer(c, path, text) for c in (reference, loaded)))
    return report


def _answer(client: merkit.Client, path: Path, text: str) -> Answer | str:
    try:
        prediction = client.predict(path, text)
    except MerkitError as error:
        return type(error).__name__
    return prediction.label, np.array(list(prediction.scores.values()), np.float32)
