"""Own clips as a corpus: in the layout that stages read, with every fault named, resumable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odd_media
import pytest
from own_clips import CLASSES, row, write_clip, write_faulty, write_own_clips, write_table

from merkit.contract import Preprocessing
from merkit.errors import InferenceError, InvalidInputError
from merkit.media import decode_clip
from merkit_training.cli import main
from merkit_training.corpus import clip_splits, open_set, read_clips, read_sentences, read_table
from merkit_training.data import prepare as preparing
from merkit_training.data.evidence import read_evidence
from merkit_training.data.prepare import _alone, prepare
from merkit_training.data.records import ClipRecord
from merkit_training.encoders.utterances import Utterances
from merkit_training.encoders.vision.faces import FaceSets
from merkit_training.labels import classes_of, face_classes_of
from merkit_training.recipe import Recipe, recipe_from

RECIPE = recipe_from({"data": {"workers": 1}})


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a small collection with faults."""
    folder = tmp_path_factory.mktemp("own")
    rows = write_own_clips(folder)
    for number, split in enumerate(("val", "val", "val", "test", "test", "test")):
        rows[number]["split"] = split
    return write_table(folder / "my.csv", [*rows, *write_faulty(folder)])


@pytest.fixture(scope="module")
def corpus(own: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("corpus") / "own"
    prepare(own, out, RECIPE)
    yield out


def test_stages_read_it_like_any_corpus(corpus: Path) -> None:
    assert classes_of(corpus) == face_classes_of(corpus) == tuple(sorted(CLASSES))
    assert clip_splits(corpus) == ("train", "val", "test")
    faces = FaceSets.read(corpus)
    assert faces.units == 0 and faces.sequences["val"].images.shape == (3, 4, 64, 64, 3)
    heard = Utterances.read(corpus, "train")
    assert heard.classes == classes_of(corpus) and heard.tones is None and not heard.silent
    texts = {r["text"]: r["discrete"] for r in read_sentences(corpus, "train")}
    assert texts["number 9 feels calm"] == "calm"
    clip = read_clips(corpus, "test")[0]
    assert clip.label is not None and clip.group and clip.path is not None and clip.path.is_file()
    assert classes_of(corpus)[clip.label] in clip.text


def test_what_is_stored_is_what_the_pipeline_decodes(corpus: Path) -> None:
    names = [row["name"] for row in read_table(corpus / "utterances" / "table.csv")]
    heard, rows = open_set(corpus, "utterances"), {c.name: c for c in read_clips(corpus, "train")}
    clip = rows["clip010"]
    wave = heard["waveforms"][names.index("clip010")]
    decoded = decode_clip(str(clip.path), Preprocessing()).waveform
    length = heard["lengths"][names.index("clip010")]
    assert length == len(decoded) and not wave[length:].any()
    np.testing.assert_allclose(wave[:length] / 32767, decoded, atol=1e-4)
    sequences, faces = open_set(corpus, "sequences"), open_set(corpus, "faces")
    singles = {image.tobytes() for image in faces["images"]}
    assert all(tile.tobytes() in singles for images in sequences["images"] for tile in images)


def test_every_fault_is_reported_with_its_clip(corpus: Path) -> None:
    lines = (corpus / "problems.jsonl").read_text("utf-8").splitlines()
    found: dict[str, list[str]] = {}
    for problem in map(json.loads, lines):
        found.setdefault(problem["kind"], []).append(problem["name"])
    expected = {
        "corrupt": ["corrupt"],
        "unreadable": ["empty"],
        "missing file": ["gone"],
        "no video stream": ["sound"],
        "no sound": ["mute"],
        "silent": ["silent"],
        "no face": ["mute", "silent"],
        "no evidence": ["silent"],
        "duplicate name": ["clip000"],
        "unknown label": ["clip001_0.5"],
        "bad value": ["clip002_nine"],
        "unknown split": ["clip004_0.1"],
        "empty transcript": ["sound", "silent"],
    }
    assert {kind: found.get(kind) for kind in expected} == expected
    card = json.loads((corpus / "card.json").read_text("utf-8"))
    assert card["problems"]["no face"] == 2 and card["counts"]["clips/val"] == dict.fromkeys(
        CLASSES, 1
    )
    kept = {clip.name for clip in read_clips(corpus, "train")}
    assert {"sound", "mute"} <= kept and not kept & {"silent", "corrupt", "empty"}
    assert "no evidence: 1, of which 1 left out: silent" in (corpus / "report.txt").read_text(
        "utf-8"
    )


def test_a_killed_preparation_goes_on_and_gives_the_same(
    own: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "PART", 4)
    write, seen = preparing.write_sets, list[dict[Path, int]]()

    def dies_at_first(*arguments: Any) -> None:
        parts = sorted((tmp_path / "c" / ".parts").iterdir())
        seen.append({part: part.stat().st_mtime_ns for part in parts})
        if len(seen) == 1:
            parts[1].unlink()
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(preparing, "write_sets", dies_at_first)
    with pytest.raises(KeyboardInterrupt):
        prepare(own, tmp_path / "c", RECIPE)
    card = prepare(own, tmp_path / "c", replace(RECIPE, data=replace(RECIPE.data, workers=2)))
    made_anew = [part.name for part in seen[0] if seen[0][part] != seen[1][part]]
    assert made_anew == ["00000004.npz"]
    first = json.loads((corpus / "card.json").read_text("utf-8"))
    assert card["sha256"] == first["sha256"] and len(card["sha256"]) > 10
    assert not (tmp_path / "c" / ".parts").exists() and not list((tmp_path / "c").rglob("*.tmp*"))


def test_a_decoder_that_dies_is_an_error(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "_quiet", os.abort)  # as a codec or the system would end it
    with pytest.raises(InferenceError, match="a process that decodes died"):
        prepare(own, tmp_path / "corpus", RECIPE)


def test_another_table_or_folder_is_refused(own: Path, corpus: Path, tmp_path: Path) -> None:
    other = own.with_name("other.csv")
    other.write_text(own.read_text("utf-8").replace("feels", "is"), "utf-8")
    with pytest.raises(InvalidInputError, match="other clips"):
        prepare(other, corpus, RECIPE)
    (tmp_path / "precious").write_text("x")
    with pytest.raises(InvalidInputError, match="not empty"):
        prepare(own, tmp_path, RECIPE)
    with pytest.raises(InvalidInputError, match="unlikely"):
        named: Recipe = recipe_from({"data": {"classes": ["unlikely", "unlikely"]}})
        prepare(own, tmp_path / "c", named)


def test_two_faces_are_reported_with_the_one_that_is_used(tmp_path: Path) -> None:
    write_clip(tmp_path / "one.mp4", "calm", 3)
    frames = decode_clip(str(tmp_path / "one.mp4"), Preprocessing()).frames
    pair = [np.concatenate([frame, frame], axis=1) for frame in frames]
    (tmp_path / "two.mp4").write_bytes(odd_media.movie(pair, sound=odd_media.tone(1.0)))
    found = read_evidence(ClipRecord("two", tmp_path / "two.mp4"), Preprocessing())
    (problem,) = [p for p in found.problems if p.kind == "several faces"]
    assert "is used" in problem.detail and not found.lost and len(found.crops)
    alone = read_evidence(ClipRecord("one", tmp_path / "one.mp4"), Preprocessing())
    assert not [p for p in alone.problems if p.kind == "several faces"]


def test_faces_of_openface_are_read_as_blue_green_red(tmp_path: Path) -> None:
    crops = np.zeros((5, 112, 112, 3), np.uint8)
    crops[..., 0] = 200  # blue
    np.save(tmp_path / "c.npy", crops)
    found = read_evidence(ClipRecord("c", faces=tmp_path / "c.npy", text="w"), Preprocessing())
    assert found.crops.shape == (5, 64, 64, 3) and found.crops[0, 0, 0].tolist() == [0, 0, 200]
    (tmp_path / "bad.npy").write_bytes(b"\x93NUMPY rubbish")
    bad = read_evidence(ClipRecord("c", faces=tmp_path / "bad.npy"), Preprocessing())
    assert [p.kind for p in bad.problems] == ["unusable faces"] and bad.lost


def test_parts_of_one_recording_are_clips_of_their_own(tmp_path: Path) -> None:
    for number, label in enumerate(CLASSES):
        write_clip(tmp_path / f"{label}.mp4", label, number, seconds=2.0)
    rows = [
        row(f"{label}.mp4", label, text="w", start=str(start), end=str(start + 0.5))
        for label in CLASSES
        for start in (0.0, 0.5, 1.0, 1.5)
    ]
    card = prepare(write_table(tmp_path / "my.csv", rows), tmp_path / "c", RECIPE)
    assert card["seconds"] == pytest.approx(6.0, abs=0.8)
    lengths = open_set(tmp_path / "c", "utterances")["lengths"]
    assert np.all(np.abs(lengths - 8000) < 1200)
    assert {c.name for c in read_clips(tmp_path / "c", "train")} <= {
        f"{label}_{start}" for label in CLASSES for start in (0.0, 0.5, 1.0, 1.5)
    }


def test_real_recordings(media: Path) -> None:
    faces = read_evidence(ClipRecord("f", media / "single_face.mp4"), Preprocessing())
    assert len(faces.crops) == 8 and not faces.lost
    none = read_evidence(ClipRecord("n", media / "no_face.mp4"), Preprocessing())
    assert "no face" in [p.kind for p in none.problems]
    speech = ClipRecord("j", media / "jfk.flac", start=3.0, end=5.0)
    found = read_evidence(speech, Preprocessing())
    assert len(found.waveform) == pytest.approx(32_000, abs=200)
    assert [p.kind for p in found.problems] == ["no video stream"]


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from merkit_training.data.prepare import _alone\n"
        "with _alone(Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None and first.stdout.readline()
        with pytest.raises(InvalidInputError, match="another process"), _alone(tmp_path):
            pass
        first.kill()
    with _alone(tmp_path):  # whoever is killed leaves the folder free
        pass


def test_a_check_refuses_what_prepare_refuses(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "a.mp4").write_bytes(b"media")
    (tmp_path / "my.csv").write_text("path,label\na.mp4,calm\n", "utf-8")
    assert main(["prepare", str(tmp_path / "my.csv"), "--check"]) == 2
    out, err = capsys.readouterr()
    assert "1 usable clip" in out
    assert "two classes" in err
