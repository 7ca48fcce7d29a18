"""A pool on disk reads as it would in memory, and a faulty one is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mining_run import clips, named
from safetensors.torch import load_file, save_file

from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS
from merkit_training.fusion.dataset import FeatureSet, join
from merkit_training.mining import pool as pools
from merkit_training.mining.exclude import REASONS, exclusions, tally
from merkit_training.mining.extract import halved
from merkit_training.mining.learners import training_set
from merkit_training.mining.pool import Pool

WIDTHS = dict.fromkeys("atvjV", 6)


@pytest.fixture
def data() -> FeatureSet:
    return clips("pool", 40, 7)


@pytest.fixture
def folder(data: FeatureSet, tmp_path: Path) -> Path:
    data.save(tmp_path / "pool")
    return tmp_path / "pool"


def retold(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "features.safetensors")
    change(tensors)
    save_file(tensors, folder / "features.safetensors")


@pytest.mark.parametrize("block", [1, 2**26])
def test_blocks_of_several_parts_equal_the_whole(
    data: FeatureSet, tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "GATHERED_BYTES", block)
    first, second = torch.arange(15), torch.arange(15, 40)
    data.select(first).save(tmp_path / "a")
    data.select(second).save(tmp_path / "b")
    pool = Pool([tmp_path / "a", tmp_path / "b"], WIDTHS)
    rows = np.array([39, 0, 15, 14, 3])
    chosen = torch.from_numpy(rows)
    found = pool.features(rows)
    expected = data.features(chosen, data.presence[chosen])
    assert pool.names == data.names
    for group in GROUPS:
        assert torch.equal(found[group], expected[group])


def test_a_training_set_is_labels_then_pseudo_labels_in_the_pools_precision(
    data: FeatureSet, tmp_path: Path
) -> None:
    halved(data).save(tmp_path / "half")
    pool, labelled = Pool([tmp_path / "half"], WIDTHS), clips("train", 10, 1)
    rows = np.array([2, 30])
    found = training_set(labelled, pool, rows, np.array([5, 0], np.int8), ["a", "j"])
    whole = join([labelled, data.select(torch.from_numpy(rows))])
    everything = torch.arange(12)
    mine = found.features(everything, found.presence)
    theirs = whole.features(everything, whole.presence)
    assert found.groups["a"].dtype is found.groups["j"].dtype is torch.float16
    assert found.labels.tolist() == [*labelled.labels.tolist(), 5, 0]
    assert found.names == whole.names
    for group in ("a", "j"):
        assert torch.allclose(mine[group], theirs[group], atol=1e-2)
    assert found.widths() == {"a": 6, "t": 1, "v": 1, "j": 6, "V": 1}


def test_half_precision_refuses_what_it_cannot_hold(data: FeatureSet) -> None:
    data.groups["a"][3, 0] = 1e6
    with pytest.raises(InvalidInputError, match=r"audio_features.*beyond 65504"):
        halved(data)


def test_absent_groups_are_fine_where_no_clip_has_what_they_read(folder: Path) -> None:
    def deaf(tensors: dict[str, torch.Tensor]) -> None:
        tensors["presence"][:, 0] = False
        del tensors["face_features"], tensors["face_features_large"]

    retold(folder, deaf)
    found = Pool([folder], WIDTHS).features(np.arange(40))
    assert found["v"].shape == (40, 6)
    assert not found["v"].any()


def faults() -> dict[str, tuple[Callable[[Path], None], str]]:
    def twice(folder: Path) -> None:
        texts = json.loads((folder / "clips.json").read_text())
        texts["names"][1] = texts["names"][0]
        (folder / "clips.json").write_text(json.dumps(texts))

    def cut(folder: Path) -> None:
        content = (folder / "features.safetensors").read_bytes()
        (folder / "features.safetensors").write_bytes(content[:-10])

    def fewer(folder: Path) -> None:
        texts = json.loads((folder / "clips.json").read_text())
        texts["names"].pop()
        (folder / "clips.json").write_text(json.dumps(texts))

    def wider(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text_features"] = torch.zeros(40, 7)

    def double(tensors: dict[str, torch.Tensor]) -> None:
        tensors["text_features"] = tensors["text_features"].double()

    return {
        "names twice": (twice, "more than once, such as pool_0000"),
        "cut off": (cut, "no readable features"),
        "one name fewer": (fewer, "a row for each of the 39 clips"),
        "no clips.json": (lambda f: (f / "clips.json").unlink(), "no readable features"),
        "another width": (lambda f: retold(f, wider), "7 wide as text_features"),
        "float64": (lambda f: retold(f, double), "F64 6 wide"),
        "no audio": (lambda f: retold(f, lambda t: t.pop("audio_features")), "no audio_features"),
        "no presence": (lambda f: retold(f, lambda t: t.pop("presence")), "no readable features"),
        "garbage": (lambda f: (f / "features.safetensors").write_bytes(b"x" * 99), "no readable"),
    }


@pytest.mark.parametrize("fault", faults())
def test_a_faulty_pool_is_refused(folder: Path, fault: str) -> None:
    spoil, message = faults()[fault]
    spoil(folder)
    with pytest.raises(InvalidInputError, match=message):
        Pool([folder], WIDTHS)


def test_an_empty_pool_is_refused(data: FeatureSet, tmp_path: Path) -> None:
    data.select(torch.arange(0)).save(tmp_path / "empty")
    with pytest.raises(InvalidInputError, match="the pool is empty"):
        Pool([tmp_path / "empty"], WIDTHS)


def test_features_that_are_not_finite_are_refused_where_they_are_read(
    data: FeatureSet, folder: Path
) -> None:
    heard = data.presence[:, 1].nonzero()[:, 0]

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        tensors["audio_features"][heard[0]] = torch.nan

    retold(folder, spoil)
    with pytest.raises(InvalidInputError, match=f"not finite, as of {data.names[heard[0]]}"):
        Pool([folder], WIDTHS).features(np.arange(40))


@pytest.mark.parametrize("half", [False, True])
def test_test_clips_and_labelled_ones_are_found_by_name_and_by_content(
    data: FeatureSet, tmp_path: Path, half: bool
) -> None:
    labelled, test = clips("train", 50, 1), clips("test", 50, 2)
    renamed = named(test.select(torch.tensor([4, 5, 6])), "else")
    rewritten = replace(
        data.select(torch.arange(2)), names=("test_0007", "train_0001")
    )  # other contents under known names
    nothing = replace(
        named(data.select(torch.tensor([9])), "empty"), presence=torch.zeros(1, 3, dtype=torch.bool)
    )
    taught = named(labelled.select(torch.tensor([3])), "again")
    whole = join([data, renamed, rewritten, nothing, taught])
    (halved(whole) if half else whole).save(tmp_path / "pool")
    pool = Pool([tmp_path / "pool"], WIDTHS)
    codes = exclusions(pool, [labelled], [test], transductive=False)
    reasons = dict(zip(pool.names, [REASONS[i] for i in codes], strict=True))
    assert all(reasons[name] == "asked" for name in data.names)
    assert {reasons[name] for name in renamed.names} == {"test clips by content"}
    assert reasons["test_0007"] == "test clips by name"
    assert reasons["train_0001"] == "labelled clips by name"
    assert reasons["again_0000"] == "labelled clips by content"
    assert reasons["empty_0000"] == "clips without any evidence"
    assert tally(codes)["asked"] == 40
    kept = exclusions(pool, [labelled], [test], transductive=True)
    assert tally(kept)["asked"] == 44
    shutil.rmtree(tmp_path / "pool")
