"""Feature folders are read back, and every faulty feature is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from merkit.errors import InvalidInputError
from merkit_training.features.extractor import Feature
from merkit_training.features.mertools import read_mertools, write_feature


@pytest.fixture
def written(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        row = rng.standard_normal(5).astype(np.float32)
        write_feature(tmp_path, "x", name, Feature(row, np.stack([row, row])), frames=True)
    return tmp_path


def test_clips_that_are_named_cost_no_look_through_the_folder(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pools are read some hundred clips at a time, out of folders of a hundred thousand."""
    monkeypatch.setattr(Path, "glob", lambda *_: pytest.fail("the folder was listed"))
    assert read_mertools(written / "x-UTT", ["c", "a"]).names == ("c", "a")


def test_what_was_written_is_read(written: Path) -> None:
    found = read_mertools(written / "x-UTT")
    assert found.names == ("a", "b", "c") and found.width == 5
    assert found.stacked().shape == (3, 5)
    assert np.array_equal(read_mertools(written / "x-UTT", ["c"]).values[0], found.values[2])
    series = read_mertools(written / "x-FRA")
    assert series.values[0].shape == (2, 5)
    assert np.allclose(series.stacked(), found.stacked())


def test_features_of_mertools_are_read_too(written: Path) -> None:
    np.save(written / "x-UTT" / "d.npy", np.zeros((1, 5), np.float64))
    assert read_mertools(written / "x-UTT").stacked().shape == (4, 5)


def test_every_faulty_feature_is_named(written: Path) -> None:
    folder = written / "x-UTT"
    np.save(folder / "wide.npy", np.zeros(6, np.float32))
    np.save(folder / "nan.npy", np.full(5, np.nan, np.float32))
    np.save(folder / "deep.npy", np.zeros((1, 2, 5), np.float32))
    np.save(folder / "words.npy", np.array(["a"]))
    (folder / "torn.npy").write_bytes((folder / "a.npy").read_bytes()[:90])
    np.save(folder / "pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInputError) as caught:
        read_mertools(folder, ["a", "b", "wide", "nan", "deep", "words", "torn", "pickled", "no"])
    for told in (
        "wide is 6 wide", "nan is not finite", "deep has the shape [1, 2, 5]",
        "words is no array of numbers", "torn is no array", "pickled is no array", "no is missing",
    ):  # fmt: skip
        assert told in caught.value.found
    assert "5 wide" in caught.value.expected


def test_a_width_can_be_demanded(written: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"a is 5 wide, b is 5 wide.*7 wide"):
        read_mertools(written / "x-UTT", width=7)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no folder"):
        read_mertools(tmp_path / "x-UTT")
    (tmp_path / "x-UTT").mkdir()
    with pytest.raises(InvalidInputError, match="holds no features"):
        read_mertools(tmp_path / "x-UTT")
