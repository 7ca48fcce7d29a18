"""The challenge's file: every name once, in order; no silent guess, no silent overwriting."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import odd_media
import pytest

from merkit.bundle import Bundle
from merkit.errors import InvalidInputError
from merkit_training.cli import main
from merkit_training.evaluation.subject import Subject, open_subject
from merkit_training.evaluation.submission import submit
from merkit_training.labels import MER6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips that can be answered, one without evidence, one broken."""
    root = tmp_path_factory.mktemp("mer")
    (root / "video").mkdir()
    for i, name in enumerate(("b", "a", "c")):
        wave = (0.2 + 0.3 * i) * odd_media.tone(0.5)
        (root / "video" / f"{name}.wav").write_bytes(odd_media.sound_file(wave))
    picture = odd_media.picture(odd_media.gray(90), "png", "rgb24")
    (root / "video" / "blank.png").write_bytes(picture)
    (root / "video" / "broken.mp4").write_bytes(b"no media at all" * 99)
    (root / "transcripts.csv").write_text("name,chinese,english\na,,hello\nb,你好,\n")
    return root


@pytest.fixture
def subject(toy_bundle: Bundle) -> Iterator[Subject]:
    opened = open_subject(toy_bundle.root, threads=1)
    with opened.client:
        yield opened


def test_every_clip_has_a_line_and_what_was_filled_is_told(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    done = submit(subject, folder, out)
    lines = out.read_text("utf-8").splitlines()
    assert lines[0] == "name,discrete"
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "b", "blank", "broken", "c"]
    assert set(done.filled) == {"blank", "broken"} and done.extra == ()
    answered = [done.labels[name] for name in "abc"]
    assert done.majority == max(MER6, key=answered.count)
    assert done.labels["blank"] == done.labels["broken"] == done.majority
    expected = subject.client.predict(folder / "video" / "a.wav", "hello").label
    assert done.labels["a"] == expected


def test_the_list_of_names_rules(subject: Subject, folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.csv"
    names.write_text("name\nc\nblank\na\n")
    done = submit(subject, folder, tmp_path / "s.csv", names=names, majority="worried")
    assert list(done.labels) == ["c", "blank", "a"] and done.labels["blank"] == "worried"
    assert done.extra == ("b", "broken")
    names.write_text("name\nc\nnobody\n")
    with pytest.raises(InvalidInputError, match="nobody"):
        submit(subject, folder, tmp_path / "t.csv", names=names)
    assert not (tmp_path / "t.csv").exists()
    done = submit(subject, folder, tmp_path / "t.csv", names=names, fill_missing=True)
    assert list(done.labels) == ["c", "nobody"] and "nobody" in done.filled
    plain = tmp_path / "names.txt"
    plain.write_text("c\nc\n")
    with pytest.raises(InvalidInputError, match="c twice"):
        submit(subject, folder, tmp_path / "u.csv", names=plain)


def test_transcripts_may_come_from_elsewhere(
    subject: Subject, folder: Path, tmp_path: Path
) -> None:
    texts = tmp_path / "texts.csv"
    texts.write_text("name,text\nc,quite other words\n")
    done = submit(subject, folder, tmp_path / "s.csv", texts=texts)
    expected = subject.client.predict(folder / "video" / "c.wav", "quite other words").label
    assert done.labels["c"] == expected


def test_nothing_is_overwritten_unasked(subject: Subject, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    out.write_text("precious")
    with pytest.raises(InvalidInputError, match="exists"):
        submit(subject, folder, out)
    assert out.read_text() == "precious"
    submit(subject, folder, out, overwrite=True)
    assert out.read_text().startswith("name,discrete")


def test_the_command_tells_each_guess(
    toy_bundle: Bundle, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = str(toy_bundle.root), str(tmp_path / "s.csv")
    assert main(["submit", bundle, "--data", str(folder), "--out", out]) == 0
    told = capsys.readouterr()
    assert "5 names, 3 of them answered" in told.out
    assert "blank:" in told.err and "broken:" in told.err
    for wrong in (["--data", str(tmp_path / "none")], ["--data", str(folder), "--majority", "odd"]):
        assert main(["submit", bundle, *wrong, "--out", str(tmp_path / "x.csv")]) == 2
