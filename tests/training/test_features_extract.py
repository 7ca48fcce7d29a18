"""Extraction: faulty clips are told, work is kept, bits do not depend on who did it or when."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odd_media
import pytest
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InferenceError, InvalidInputError
from merkit_training.data import ClipRecord
from merkit_training.features import extract as extraction
from merkit_training.features.cache import FeatureCache
from merkit_training.features.clips import ClipList, list_clips
from merkit_training.features.engine import CHUNK, batches
from merkit_training.features.extract import Extraction, extract
from merkit_training.features.extractor import EncoderSpec, Extractor, Feature, make_extractor
from merkit_training.features.material import SEVERAL, Material, read_material
from merkit_training.features.report import Report

SILENCE = np.zeros((1, 16_000), np.float32)


class Listener(Extractor):
    """Loudness and length, and, to show who was a neighbour, the longest of the batch."""

    def __init__(self) -> None:
        self.name, self.identity, self.width = "listener", "1", 3
        self.reads, self.preprocessing = frozenset({"audio"}), Preprocessing()
        self.batches: list[list[int]] = []
        self.fails_at = -1

    def length(self, material: Material) -> int:
        return len(material.waveform)

    def encode(self, materials: Sequence[Material], frames: bool) -> list[Feature | None]:
        if len(self.batches) == self.fails_at:
            raise KeyboardInterrupt
        lengths = [len(m.waveform) for m in materials]
        self.batches.append(lengths)
        rows = [
            np.array([np.abs(m.waveform).max(), n, max(lengths)], np.float32)
            for m, n in zip(materials, lengths, strict=True)
        ]
        return [Feature(row, np.tile(row, (4, 1)) if frames else None) for row in rows]


@pytest.fixture(autouse=True)
def listener(monkeypatch: pytest.MonkeyPatch) -> Listener:
    made = Listener()
    monkeypatch.setattr(extraction, "make_extractor", lambda _: made)
    return made


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More clips than a chunk holds, no two alike."""
    folder = tmp_path_factory.mktemp("sounds")
    for number in range(CHUNK + 8):
        wave = odd_media.tone(0.2 + 0.01 * ((number * 7) % 40)) * (0.2 + 0.01 * number)
        data = odd_media.movie([], container="wav", sound_codec="pcm_s16le", sound=wave)
        (folder / f"s{number:02d}.wav").write_bytes(data)
    return folder


def _asked(out: Path, **options: Any) -> Extraction:
    return Extraction(EncoderSpec("test"), out, **options)


def _run(source: Path, out: Path, **options: Any) -> Report:
    return extract(list_clips(source), _asked(out, **options))


def _files(out: Path, kind: str = "UTT") -> dict[str, bytes]:
    return {p.stem: p.read_bytes() for p in sorted((out / f"listener-{kind}").glob("*.npy"))}


def test_batches_hold_clips_of_similar_length() -> None:
    lengths = [100, 1, 95, 2, 50, 100, 99]
    made = batches(lengths, most=3, padding=0.25)
    assert sorted(i for batch in made for i in batch) == list(range(len(lengths)))
    for batch in made:
        own = [lengths[i] for i in batch]
        assert len(own) <= 3 and 1 - sum(own) / (len(own) * max(own)) <= 0.25
    assert [[lengths[i] for i in batch] for batch in made] == [[1, 2], [50, 95, 99], [100, 100]]
    assert all(len({lengths[i] for i in batch}) == 1 for batch in batches(lengths, 3, 0.0))


def test_features_lie_as_mertools_reads_them(sounds: Path, tmp_path: Path) -> None:
    report = _run(sounds, tmp_path, frames=True)
    assert report.counts() == {"computed": CHUNK + 8}
    one = np.load(tmp_path / "listener-UTT" / "s03.npy")
    assert one.dtype == np.float32 and one.shape == (3,)
    assert np.load(tmp_path / "listener-FRA" / "s03.npy").shape == (4, 3)
    assert not [p for p in tmp_path.rglob("*.tmp")]
    told = json.loads((tmp_path / "listener.json").read_text("utf-8"))
    assert told["width"] == 3 and told["counts"] == {"computed": CHUNK + 8}
    assert told["measured"]["padding"] < 0.25


def test_a_second_time_nothing_is_computed(
    sounds: Path, tmp_path: Path, listener: Listener
) -> None:
    _run(sounds, tmp_path)
    first = _files(tmp_path)
    listener.batches.clear()
    (tmp_path / "listener-UTT" / "s05.npy").unlink()
    assert _run(sounds, tmp_path).measured["computed"] == 0
    assert _files(tmp_path) == first and not listener.batches


