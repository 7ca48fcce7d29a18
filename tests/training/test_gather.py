"""Gathering faces: what is kept, what the report names, and that nothing stops it for good."""

from __future__ import annotations

import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from odd_media import movie, picture, quadrants

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.cli import main
from merkit_training.corpus import open_set
from merkit_training.faces import gather as gathering
from merkit_training.faces.filters import MEASURES, Thresholds, reason_to_drop
from merkit_training.faces.finders import Found, turned_by_landmarks
from merkit_training.faces.gather import gather
from merkit_training.faces.look import GatherSettings, look
from merkit_training.faces.sets import Item

NOTHING = float("nan")
ANY = Thresholds(agreeing=0, size=0, cut_off=1, turned=99, sharpness=0)
CROPS = GatherSettings(cropped=True, val_share=0.0, thresholds=ANY)


class Eyes:
    """A finder that sees what it is told to, whatever the picture."""

    turned_is: ClassVar[str] = "as told"

    def __init__(self, *boxes: tuple[float, float, float, float], turned: float = 0.0) -> None:
        self.boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self.turned = turned

    def find(self, picture: NDArray[np.uint8]) -> Found:  # noqa: ARG002
        count = len(self.boxes)
        return Found(
            self.boxes, np.ones(count, np.float32), np.full(count, self.turned, np.float32)
        )


@pytest.fixture(autouse=True)
def _quick_eyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GatherSettings, "finder", lambda _: Eyes((10, 10, 40, 40)))


def _noise(seed: int, side: int = 64, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (side, side, channels), dtype=np.uint8)


