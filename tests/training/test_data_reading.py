"""Tables and folders of clips: what is usable is read, and every fault is named with its clip."""

from __future__ import annotations

import json
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from merkit.errors import InvalidInputError
from merkit_training.data import Dataset, read_dataset
from merkit_training.data.config import DataConfig
from merkit_training.data.records import ClipRecord
from merkit_training.data.splits import assign, divide, halves
from merkit_training.labels import MER6


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"media")


def problems(found: Dataset, kind: str) -> list[str]:
    return [problem.name for problem in found.problems if problem.kind == kind]


def table(folder: Path, text: str, name: str = "my.csv") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


def test_a_table_names_classes_of_its_own(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.wav", "deep/c.mkv")
    rows = "path,emotion,transcript,speaker,split,valence\n"
    rows += "a.mp4,Tense,Hör mal,p1,train,-0.5\nb.wav,calm,,p2,test_new,\n"
    rows += f"{tmp_path}/deep/c.mkv,,unlabelled,p3,,\n"
    found = read_dataset(table(tmp_path, rows), ["calm", "tense"])
    a, b, c = found.records
    assert found.classes == ("calm", "tense")
    assert (a.name, a.label, a.text, a.group, a.split, a.valence) == (
        "a", "tense", "Hör mal", "p1", "train", -0.5
    )  # fmt: skip
    assert b.path == tmp_path / "b.wav" and b.split == "test_new" and c.label is None
    assert problems(found, "empty transcript") == ["b"]


def test_json_lines_say_the_same_as_csv(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    rows = [{"name": n, "label": n * 2, "text": n} for n in "abc"]
    lines = table(tmp_path, "\n".join(map(json.dumps, rows)), "my.jsonl")
    cells = "name;label;text\n" + "\n".join(";".join(row.values()) for row in rows)
    found, same = read_dataset(lines), read_dataset(table(tmp_path, cells))
    assert found.records == same.records and found.classes == same.classes == ("aa", "bb", "cc")


def test_every_faulty_row_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    touch(tmp_path, "good.mp4", "second.mp4", "third.mp4", "a/1.mp4", "b/1.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    rows = ["path,name,label,text,split,start"]
    rows += [f"{n}.mp4,,x,w,," for n in ("good", "second", "third", "empty", "gone")]
    rows += ["good.mp4,,x,w,,", ",../../etc/passwd,x,w,,", ",a\\b,x,w,,", "third.mp4,3,x,w,never,"]
    rows += ["third.mp4,4,x,w,,-1", "third.mp4,5,x,w,,soon", "third.mp4,6,typo,w,,"]
    rows += ["a/1.mp4,,y,w,,", "b/1.mp4,,y,w,,", ",words,y,only words,,", "1,2,3,4,5,6,7,8"]
    path = table(tmp_path, "\n".join(rows))
    path.write_bytes(path.read_bytes() + b"\n\xff.mp4,,x,w,,\n")
    found = read_dataset(path)
    names = [record.name for record in found.records]
    assert names == ["good", "second", "third", "1", "b-1", "words"]
    assert found.classes == ("x", "y") and found.records[-1].path is None
    expected = {
        "unreadable": ["empty"],
        "missing file": ["gone"],
        "duplicate name": ["good"],
        "bad name": ["../../etc/passwd", "a\\b"],
        "unknown split": ["3"],
        "bad value": ["4", "5"],
        "unknown label": ["6"],
        "bad row": ["row 17 of my.csv", "row 18 of my.csv"],
    }
    assert {kind: problems(found, kind) for kind in expected} == expected
    assert "unknown label: 1, of which 1 left out: 6 ('typo' is none of x, y)" in found.report()
    assert json.loads(json.dumps(found.report_json()))["clips"] == 6


def test_misspelt_classes_are_found_by_their_rarity_or_by_the_list(tmp_path: Path) -> None:
    rows = [f",c{i},{'xy'[i % 2]},w" for i in range(8)] + [",c8,xx,w"]
    path = table(tmp_path, "\n".join(["path,name,label,text", *rows]))
    assert read_dataset(path).classes == ("x", "y")
    assert read_dataset(path, ["y", "x", "xx"]).classes == ("y", "x", "xx")
    assert problems(read_dataset(path, ["y", "xx"]), "unknown label") == ["c0", "c2", "c4", "c6"]


def test_the_spellings_of_mer_are_one(tmp_path: Path) -> None:
    spelt = ["Neutral", "anger", "happiness", "sad", "worried", "surprised"]
    rows = [f",c{i},{spelt[i % 6]},w" for i in range(12)]
    found = read_dataset(table(tmp_path, "\n".join(["path,name,label,text", *rows])))
    assert found.classes == MER6 and [r.label for r in found.records[:6]] == list(MER6)
    some = [f",c{i},{('happy', 'sadness')[i % 2]},w" for i in range(12)]
    found = read_dataset(table(tmp_path, "\n".join(["path,name,label,text", *some])))
    assert found.classes == ("happy", "sad")


def npz(path: Path, **corpora: dict[str, Any]) -> None:
    np.savez(path, **{k: np.array(v, dtype=object) for k, v in corpora.items()})


def test_a_folder_of_mer2023(tmp_path: Path) -> None:
    touch(tmp_path, *(f"video/{n}.avi" for n in ("t1", "t2", "e1", "e3", "new")), "audio/t1.wav")
    touch(tmp_path, "features/x-UTT/t1.wav")
    train = {"t1": {"emo": "angry", "val": 0.5}, "t2": {"emo": "sad", "val": -10}}
    train |= {"lost": {"emo": "sad", "val": -10}}
    npz(tmp_path / "label-6way.npz", train_corpus=train,
        test1_corpus={"e1": {"emo": "happy", "val": -10}},
        test3_corpus={"e3": {"emo": "worried", "val": -10}})  # fmt: skip
    table(tmp_path, "name,chinese\nt1,你好\ne1,好\n", "transcription.csv")
    crops = tmp_path / "openface_face" / "t2" / "t2.npy"
    crops.parent.mkdir(parents=True)
    np.save(crops, np.zeros((3, 112, 112, 3), np.uint8))
    found = read_dataset(tmp_path)
    assert found.classes == MER6
    by_name = {record.name: record for record in found.records}
    assert {n: r.split for n, r in by_name.items()} == {
        "t1": "train", "t2": "train", "e1": "test_multi", "e3": "test_semi", "new": "unlabelled"
    }  # fmt: skip
    t1, t2 = by_name["t1"], by_name["t2"]
    assert t1.path == tmp_path / "video" / "t1.avi", "a video is preferred to sound"
    assert (t1.text, t1.language, t1.valence) == ("你好", "zh", 0.5)
    assert t2.faces == crops and t2.valence is None and by_name["new"].label is None
    assert problems(found, "missing file") == ["lost"]
    assert problems(found, "empty transcript") == ["t2", "e3", "new"]


def test_a_folder_with_a_table_of_paths(tmp_path: Path) -> None:
    touch(tmp_path, *(f"clips/{name}.mp4" for name in ("a1", "a2", "a3", "b1", "b2", "b3", "free")))
    rows = [f"clips/{c}{i}.mp4,{c}{c},speaker{i}" for c in "ab" for i in (1, 2, 3)]
    table(tmp_path, "\n".join(["path,label,speaker", *rows]), "labels.csv")
    table(tmp_path, "clip,mood\na1,good\n", "notes.csv")
    found = read_dataset(tmp_path)
    assert {r.name: r.label for r in found.records} == {
        "a1": "aa", "a2": "aa", "a3": "aa", "b1": "bb", "b2": "bb", "b3": "bb", "free": None
    }  # fmt: skip
    assert found.records[0].group == "speaker1"
    assert problems(found, "remark") == ["notes.csv"]  # never passed over in silence


def test_a_folder_of_mer2025(tmp_path: Path) -> None:
    names = [f"samplenew3_{i:08d}" for i in range(7)]
    touch(tmp_path, *(f"video/{n}.mp4" for n in names))
    labels = "\n".join(f"{n},{e},0.1" for n, e in zip(names, MER6, strict=False))
    table(
        tmp_path, "name,discrete,valence\n" + labels + "\nx/../y,sad,0\n", "track1_train_disdim.csv"
    )
    table(tmp_path, "name\n" + "\n".join(names), "track_all_candidates.csv")
    subtitles = "\n".join(f"{n},好,good" for n in names)
    table(tmp_path, "name,chinese,english\n" + subtitles, "subtitle_chieng.csv")
    found = read_dataset(tmp_path)
    assert [r.split for r in found.records] == ["train"] * 6 + ["unlabelled"]
    assert found.records[0].text == "好" and problems(found, "bad name") == ["x/../y"]


def test_a_folder_of_mer2024_as_mertools_arranges_it(tmp_path: Path) -> None:
    names = {"train": "abcdef", "test1": "g", "test2": "h", "test3": "i"}
    touch(tmp_path, *(f"video/{n}.mp4" for group in names.values() for n in group), "video/u.mp4")
    emotions = {n: MER6[i % 6] for i, n in enumerate("".join(names.values()))}
    npz(tmp_path / "label-6way.npz", **{
        f"{split}_corpus": {n: {"emo": emotions[n], "val": -10} for n in group}
        for split, group in names.items()
    })  # fmt: skip
    rows = "\n".join(f"{n},好的,well" for n in "abcdefghiu")
    table(tmp_path, f"name,chinese,english\n{rows}\n", "transcription_merge.csv")
    found = read_dataset(tmp_path)
    splits = {r.name: r.split for r in found.records}
    assert found.classes == MER6 and {p.kind for p in found.problems} == {"no groups"}
    assert [splits[n] for n in "aghiu"] == [
        "train", "test_multi", "test_noise", "test_semi", "unlabelled"
    ]  # fmt: skip


def test_a_folder_of_merbench(tmp_path: Path) -> None:
    joys = ("joy", "anger", "disgust")  # MELD's own classes stay as they are
    names = {f"dia{i}_utt{k}": joys[i % 3] for i in range(9) for k in range(2)}
    touch(tmp_path, *(f"subvideo/{n}.mp4" for n in names), *(f"subaudio/{n}.wav" for n in names))
    split = {"train_corpus": range(6), "val_corpus": range(6, 8), "test_corpus": range(8, 9)}
    npz(tmp_path / "label.npz", **{
        corpus: {n: {"emo": e, "val": -10} for n, e in names.items() if int(n[3]) in dialogues}
        for corpus, dialogues in split.items()
    })  # fmt: skip
    rows = "\n".join(f"{n},,well" for n in names)
    table(tmp_path, f"name,chinese,english\n{rows}\n", "transcription-engchi-polish.csv")
    found = read_dataset(tmp_path)
    assert set(found.classes) == set(joys)
    counts = [sum(r.split == s for r in found.records) for s in ("train", "val", "test")]
    assert counts == [12, 4, 2]
    assert all(r.path and r.path.parent.name == "subvideo" for r in found.records)
    whole = tmp_path / "iemocap"
    touch(whole, *(f"subvideo/Ses0{i}.avi" for i in range(1, 10)))
    npz(whole / "label_4way.npz", whole_corpus={
        f"Ses0{i}": {"emo": ("hap", "ang", "neu")[i % 3], "val": 0.1 * i} for i in range(1, 10)
    })  # fmt: skip
    found = read_dataset(whole)
    assert {r.split for r in found.records} == {""} and len(found.classes) == 3


def test_two_sources_that_contradict_each_other_are_reported(tmp_path: Path) -> None:
    touch(tmp_path, *(f"video/{n}.mp4" for n in "abcdef"))
    rows = "\n".join(f"{n},{e}" for n, e in zip("abcdef", MER6, strict=True))
    table(tmp_path, "name,discrete\n" + rows, "train.csv")
    table(tmp_path, "name,discrete\na,sad\nb,anger\n", "train2.csv")
    found = read_dataset(tmp_path)
    assert problems(found, "two labels") == ["a"] and found.records[0].label == "neutral"


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "gone.csv", "cannot be read"),
        (tmp_path / "gone", "there is no"),
        (tmp_path, "neither media nor labels"),
        (table(tmp_path, "", "empty.csv"), "header"),
        (table(tmp_path, "path,path\n", "twice.csv"), "different column names"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            read_dataset(path)
    with pytest.raises(InvalidInputError, match="each class once"):
        read_dataset(table(tmp_path, "name,label,text\na,x,w\n"), ["x", "x"])


def test_an_open_quote_does_not_swallow_memory(tmp_path: Path) -> None:
    path = tmp_path / "open.csv"
    with path.open("w") as file:
        file.write('path,name,label,text\n,a,x,w\n,b,y,"never closed\n')
        for _ in range(120):
            file.write("z" * 100_000 + "\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = read_dataset(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 9_000, "kilobytes, of a file of 12 MB"
    assert [r.name for r in found.records] == ["a"] and problems(found, "bad row")


def clips(count: int, groups: int, labels: Sequence[str] = "xyz", **cells: Any) -> list[ClipRecord]:
    return [
        ClipRecord(f"c{i}", label=labels[i % len(labels)], group=f"g{i % groups}", **cells)
        for i in range(count)
    ]


def test_splits_keep_groups_together_and_classes_alike() -> None:
    records = clips(300, 40)
    splits, _ = assign(records, DataConfig())
    sides: dict[str, set[str]] = {}
    for record, split in zip(records, splits, strict=True):
        sides.setdefault(record.group, set()).add(split)
    assert all(len(split) == 1 for split in sides.values())
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        labels = [r.label for r, s in zip(records, splits, strict=True) if s == split]
        assert len(labels) / 300 == pytest.approx(share, abs=0.04)
        assert all(labels.count(c) / len(labels) == pytest.approx(1 / 3, abs=0.12) for c in "xyz")
    assert splits == assign(records, DataConfig())[0] != assign(records, DataConfig(seed=1))[0]


def test_stated_splits_stay_and_only_what_is_missing_is_made() -> None:
    records = clips(60, 60, split="train") + clips(9, 9, split="test_far")
    splits, _ = assign(records, DataConfig())
    assert splits[60:] == ["test_far"] * 9 and set(splits[:60]) == {"train", "val"}
    records += clips(6, 6, split="val")
    assert assign(records, DataConfig())[0] == [r.split for r in records]
    assert assign([ClipRecord("u"), *records], DataConfig())[0][0] == "unlabelled"
    with pytest.raises(InvalidInputError, match="left for"):
        assign(clips(3, 3, split="test"), DataConfig())


def test_encoders_and_fusion_share_clips_only_when_there_are_few() -> None:
    records = clips(120, 30)
    splits, _ = assign(records, DataConfig())
    taught, judged, remarks = halves(records, splits, DataConfig())
    train = [split == "train" for split in splits]
    assert [a != b for a, b in zip(taught, judged, strict=True)] == train and not remarks
    groups = [
        {r.group for r, own in zip(records, side, strict=True) if own} for side in (taught, judged)
    ]
    assert not groups[0] & groups[1]
    few = clips(12, 12)
    splits, _ = assign(few, DataConfig())
    taught, judged, remarks = halves(few, splits, DataConfig())
    assert taught == judged and remarks[0].kind == "shared clips"


def test_too_few_speakers_are_split_and_it_is_said() -> None:
    _, remarks = divide(clips(30, 2), {"train": 0.7, "val": 0.3}, 0)
    assert [remark.kind for remark in remarks] == ["split speakers"]


@pytest.mark.parametrize(
    "text", ["path|label\na.mp4|calm\n", "a.mp4,calm\nb.mp4,tense\n", "label,text\ncalm,hi\n"]
)
def test_a_table_without_a_column_that_names_clips_is_refused(tmp_path: Path, text: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    with pytest.raises(InvalidInputError, match=r"has the columns .* expected a column path"):
        read_dataset(table(tmp_path, text))


@pytest.mark.parametrize("last", ["c.mp4,calm,hi\n", 'c.mp4,calm,"hi"\n'])
def test_a_quote_left_open_swallows_no_row_unseen(tmp_path: Path, last: str) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    rows = f'path,label,text\na.mp4,calm,hi\nb.mp4,calm,"never closed\n{last}'
    found = read_dataset(table(tmp_path, rows))
    assert [record.name for record in found.records] == ["a"]
    assert problems(found, "bad row") == ["row 3 of my.csv, lines 3 to 4"]


def test_words_over_several_lines_are_one_cell(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    (record,) = read_dataset(table(tmp_path, 'path,text\na.mp4,"one\ntwo"\n')).records
    assert record.text == "one\ntwo"


def test_what_stands_for_no_label_is_no_class_unless_asked_for(tmp_path: Path) -> None:
    rows = "name,label,text\n" + "".join(
        f"{label}{i},{label},words\n" for label in ("calm", "NaN") for i in range(4)
    )
    path = table(tmp_path, rows)
    found = read_dataset(path)
    assert found.classes == ("calm",) and len(problems(found, "unknown label")) == 4
    assert read_dataset(path, ["calm", "nan"]).classes == ("calm", "nan")


def test_paths_that_no_system_admits_are_missing_files(tmp_path: Path) -> None:
    rows = f"name,path,label\na,{'p' * 5000},calm\nb,p\0q,calm\n"
    assert problems(read_dataset(table(tmp_path, rows)), "missing file") == ["a", "b"]