def test_frames_asked_for_later_are_added(sounds: Path, tmp_path: Path) -> None:
    _run(sounds, tmp_path)
    first = _files(tmp_path)
    assert _run(sounds, tmp_path, frames=True).measured["computed"] == CHUNK + 8
    assert _files(tmp_path) == first and len(_files(tmp_path, "FRA")) == CHUNK + 8


def test_a_killed_extraction_continues_with_the_same_bits(
    sounds: Path, tmp_path: Path, listener: Listener
) -> None:
    _run(sounds, tmp_path / "whole", batch=4)
    for killed in (1, 4, 9):
        out = tmp_path / f"killed{killed}"
        listener.fails_at, before = len(listener.batches) + killed, len(listener.batches)
        with pytest.raises(KeyboardInterrupt):
            _run(sounds, out, batch=4)
        listener.fails_at = -1
        done = len(list((out / "cache").rglob("*.safetensors")))
        assert 0 < done < CHUNK + 8
        assert _run(sounds, out, batch=4).measured["computed"] == CHUNK + 8 - done
        assert len(listener.batches) > before
        assert _files(out) == _files(tmp_path / "whole")


def test_a_damaged_cache_entry_is_computed_again(sounds: Path, tmp_path: Path) -> None:
    _run(sounds, tmp_path)
    first = _files(tmp_path)
    entry = next((tmp_path / "cache").rglob("*.safetensors"))
    entry.write_bytes(entry.read_bytes()[:40])
    assert _run(sounds, tmp_path).measured["computed"] > 0
    assert _files(tmp_path) == first


def test_content_counts_not_names(sounds: Path, tmp_path: Path, listener: Listener) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in ("a", "b", "c"):
        (folder / f"{name}.wav").write_bytes((sounds / "s01.wav").read_bytes())
    assert _run(folder, tmp_path / "out").measured["computed"] == 1
    (folder / "a.wav").rename(folder / "renamed.wav")
    assert _run(folder, tmp_path / "out").measured["computed"] == 0
    (folder / "b.wav").write_bytes((sounds / "s02.wav").read_bytes())
    assert _run(folder, tmp_path / "out").measured["computed"] == 1
    listener.identity = "2"
    assert _run(folder, tmp_path / "other").measured["computed"] == 2


