"""A pool that is given as a corpus is read with the run's own encoders, part by part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merkit.contract import MODALITIES
from merkit.errors import InvalidInputError
from merkit_training.data.records import ClipRecord
from merkit_training.fusion.dataset import FeatureSet, join, read_features
from merkit_training.mining import extract
from merkit_training.mining.pool import Pool, feature_folders

WORDS = ("it rains", "look at that", "no", "what a day", "go away")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Five unlabelled clips of words alone."""
    folder = tmp_path / "corpus" / "clips" / "unlabelled"
    folder.mkdir(parents=True)
    records = [ClipRecord(f"c{i}", text=text, language="en") for i, text in enumerate(WORDS)]
    lines = [json.dumps(record.to_json()) + "\n" for record in records]
    (folder / "clips.jsonl").write_text("".join(lines))
    return tmp_path / "corpus"


def test_parts_resume_and_make_one_pool(
    corpus: Path, random_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "CLIPS_A_PART", 2)
    plain, calls = extract.extract_split, []

    def once(*args: Any) -> None:
        if len(calls) == 1:
            raise KeyboardInterrupt
        calls.append(args)
        plain(*args)

    monkeypatch.setattr(extract, "extract_split", once)
    with pytest.raises(KeyboardInterrupt):
        extract.extract_pool(random_run, corpus, tmp_path / "pool", half=True)
    monkeypatch.setattr(extract, "extract_split", plain)
    parts = extract.extract_pool(random_run, corpus, tmp_path / "pool", half=True)
    assert feature_folders(tmp_path / "pool") == parts
    assert [len(read_features(part)) for part in parts] == [2, 2, 1]
    whole = extract.extract_pool(random_run, corpus, tmp_path / "whole")
    monkeypatch.setattr(extract, "CLIPS_A_PART", 9)
    data: FeatureSet = join([read_features(part) for part in whole])
    assert data.names == ("c0", "c1", "c2", "c3", "c4")
    assert data.labels.tolist() == [-1] * 5
    assert data.presence.sum(dim=0).tolist() == [5 * (m == "text") for m in MODALITIES]
    pool = Pool(parts, data.widths())
    assert pool.stored("t") is torch.float16
    found = torch.from_numpy(pool.read("t", pool.numbers(data.names))).float()
    assert torch.allclose(found, data.groups["t"], atol=1e-2)
    assert found.std(dim=0).max() > 0  # the words make a difference


def test_a_corpus_without_unlabelled_clips_is_refused(random_run: Path, tmp_path: Path) -> None:
    (tmp_path / "clips" / "train").mkdir(parents=True)
    with pytest.raises(InvalidInputError, match="neither features nor clips/unlabelled"):
        extract.extract_pool(random_run, tmp_path, tmp_path / "pool")
