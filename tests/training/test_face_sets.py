"""Readers of face sets: the right class for each row, and no row lost in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from merkit.errors import InvalidInputError
from merkit_training.faces.sets import READERS, Entry, Item, Problem
from merkit_training.labels import FACE3, FACE8, TO_FACE3, place


def _read(kind: str, root: Path, classes: tuple[str, ...] = FACE8) -> list[Entry]:
    return list(READERS[kind](root, classes, False))


def _items(entries: list[Entry]) -> dict[str, Item]:
    return {entry.key: entry for entry in entries if isinstance(entry, Item)}


def _problems(entries: list[Entry]) -> list[Problem]:
    return [entry for entry in entries if isinstance(entry, Problem)]


def _touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def _named(item: Item, classes: tuple[str, ...] = FACE8) -> list[str]:
    return [classes[face.label] if face.label >= 0 else "" for face in item.faces]


def test_the_seven_find_their_places_among_the_eight_and_the_three() -> None:
    seven = ("anger", "Disgusted", "fearful", "happiness", "Sadness", "surprised", " neutral ")
    assert [FACE8[place(name, FACE8) or 0] for name in seven] == [*FACE8[:7]]
    three = ["negative"] * 3 + ["positive", "negative", "neutral", "neutral"]
    assert [FACE3[place(name, FACE3) or 0] for name in seven] == three
    assert set(TO_FACE3) == set(FACE8)
    assert place("contempt", FACE8) is None and place("negative", FACE8) is None
    assert place("happy", ("calm", "tense")) is None and place("tense", ("calm", "tense")) == 1
    assert place("Weakly Negative", FACE3) == FACE3.index("negative")


@pytest.mark.parametrize("nested", [True, False])
def test_rafdb(tmp_path: Path, nested: bool) -> None:
    names = ("surprise", "fear", "disgust", "happy", "sad", "angry", "neutral")
    lines = [f"train_{k:05}.jpg {k}" for k in range(1, 8)] + ["test_0001.jpg 4"]
    bad = ["train_00009.jpg 8", "train_00010.jpg", "train_00011.jpg 3", "../up.jpg 1", ""]
    labels, images = ("EmoLabel", "Image/aligned") if nested else ("", "aligned")
    table = tmp_path / labels / "list_patition_label.txt"
    table.parent.mkdir(exist_ok=True)
    table.write_text("\n".join(lines + bad) + "\n")
    for line in lines:
        _touch(tmp_path / images / line.split()[0].replace(".jpg", "_aligned.jpg"))
    entries = _read("rafdb", tmp_path)
    items = _items(entries)
    for k, name in enumerate(names, 1):
        item = items[f"train_{k:05}_aligned.jpg"]
        assert _named(item) == [name] and item.split == "train" and item.cropped
    assert items["test_0001_aligned.jpg"].split == "val" and len(items) == 8
    problems = [(p.key.split()[0], p.what) for p in _problems(entries)]
    assert [where for where, _ in problems] == [f"{table.name}:{n}" for n in (9, 10, 11, 12)]
    assert problems[2][1] == problems[3][1] == "is listed, but not there"


def test_expw_with_several_faces_in_a_picture(tmp_path: Path) -> None:
    rows = [
        "b.jpg 0 10 20 60 70 88.5 3",
        "a.jpg 0 5 6 25 36 40.0 0",
        "b.jpg 1 11 120 160 71 30.0 6",
        "gone.jpg 0 10 20 60 70 88.5 3",
        "a.jpg 1 5 60 25 36 40.0 0",
        "a.jpg 1 5 6 25 36 40.0 -1",
        "a.jpg 1 5 6",
    ]
    (tmp_path / "label").mkdir()
    (tmp_path / "label/label.lst").write_text("\n".join(rows))
    for name in "ab":
        _touch(tmp_path / f"image/origin/{name}.jpg")
    entries = _read("expw", tmp_path)
    items = _items(entries)
    assert list(items) == ["a.jpg", "b.jpg"]
    assert items["b.jpg"].faces[0].box == (20, 10, 40, 60)  # x, y, w, h of top left right bottom
    assert _named(items["b.jpg"]) == ["happy", "neutral"] and _named(items["a.jpg"]) == ["angry"]
    assert len(_problems(entries)) == 4 and "label.lst gone.jpg" in {
        problem.key for problem in _problems(entries)
    }


def test_folders_per_class_by_name_and_by_affectnet_s_number(tmp_path: Path) -> None:
    for name in (
        "train/happy/1.png", "test/Sadness/2.jpg", "3/3.jpg", "val/7/4.jpg", "loose.png",
        "train/fear/deep/5.png", "readme.md", "bored/6.png", "12/7.png",
    ):  # fmt: skip
        _touch(tmp_path / name)
    entries = _read("folders", tmp_path)
    items = _items(entries)
    told = {key: (_named(item)[0], item.split) for key, item in items.items()}
    assert told == {
        "train/happy/1.png": ("happy", "train"),
        "test/Sadness/2.jpg": ("sad", "val"),
        "3/3.jpg": ("surprise", ""),
        "val/7/4.jpg": ("", "val"),
        "loose.png": ("", ""),
        "train/fear/deep/5.png": ("fear", "train"),
        "bored/6.png": ("", ""),
        "12/7.png": ("", ""),  # no number of AffectNet's
    }
    what = {problem.key: problem.what for problem in _problems(entries)}
    assert "'contempt' has no place" in what["val/7/4.jpg"]
    assert "'bored' has no place" in what["bored/6.png"]
    assert set(what) == {"val/7/4.jpg", "bored/6.png", "loose.png", "readme.md", "12/7.png"}


def test_a_csv_as_of_ch_sims_with_labels_of_videos(tmp_path: Path) -> None:
    for name in ("Raw/v1/0001.mp4", "Raw/v1/0002.mp4", "Raw/v2/1.mp4"):
        _touch(tmp_path / name)
    table = tmp_path / "label.csv"
    table.write_text(
        "video_id,clip_id,text,label,annotation,mode\n"
        "v1,0001,a,-0.8,Negative,train\nv1,0002,b,0.0,Neutral,valid\nv2,1,c,0.6,,test\n"
        "v2,2,d,1.0,Positive,test\n../..,x,e,1.0,Positive,test\n"
    )
    entries = _read("csv", table, FACE3)
    told = {key: (_named(i, FACE3)[0], i.split) for key, i in _items(entries).items()}
    assert told == {
        "Raw/v1/0001.mp4": ("negative", "train"),
        "Raw/v1/0002.mp4": ("neutral", "val"),
        "Raw/v2/1.mp4": ("positive", "val"),
    }
    assert [p.key.split()[0] for p in _problems(entries)] == ["label.csv:5", "label.csv:6"]
    kept = _read("csv", table)  # of sentiments only neutral is among the eight: kept, and said
    assert [_named(item)[0] for item in _items(kept).values()] == ["", "neutral", ""]
    assert sum("no place" in p.what for p in _problems(kept)) == 2


def test_a_csv_of_one_s_own_with_any_classes(tmp_path: Path) -> None:
    _touch(tmp_path / "a.png")
    (tmp_path / "my.csv").write_text("\ufeffpath,emotion\na.png,tense\n")
    items = _items(_read("csv", tmp_path / "my.csv", ("calm", "tense")))
    assert items["a.png"].faces[0].label == 1


@pytest.mark.parametrize("kind", ["rafdb", "expw", "csv"])
def test_a_set_that_is_not_there_says_what_was_looked_for(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"list_patition|label\.(lst|csv)"):
        _read(kind, tmp_path)
