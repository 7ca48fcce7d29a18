"""Feature extraction: what a clip lacks is marked, batches do not mix, a kill costs one part."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import odd_media
import pytest
import torch
from random_run import write_random_run
from synthetic_features import make_features

from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.corpus import Clip
from merkit_training.fusion import features
from merkit_training.fusion.config import FusionConfig
from merkit_training.fusion.dataset import JOINT_VIEWS, read_features
from merkit_training.fusion.features import Decoded, Encoder, extract
from merkit_training.fusion.model import load

SPLITS = ("train", "val", "test_multi")
TEXTS = ["Leave me alone!", "", "好的。"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def encode(run: Path) -> Encoder:
    return Encoder(run, Preprocessing())


def decoded(faces: int, seconds: float, seed: int = 0) -> Decoded:
    rng = np.random.default_rng(seed)
    crops = rng.integers(0, 256, (faces, 64, 64, 3)).astype(np.uint8)
    return Decoded(crops, (0.1 * rng.standard_normal(int(16_000 * seconds))).astype(np.float32))


def test_absent_modalities_are_marked_and_leave_zeros(encode: Encoder) -> None:
    found = encode([decoded(4, 1.0), decoded(0, 2.0), decoded(3, 0.0)], TEXTS)
    assert found["presence"].tolist() == [
        [True, True, True], [False, True, False], [True, False, True]
    ]  # fmt: skip
    assert not found["face_features"][1].any() and not found["face_features_large"][1].any()
    assert not found["audio_features"][2].any() and not found["text_features"][1].any()
    for name, rows in (("face_features", [0, 2]), ("audio_features", [0, 1])):
        assert found[name][rows].any(dim=1).all()


def test_joint_features_are_kept_for_every_view(encode: Encoder) -> None:
    views = encode([decoded(4, 1.0), decoded(0, 2.0), decoded(3, 0.0)], TEXTS)["joint_views"]
    both, audio, text = (JOINT_VIEWS.index(name) for name in ("both", "audio", "text"))
    assert not torch.allclose(views[0, both], views[0, audio])
    assert not torch.allclose(views[0, both], views[0, text])
    torch.testing.assert_close(views[1, both], views[1, audio], atol=1e-5, rtol=0)
    torch.testing.assert_close(views[2, both], views[2, text], atol=1e-5, rtol=0)
    assert not views[1, text].any() and not views[2, audio].any()


def test_neighbours_in_a_batch_change_nothing(encode: Encoder) -> None:
    clips = [decoded(4, 1.0, 1), decoded(1, 2.5, 2), decoded(0, 0.0, 3)]
    together = encode(clips, TEXTS)
    for i, (clip, text) in enumerate(zip(clips, TEXTS, strict=True)):
        for name, alone in encode([clip], [text]).items():
            torch.testing.assert_close(alone[0], together[name][i], atol=2e-5, rtol=0)


def write_csv(path: Path, header: str, rows: list[list[str]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header.split(","), *rows])


def write_clips(root: Path, split: str, count: int) -> None:
    """Sound files in the corpus's layout, every third of them silent."""
    folder = root / "clips" / split
    (folder / "video").mkdir(parents=True)
    for i in range(count):
        wave = odd_media.tone(0.5 + 0.1 * (i % 3)) * (i % 3 > 0)
        (folder / "video" / f"c{i}.mp4").write_bytes(odd_media.float_wav(wave))
    names = [f"c{i}" for i in range(count)]
    write_csv(folder / "labels.csv", "name,discrete", [[n, "angry"] for n in names])
    rows = [[n, "", TEXTS[0]] for n in names]
    write_csv(folder / "transcripts.csv", "name,chinese,english", rows)
    lines = [json.dumps({"name": n, "identity": 7, "subset": "mixed"}) for n in names]
    (folder / "truth.jsonl").write_text("\n".join(lines), "utf-8")


def test_a_killed_extraction_goes_on_where_it_was(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "PART", 2)
    for split in SPLITS:
        write_clips(tmp_path, split, 5)
    recipe: Any = SimpleNamespace(preprocessing=Preprocessing(), fusion=FusionConfig(batch_clips=2))
    decode, seen = Encoder.decode, []

    def dies_at_the_last(self: Encoder, clip: Clip) -> Decoded:
        seen.append(clip.name)
        if clip.name == "c4" and seen.count("c4") == 1:
            raise KeyboardInterrupt
        return decode(self, clip)

    monkeypatch.setattr(Encoder, "decode", dies_at_the_last)
    with pytest.raises(KeyboardInterrupt):
        extract(recipe, tmp_path, run)
    shares = extract(recipe, tmp_path, run)
    assert seen.count("c0") == len(SPLITS) and seen.count("c4") == 1 + len(SPLITS)
    assert shares["train_audio"] == pytest.approx(3 / 5) and shares["val_video"] == 0
    train = read_features(run / "features" / "train")
    assert train.names == ("c0", "c1", "c2", "c3", "c4") and train.identities == ("7",) * 5
    assert train.labels.tolist() == [1] * 5
    assert not (run / "features" / "train" / "parts").exists()
    scores, _ = load(run)(*train.inputs())
    torch.testing.assert_close(scores.sum(dim=2), torch.ones(5, 4))


@pytest.mark.parametrize("file", ["features.safetensors", "clips.json"])
def test_damaged_features_are_told(tmp_path: Path, file: str) -> None:
    make_features(4).save(tmp_path)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(BundleCorruptError, match=file):
        read_features(tmp_path)
    path.unlink()
    with pytest.raises((BundleCorruptError, InvalidInputError)):
        read_features(tmp_path)
