"""The report: self-contained, escaped, and truthful about its bundle."""

from __future__ import annotations

import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from merkit.cli.table import bar, printable, table
from merkit.client import Client
from merkit.errors import ClipUnreadableError, InvalidInputError
from merkit.report import DEMONSTRATION, Report
from merkit.results import Face, Prediction, Vote
from merkit.testing import CannedBackend

EVIL = '<script>alert("x")</script>&\'"'
VOID = {"meta", "rect", "image", "!doctype"}  # closed by themselves


class Balanced(HTMLParser):
    """Fails on tags that are not closed in order; collects what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    assert not parser.open
    return parser


@pytest.fixture
def prediction() -> Prediction:
    scores = {"happy": 0.7, EVIL: 0.3}
    return Prediction(
        source=EVIL,
        label="happy",
        scores=scores,
        votes={"a+t+v": Vote("happy", scores), "a+v+j": None},
        modalities=("video", "text"),
        contributions={"video": 0.6, "text": 0.4},
        transcript=EVIL,
        faces=(Face(0.5, (8.0, 8.0, 16.0, 16.0), 0.9), Face(1.5, (8.0, 8.0, 16.0, 16.0), 0.8)),
        timings_ms={"total": 12.0, "fusion": 2.0},
        bundle={"bundle_id": "abcd", "name": EVIL},
        warnings=(EVIL,),
        picture=(64, 48),
        frames={0.5: np.full((48, 64, 3), 120, np.uint8)},
    )


def test_everything_is_inside_and_escaped(prediction: Prediction) -> None:
    report = Report()
    report.add(prediction.source, prediction)
    report.add(EVIL, ClipUnreadableError(EVIL, EVIL, EVIL))
    html = report.html()
    page = parsed(html)
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/", "#clip-")) for link in page.links)
    assert "http" not in re.sub(r'http-equiv="', "", html)
    assert html.count("data:image/") == 1
    for said in ("happy", "70.0%", "abstained", "video 60", "ClipUnreadableError", "2024/1689"):
        assert said in html


def test_the_bundles_own_notice_takes_the_place_of_the_general_one(prediction: Prediction) -> None:
    report = Report()
    report.add("x", prediction)
    assert DEMONSTRATION in report.html()
    other = Report()
    prediction.bundle["notice"] = "Trained on <real> data."  # type: ignore[index]
    other.add("x", prediction)
    assert "Trained on &lt;real&gt; data." in other.html()
    assert DEMONSTRATION not in other.html()


def test_a_failed_write_leaves_nothing(prediction: Prediction, tmp_path: Path) -> None:
    report = Report()
    report.add("x", prediction)
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(InvalidInputError, match="cannot be written"):
        report.write(folder)
    with pytest.raises(InvalidInputError):
        report.write(tmp_path / "no" / "report.html")
    os.mkfifo(tmp_path / "taken" / "pipe")
    with pytest.raises(InvalidInputError):
        report.write(folder / "pipe")
    assert (folder / "pipe").is_fifo()
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
    (tmp_path / "link.html").symlink_to("report.html")
    report.write(tmp_path / "link.html")
    assert (tmp_path / "link.html").is_symlink()
    report.write(tmp_path / "report.html")
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o644
    parsed((tmp_path / "report.html").read_text("utf-8"))


def test_a_file_name_that_is_no_text_can_be_reported() -> None:
    answer = Client(CannedBackend({"up": 0.6, "down": 0.4})).predict(text="x", source="\udcff.mp4")
    report = Report()
    report.add(answer.source, answer)
    assert "up" in report.html()


def test_a_table_has_no_control_characters_and_fits(prediction: Prediction) -> None:
    plain = Client(CannedBackend({"up": 0.6, "down": 0.4})).predict(text="a\nb\x1b[1m" * 40)
    lines = table(plain).splitlines()
    assert all(len(line) <= 100 and printable(line) == line for line in lines)
    assert "abstained" in table(prediction)
    assert "2, from 0.5 to 1.5 s" in table(prediction)


@pytest.mark.parametrize(("share", "full"), [(0, 0), (1, 10), (0.5, 5), (-1, 0), (2, 10)])
def test_bars(share: float, full: int) -> None:
    assert bar(share, 10).count("█") == full
    assert bar(share, 10, unicode=False) == "#" * full + " " * (10 - full)