def _faulty(folder: Path) -> Path:
    folder.mkdir()
    tone, gray = odd_media.tone(1.0), [odd_media.gray(90)] * 10
    files = {
        "corrupt.mp4": b"no media at all" * 99,
        "empty.mp4": b"",
        "fine.mp4": odd_media.movie(gray, sound=tone),
        "mute.mp4": odd_media.movie(gray),
        "short.wav": odd_media.movie([], container="wav", sound_codec="pcm_s16le",
                                     sound=odd_media.tone(0.02)),
        "silent.mp4": odd_media.movie(gray, sound=SILENCE),
        "fine.wav": odd_media.movie([], container="wav", sound_codec="pcm_s16le", sound=tone),
        "notes.docx": b"minutes",
        "transcripts.csv": b"name,text\n",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_faulty_clips_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    clips = _faulty(tmp_path / "clips")
    report = _run(clips, tmp_path / "out", frames=True)
    outcomes = {name: outcome.feature for name, outcome in report.clips.items()}
    assert outcomes == {
        "corrupt": "none",
        "empty": "none",
        "fine": "computed",
        "mute": "zeros",
        "short": "zeros",
        "silent": "zeros",
    }
    told = "\n".join(report.lines())
    for words in (
        "mute: no sound (feature: zeros)", "silent: silent or too short (1.0", "short: silent or",
        "corrupt: ", "empty: ", "notes.docx: not a media file", "fine.wav: has the name of fine",
    ):  # fmt: skip
        assert words in told, told
    assert "transcripts.csv" not in told
    out = tmp_path / "out"
    assert not np.load(out / "listener-UTT" / "mute.npy").any()
    assert np.load(out / "listener-FRA" / "mute.npy").shape == (1, 3)
    assert not (out / "listener-UTT" / "corrupt.npy").exists()
    skipped = _run(clips, tmp_path / "skipped", skip_absent=True)
    assert set(_files(tmp_path / "skipped")) == {"fine"}
    assert skipped.clips["mute"].feature == "none" and skipped.clips["mute"].problems


def test_a_clip_that_became_unreadable_keeps_no_feature(tmp_path: Path) -> None:
    clips = _faulty(tmp_path / "clips")
    _run(clips, tmp_path / "out")
    (clips / "fine.mp4").write_bytes(b"no media at all")
    _run(clips, tmp_path / "out")
    assert "fine" not in _files(tmp_path / "out")


def test_missing_files_are_told(sounds: Path, tmp_path: Path) -> None:
    clips = ClipList((ClipRecord("a", sounds / "s01.wav"), ClipRecord("b", sounds / "gone.wav")))
    report = extract(clips, _asked(tmp_path))
    assert report.clips["a"].feature == "computed"
    assert "gone.wav cannot be read" in report.clips["b"].problems[0]


def test_two_encoders_never_share_a_name(sounds: Path, tmp_path: Path, listener: Listener) -> None:
    _run(sounds, tmp_path)
    listener.preprocessing = replace(listener.preprocessing, max_audio_seconds=1.0)
    with pytest.raises(InvalidInputError, match="another encoder under the name 'listener'"):
        _run(sounds, tmp_path)
    assert _run(sounds, tmp_path, name="short").name == "short"
    with pytest.raises(InvalidInputError, match="no file name"):
        _run(sounds, tmp_path, name="../escape")


def test_numbers_that_are_not_finite_stop_with_the_clip_named(
    sounds: Path, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(materials: Sequence[Material], _: bool) -> list[Feature | None]:
        return [Feature(np.full(3, np.nan, np.float32)) for _ in materials]

    monkeypatch.setattr(listener, "encode", encode)
    with pytest.raises(InferenceError, match=r"the feature of s\d\d is not finite"):
        _run(sounds, tmp_path)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_failing_encoder_names_the_clips(
    sounds: Path, tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "encode", lambda *_: {}["key"])
    with pytest.raises(InferenceError, match=r"encoding s\d\d.* failed \(KeyError"):
        _run(sounds, tmp_path)


def test_no_clips_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no clips"):
        extract(ClipList(()), _asked(tmp_path))


def test_transcripts_and_faces_come_from_their_own_places(sounds: Path, tmp_path: Path) -> None:
    table = tmp_path / "texts.csv"
    table.write_text("name,english\ns01,well then\nnobody,hello\n", "utf-8")
    (tmp_path / "faces" / "s01").mkdir(parents=True)
    np.save(tmp_path / "faces" / "s01" / "s01.npy", np.zeros((2, 112, 112, 3), np.uint8))
    listed = list_clips(sounds, table, tmp_path / "faces")
    by_name = {clip.name: clip for clip in listed.clips}
    assert by_name["s01"].text == "well then" and by_name["s02"].text == ""
    assert by_name["s01"].faces and by_name["s02"].faces is None
    assert listed.problems["nobody"] == ("no clip of this name",)
    table.write_text("clip,words\na,b\n", "utf-8")
    with pytest.raises(InvalidInputError, match="name and one of text, chinese, english"):
        list_clips(sounds, table)


def test_parts_of_a_recording_are_clips_of_their_own(tmp_path: Path) -> None:
    sound = odd_media.movie([], container="wav", sound_codec="pcm_s16le",
                            sound=odd_media.tone(3.0))  # fmt: skip
    (tmp_path / "talk.wav").write_bytes(sound)
    table = tmp_path / "clips.csv"
    table.write_text("name,path,start,end\na,talk.wav,0,1\nb,talk.wav,1,3\n", "utf-8")
    report = _run(table, tmp_path / "out")
    assert report.measured["computed"] == 2
    lengths = [np.load(tmp_path / "out" / "listener-UTT" / f"{n}.npy")[1] for n in "ab"]
    assert np.abs(np.array(lengths) / 16_000 - (1, 2)).max() < 0.05


def test_a_face_beside_the_speakers_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def two(_: object, frame: NDArray[np.uint8]) -> tuple[NDArray[Any], NDArray[Any]]:
        side = frame.shape[0] // 3
        boxes = np.array([[5, 5, side, side], [5 + 2 * side, 5, side, side]], np.float32)
        return boxes, np.array([0.9, 0.8], np.float32)

    monkeypatch.setattr("merkit.faces.HaarDetector.detect", two)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (64, 96, 3), np.uint8)] * 8
    (tmp_path / "pair.mp4").write_bytes(odd_media.movie(pictures))
    clip = ClipRecord("pair", tmp_path / "pair.mp4")
    material = read_material(clip, {"video"}, False, Preprocessing())
    assert len(material.images) and material.problems == (SEVERAL,)


def test_the_cache_reads_what_it_wrote(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    key, row = "ab" * 32, np.arange(3, dtype=np.float32)
    assert cache.read(key, False) is None and not cache.has(key, False)
    cache.write(key, None, ["silent"])
    entry = cache.read(key, True)
    assert entry is not None and entry.feature is None and entry.problems == ("silent",)
    cache.write(key, Feature(row), [])
    assert cache.has(key, False) and not cache.has(key, True)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot use the device 'nonsense'"):
        make_extractor(EncoderSpec(str(tmp_path), device="nonsense"))


def test_a_missing_folder_of_faces_is_refused(sounds: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="there is no folder"):
        list_clips(sounds, faces=tmp_path / "nowhere")