def _pictures(folder: Path, count: int, start: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(start, start + count):
        (folder / f"p{k:03}.png").write_bytes(picture(_noise(k), "png", "rgb24"))
    return folder


def test_what_comes_out_is_a_set_of_faces_in_the_order_of_the_files(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", 7)
    report = gather([source], tmp_path / "out", CROPS)
    found = open_set(tmp_path / "out", "faces")
    assert report["kept"] == 7
    for k in range(7):
        np.testing.assert_array_equal(found["images"][k], _noise(k))
    assert found["labels"].tolist() == [-1] * 7 and found["labels"].dtype == np.int64
    assert found.indices("train").tolist() == list(range(7))
    card = json.loads((tmp_path / "out/card.json").read_text("utf-8"))
    assert card["faces"] == 7 and card["face_labels"][0] == "angry"


def test_it_goes_on_after_a_kill_at_any_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = _pictures(tmp_path / "in", 9)
    monkeypatch.setattr(gathering, "BATCH", 2)
    whole = gather([source], tmp_path / "whole", CROPS)
    looked: list[str] = []

    def deadly(item: Item, *rest: Any) -> Any:
        looked.append(item.key)
        if len(looked) in (4, 7):
            raise KeyboardInterrupt
        return look(item, *rest)

    monkeypatch.setattr(gathering, "look", deadly)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            gather([source], tmp_path / "out", CROPS)
        assert not (tmp_path / "out/faces").exists() and not (tmp_path / "out/card.json").exists()
    again = gather([source], tmp_path / "out", CROPS)
    assert again["sources"] == whole["sources"]
    for name in ("images", "labels", "split"):
        files = [tmp_path / out / f"faces/{name}.npy" for out in ("whole", "out")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert looked.count("p000.png") == 1 and looked.count("p002.png") == 2  # one batch was lost
    assert gather([source], tmp_path / "out", CROPS) == again  # done: nothing is looked at
    assert len(looked) == 4 + 3 + 5


def test_odd_files_are_named_and_the_rest_is_gathered(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", 2)
    good = picture(_noise(50), "png", "rgb24")
    (source / "empty.png").write_bytes(b"")
    (source / "text.jpg").write_text("no picture")
    (source / "cut.mp4").write_bytes(movie([quadrants()] * 9)[:900])
    (source / "one.png").write_bytes(picture(_noise(1, 1), "png", "rgb24"))
    (source / "gray.png").write_bytes(picture(_noise(2), "png", "gray"))
    (source / "alpha.png").write_bytes(picture(_noise(3, channels=4), "png", "rgba"))
    (source / "notes.txt").write_text("12 faces")
    (source / ".hidden.png").write_bytes(good)
    (source / "link.png").symlink_to(source / "p000.png")
    (source / "again").mkdir()
    (source / "again/same.png").write_bytes((source / "p001.png").read_bytes())
    report = gather([source], tmp_path / "out", CROPS)
    assert report["unreadable"]["count"] == 3
    for name in ("empty.png", "text.jpg", "cut.mp4"):
        assert any(name in line for line in report["unreadable"]["first"])
    assert report["duplicates"] == {
        "count": 1, "first": [f"{source}/again/same.png: {source}/p001.png"]
    }  # fmt: skip
    assert report["kept"] == 5  # two pictures, gray, alpha, and the pixel that fills a crop
    assert [v["first"] for v in report["problems"].values()] == [[f"{source}: notes.txt"]]
    page = (tmp_path / "out/report.md").read_text("utf-8")
    assert "Unreadable files: 3" in page and "cut.mp4" in page


def test_cmyk_pictures_and_turned_ones_are_seen_as_meant(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    upright = image.fromarray(quadrants(64, 64))
    (tmp_path / "in").mkdir()
    upright.convert("CMYK").save(tmp_path / "in/a.jpg", quality=95)
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.rotate(90).save(tmp_path / "in/b.jpg", exif=exif, quality=95)
    gather([tmp_path / "in"], tmp_path / "out", CROPS)
    for found in open_set(tmp_path / "out", "faces")["images"]:
        assert np.abs(found[8:24, 8:24].astype(int) - (255, 0, 0)).mean() < 12
        assert np.abs(found[8:24, 40:56].astype(int) - (0, 255, 0)).mean() < 12


def test_no_faces_are_a_report_and_an_empty_set(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    report = gather([tmp_path / "in"], tmp_path / "out", CROPS)
    assert report["kept"] == 0 and report["sources"] == {}
    assert len(open_set(tmp_path / "out", "faces")["images"]) == 0


def test_each_filter_drops_what_it_measures_and_the_report_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    sharp, flat = _noise(0, 200), np.full((200, 200, 3), 90, np.uint8)
    files = {"small": sharp, "cut": _noise(1, 200), "turned": _noise(2, 200), "flat": flat,
             "good": _noise(3, 200)}  # fmt: skip
    eyes = {
        "small": Eyes((50, 50, 20, 20)),
        "cut": Eyes((-40, 50, 100, 100)),
        "turned": Eyes((50, 50, 100, 100), turned=0.9),
        "flat": Eyes((50, 50, 100, 100)),
        "good": Eyes((50, 50, 100, 100), turned=NOTHING),
    }
    for name, pixels in files.items():
        (source / f"{name}.png").write_bytes(picture(pixels, "png", "rgb24"))
    monkeypatch.setattr(
        gathering, "look", lambda item, settings, _: look(item, settings, eyes[item.path.stem])
    )
    report = gather([source], tmp_path / "out", GatherSettings())["sources"][str(source)]
    assert report["faces"] == 5 and report["kept"] == 1
    assert report["dropped"] == {
        "stray": 0, "too small": 1, "cut off": 1, "large profile": 1, "blurred": 1
    }  # fmt: skip
    for measure in report["measures"].values():
        assert sum(measure["counts"]) + measure["not_measured"] == 5
    size, turned = report["measures"]["size"], report["measures"]["turned"]
    assert size["counts"][size["bins_from"].index(20)] == 1
    assert turned["not_measured"] == 1 and turned["counts"][turned["bins_from"].index(0.8)] == 1
    with sqlite3.connect(tmp_path / "out/index.sqlite") as index:
        rows = index.execute(
            "SELECT key, reason, x, w FROM faces JOIN files ON file = id ORDER BY key"
        ).fetchall()
    assert rows[0] == ("cut.png", "cut off", -40.0, 100.0) and rows[2][:2] == ("good.png", None)


def test_of_a_video_only_faces_that_several_frames_show_are_kept(tmp_path: Path) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(movie([quadrants(160, 160)] * 20))
    calls = []

    class Now(Eyes):
        def find(self, picture: NDArray[np.uint8]) -> Found:
            calls.append(picture)
            boxes = [(20.0, 20, 60, 60)] * (len(calls) in (2, 5)) + [(100, 100, 50, 50)] * (
                len(calls) == 3
            )
            return Eyes(*boxes).find(picture)

    settings = replace(GatherSettings(), frames=6)
    found = look(Item(clip, "clip.mp4"), settings, Now())
    assert len(calls) == 6 and not found.error
    assert [face.measures["agreeing"] for face in found.faces] == [2, 1, 2]
    assert [face.reason for face in found.faces][1] == "stray"
    assert found.faces[0].time < found.faces[2].time


def test_a_real_face_is_found_in_pictures_and_video(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    source = tmp_path / "in"
    source.mkdir()
    for name in ("single_face.jpg", "single_face.mp4", "no_face.mp4"):
        shutil.copy(media / name, source)
    report = gather([source], tmp_path / "out", replace(GatherSettings(), frames=4))
    assert report["kept"] == 5
    assert [Path(line).name for line in report["without_face"]["first"]] == ["no_face.mp4: "]
    turned = report["sources"][str(source)]["measures"]["turned"]
    assert sum(turned["counts"][:4]) == 5  # below 0.4: the profile cascade hardly sees them


def test_workers_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    source = _pictures(tmp_path / "in", 5)
    reports = [gather([source], tmp_path / f"out{n}", CROPS, workers=n) for n in (1, 2)]
    assert reports[0]["sources"] == reports[1]["sources"]
    files = [tmp_path / f"out{n}/faces/images.npy" for n in (1, 2)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_would_mix_two_gatherings_is_refused(tmp_path: Path) -> None:
    source = _pictures(tmp_path / "in", 1)
    gather([source], tmp_path / "out", CROPS)
    with pytest.raises(InvalidInputError, match=r"other options \(side\); expected side = 64"):
        gather([source], tmp_path / "out", replace(CROPS, side=32))
    with pytest.raises(InvalidInputError, match="lies in the source"):
        gather([source], source / "out", CROPS)
    with pytest.raises(InvalidInputError, match="there is no"):
        gather([tmp_path / "away"], tmp_path / "other", CROPS)
    with gathering.GatherIndex(tmp_path / "busy/index.sqlite", {}), \
            pytest.raises(InvalidInputError, match="another process"):  # fmt: skip
        gather([source], tmp_path / "busy", CROPS)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        gather([source], tmp_path / "file" / "out", CROPS)
    with pytest.raises(InvalidInputError, match="none of EmoLabel"):
        gather([source], tmp_path / "mistaken", replace(CROPS, labels="rafdb"))
    assert gather([source], tmp_path / "mistaken", CROPS)["kept"] == 1  # nothing was mixed
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/index.sqlite").write_text("something else, and long enough to be read" * 9)
    with pytest.raises(BundleCorruptError, match="no index"):
        gather([source], tmp_path / "odd", CROPS)


def test_the_split_is_drawn_by_file_or_by_folder(tmp_path: Path) -> None:
    for folder in range(6):
        _pictures(tmp_path / f"in/{folder}", 4, 10 * folder)
    settings = replace(CROPS, val_share=0.5)
    shares = {}
    for group in ("file", "folder"):
        out = tmp_path / group
        gather([tmp_path / "in"], out, replace(settings, group=group))
        shares[group] = np.load(out / "faces/split.npy").reshape(6, 4).mean(axis=1)
    assert set(shares["folder"]) == {0, 1}
    assert not set(shares["file"]) <= {0, 1}


def test_a_measure_that_is_not_known_drops_nobody() -> None:
    nothing = dict.fromkeys(MEASURES, NOTHING)
    assert reason_to_drop(nothing, Thresholds()) is None
    assert reason_to_drop(nothing | {"sharpness": 39.0, "size": 39.0}, Thresholds()) == "too small"


def test_landmarks_tell_the_yaw() -> None:
    """A head with its nose 0.6 eye distances before the eyes, turned and seen from afar."""
    for degrees in (-60, -30, 0, 30, 45):
        yaw = np.radians(degrees)
        points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.5, 0.6], [-0.3, 1, 0], [0.3, 1, 0]])
        seen = np.stack(
            (points[:, 0] * np.cos(yaw) + points[:, 2] * np.sin(yaw), points[:, 1]), axis=1
        )
        found = turned_by_landmarks((100 * seen[None] + 50).astype(np.float32))
        assert found[0] == pytest.approx(0.6 * abs(np.tan(yaw)), abs=1e-4)


def test_the_command_gathers_and_says_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = _pictures(tmp_path / "in", 3)
    arguments = ["gather", str(source), "--out", str(tmp_path / "out"), "--cropped"]
    assert main([*arguments, "--sharpness", "0", "--side", "48"]) == 0
    assert "3 of 3 faces kept" in capsys.readouterr().out
    assert open_set(tmp_path / "out", "faces")["images"].shape == (3, 48, 48, 3)
    assert main([*arguments, "--val-share", "2"]) == 2
    assert "val_share is 2.0; expected 0 to 1" in capsys.readouterr().err
