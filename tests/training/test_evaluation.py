"""The report end to end on a few clips and a toy bundle: what goes in, what is told, resuming."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import odd_media
import pytest
from conftest import REPOSITORY
from hearing_run import write_hearing_run
from random_run import SMALLEST

from merkit.bundle import Bundle
from merkit.errors import BundleNotFoundError, InvalidInputError, ServerUnavailableError
from merkit.pipeline import DECODED_IN, OUTCOME
from merkit.serving import Server
from merkit_training.cli import main
from merkit_training.data import ClipRecord
from merkit_training.evaluation.answers import Examiner
from merkit_training.evaluation.conditions import Material
from merkit_training.evaluation.labelled import read_labelled
from merkit_training.evaluation.material import Spool, look
from merkit_training.evaluation.measure import Settings
from merkit_training.evaluation.report import evaluate
from merkit_training.evaluation.subject import Subject, open_subject
from merkit_training.evaluation.submission import submit
from merkit_training.labels import MER6
from merkit_training.runs import write_json
from merkit_training.untrained import write_untrained_run

FACE = REPOSITORY / "docs" / "media" / "sample.mp4"
COLUMNS = ("path", "name", "discrete", "text", "speaker", "subset", "room")
SETTINGS = Settings(seed=3, resamples=60, worst=3, by=("room",))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table: a face, tones, words alone, and what goes wrong."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [{"path": str(FACE), "name": "face", "discrete": "happy", "text": "oh", "room": "a"}]
    for i in range(9):
        name = f"tone{i}"
        wave = (0.1 + 0.08 * i) * odd_media.tone(0.6) + 0.02 * i
        (folder / f"{name}.wav").write_bytes(odd_media.sound_file(wave.astype(np.float32)))
        subset = ("aligned", "conflicting")[i % 2]
        rows.append(
            {"path": f"{name}.wav", "discrete": MER6[i % 6], "speaker": f"s{i // 4}"}
            | {"text": f"words {i} <b>" if i else "", "subset": subset, "room": "ab"[i % 2]}
        )
    (folder / "blank.png").write_bytes(odd_media.picture(odd_media.gray(90), "png", "rgb24"))
    (folder / "broken.mp4").write_bytes(b"no media at all" * 99)
    rows += [
        {"path": "blank.png", "discrete": "sad"},
        {"path": "broken.mp4", "discrete": "sad", "text": "words"},
        {"path": "gone.mp4", "discrete": "sad"},
        {"path": "tone1.wav", "name": "odd", "discrete": "bored"},
        {"path": "tone2.wav", "name": "unknown", "discrete": ""},
    ]
    write_rows(folder / "clips.csv", rows)
    return folder / "clips.csv"


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def subject(toy_bundle: Bundle) -> Iterator[Subject]:
    opened = open_subject(toy_bundle.root, threads=1)
    with opened.client:
        yield opened


def run(subject: Subject, clips: Path, out: Path, **options: Any) -> dict[str, Any]:
    data = read_labelled(clips, subject.labels, by=SETTINGS.by)
    return evaluate(subject, data, out, SETTINGS, **options)


class Broken:
    """A backend that fails after some calls, and counts them."""

    def __init__(self, backend: Any, calls: int) -> None:
        self.backend, self.left, self.asked = backend, calls, 0
        self.contract, self.identity = backend.contract, backend.identity

    def infer(self, tensors: Any, timings: Any = None) -> Any:
        if self.asked >= self.left:
            raise ServerUnavailableError("the server is gone", "a server", "start it")
        self.asked += 1
        return self.backend.infer(tensors, timings)


def test_every_clip_is_in_the_figures_or_named(
    subject: Subject, clips: Path, tmp_path: Path
) -> None:
    report = run(subject, clips, tmp_path / "out")
    assert report == json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    data = report["data"]
    told = {p["clip"]: p["kind"] for p in report["problems"] if p["lost"]}
    assert data["labelled"] == 12 and data["unlabelled"] == 1 and data["answered"] == 10
    assert data["unreadable"] == 1 and data["without evidence"] == 1
    assert set(told) == {"gone", "odd", "broken", "blank"}, "what the reader refused, too"
    assert told["broken"] == "ClipUnreadableError" and told["blank"] == "no evidence"
    assert sorted(c["name"] for c in report["clips"]) == ["face", *(f"tone{i}" for i in range(9))]
    assert np.sum(report["confusion"]) == 10
    right = sum(c["truth"] == c["label"] for c in report["clips"])
    assert report["overall"]["accuracy"]["value"] == pytest.approx(right / 10)
    groups = report["groups"]
    assert [row["value"] for row in groups["subset"]] == ["aligned", "conflicting"]
    assert {row["value"]: row["clips"] for row in groups["room"]} == {"a": 6, "b": 4}
    assert sum(row["clips"] for row in groups["speaker"]) == 9
    assert [b["name"] for b in report["branches"]][-1] == "mean probability"
    robust = report["robustness"]
    assert robust["patterns"][0]["condition"] == "only:video+audio+text"
    by_key = {p["condition"]: p for p in robust["patterns"]}
    assert by_key["only:video+audio+text"]["waf"] == report["overall"]["waf"]
    assert by_key["only:video"]["clips"] == 1 and by_key["only:audio"]["clips"] == 10
    assert set(robust["curves"]) == {"noise", "babble", "blur"}
    assert robust["curves"]["blur"][0]["changed"] == 1, "only one clip has a face"


def test_the_page_stands_alone_and_escapes_what_clips_say(
    subject: Subject, clips: Path, tmp_path: Path
) -> None:
    report = run(subject, clips, tmp_path, hard=2)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in page and not re.search(r"(src|href)=\"(https?:)?//", page)
    for anchor in ("classes", "calibration", "branches", "subsets", "robustness", "worst", "data"):
        assert f'<article id="{anchor}">' in page and f'href="#{anchor}"' in page
    assert "NaN" not in page and "nan" not in page.replace("abstain", "")
    assert len(report["worst"]) == 3
    for row in report["worst"]:
        one = (tmp_path / "clips" / f"{row['name']}.html").read_text("utf-8")
        assert f'href="clips/{row["name"]}.html"' in page and row["label"] in one
        assert f"labelled {row['truth']}" in one
        assert "words" not in one or "<b>" not in one
    assert not list(tmp_path.glob("cache/*/spool")), "faces and voices are not kept"


def test_interrupted_or_repeated_the_report_is_the_same(
    subject: Subject, clips: Path, tmp_path: Path
) -> None:
    run(subject, clips, tmp_path / "whole", workers=3)
    whole = (tmp_path / "whole" / "report.json").read_bytes()
    real = subject.client.backend
    for calls in (4, 30):  # in the middle of each part
        subject.client.backend = Broken(real, calls)  # type: ignore[assignment]
        with pytest.raises(ServerUnavailableError):
            run(subject, clips, tmp_path / "cut")
        assert not (tmp_path / "cut" / "report.json").exists()
    counted = subject.client.backend = Broken(real, 10**6)  # type: ignore[assignment]
    run(subject, clips, tmp_path / "cut", workers=1)
    first = counted.asked
    assert (tmp_path / "cut" / "report.json").read_bytes() == whole
    run(subject, clips, tmp_path / "cut")
    assert counted.asked == first + SETTINGS.worst, "only the worst clips' pages ask again"
    assert (tmp_path / "cut" / "report.json").read_bytes() == whole
    subject.client.backend = real


def test_answers_of_a_changed_clip_or_another_model_are_not_used(
    subject: Subject, tmp_path: Path
) -> None:
    wav = tmp_path / "one.wav"
    wav.write_bytes(odd_media.sound_file(odd_media.tone(0.5)))
    record = ClipRecord("one", wav, "sad", "words")
    examiner = Examiner(subject, tmp_path / "cache", 0, 1)
    counted = subject.client.backend = Broken(subject.client.backend, 99)  # type: ignore[assignment]
    examiner._clean(record, False)
    examiner._clean(record, False)
    assert counted.asked == 1
    wav.write_bytes(odd_media.sound_file(odd_media.tone(0.7)))
    examiner._clean(record, False)
    assert counted.asked == 2
    next((examiner.folder / "answers").iterdir()).write_text("{ damaged")
    examiner._clean(record, False)
    assert counted.asked == 3
    assert Examiner(subject, tmp_path, 1, 1).folder != Examiner(subject, tmp_path, 2, 1).folder
    subject.client.backend = counted.backend


def test_the_spool_returns_what_it_was_given_and_nothing_else(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    crops = np.zeros((2, 4, 4, 3), np.uint8)
    spool.keep("a.b", "stamp", Material({1: crops, 2: crops[:1]}, np.ones(5, np.float32), "哦 "))
    found = spool.find("a.b", "stamp")
    assert found is not None and found.text == "哦 " and list(found.crops) == [1, 2]
    assert found.crops[2].shape == (1, 4, 4, 3) and found.waveform.sum() == 5
    assert spool.find("a.b", "other") is None and spool.find("c", "stamp") is None
    (tmp_path / "spool" / "a.b.npz").write_bytes(b"PK damaged")
    assert spool.find("a.b", "stamp") is None
    spool.remove()
    assert not (tmp_path / "spool").exists()


def test_a_corpus_split_brings_what_its_truth_says(tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "test"
    (folder / "video").mkdir(parents=True)
    write_json(tmp_path / "card.json", {})
    names = ["c1", "c2"]
    (folder / "labels.csv").write_text("name,discrete\nc1,sad\nc2,happy\n")
    (folder / "transcripts.csv").write_text("name,chinese,english\nc1,,hello\nc2,你好,\n")
    truths = [
        {"name": n, "identity": i, "voice": 7, "subset": "mixed"} for i, n in enumerate(names)
    ]
    (folder / "truth.jsonl").write_text("\n".join(map(json.dumps, truths)))
    for source, split in ((folder, ""), (tmp_path, "test")):
        data = read_labelled(source, MER6, split, by=("identity",))
        assert [item.label for item in data.items] == [3, 2] and data.split == "test"
        facts = dict(data.items[0].facts)
        assert facts == {"subset": "mixed", "voice": "7", "identity": "0", "speaker": "0"} | {
            "language": "en"
        }
    with pytest.raises(InvalidInputError, match="test"):
        read_labelled(tmp_path, MER6)
    with pytest.raises(InvalidInputError, match="column 'hat'"):
        read_labelled(folder, MER6, by=("hat",))
    found = read_labelled(folder, ("sad", "angry"))
    assert len(found.items) == 1 and found.problems[0].kind == "unknown label"


def test_a_run_answers_as_its_modules_do(random_run: Path) -> None:
    from merkit_export.reference import TorchBackend

    subject = open_subject(random_run)
    reference = TorchBackend(random_run)
    p = subject.contract.preprocessing
    record = ClipRecord("face", FACE, "happy", "I did not expect that")
    tensors = {name: look(record, p).tensors[name] for name in DECODED_IN}
    ours, theirs = subject.client.backend.infer(tensors), reference.infer(tensors)
    assert subject.facts["kind"] == "run" and subject.contract == reference.contract
    for name in OUTCOME:
        assert np.array_equal(ours[name], theirs[name]), name


def test_another_language_model_is_another_model(tmp_path: Path) -> None:
    """It decides words, and so answers that a cache keeps; its numbers are counted, not trained."""
    run = write_hearing_run(tmp_path / "run")
    marks = []
    for more in ("", "\n"):
        path = run / "language_model" / "model.arpa"
        path.write_text(path.read_text("utf-8") + more, "utf-8")
        with (subject := open_subject(run)).client:
            marks.append(subject.mark)
    assert marks[0] != marks[1]


def test_a_run_that_learnt_valence_tells_it(tmp_path: Path) -> None:
    branch = replace(SMALLEST.fusion.branch, valence=True)
    recipe = replace(SMALLEST, fusion=replace(SMALLEST.fusion, branch=branch))
    subject = open_subject(write_untrained_run(recipe, tmp_path / "run"))
    (tmp_path / "clips.csv").write_text("name,text,path\nface,what a surprise,face.mp4\n")
    shutil.copy(FACE, tmp_path / "face.mp4")
    done = submit(subject, tmp_path / "clips.csv", tmp_path / "answers.csv")
    header, line = (tmp_path / "answers.csv").read_text("utf-8").splitlines()
    assert header == "name,discrete,valence"
    assert line == f"face,{done.labels['face']},{done.valence['face']:.4f}"
    assert np.isfinite(done.valence["face"])


def test_the_command_says_what_is_wrong(
    toy_bundle: Bundle, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, data, out = str(toy_bundle.root), str(clips), str(tmp_path / "out")
    wrong = [
        ([bundle, "--url", "grpc://x:1", "--data", data, "--out", out], "a model and a server"),
        (["--data", data, "--out", out], "no model"),
        ([str(tmp_path), "--data", data, "--out", out], "neither a bundle nor a run"),
        ([bundle, "--data", str(tmp_path / "no.csv"), "--out", out], "no.csv cannot be read"),
        ([bundle, "--data", data, "--out", out, "--split", "test9"], "no labelled clip"),
        ([bundle, "--data", data, "--out", out, "--by", "hat"], "column 'hat'"),
        ([bundle, "--data", data, "--out", data], "no report can be written"),
        ([bundle, "--data", data, "--out", out, "--workers", "0"], "workers is 0"),
    ]
    for arguments, message in wrong:
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
    good = [bundle, "--data", data, "--out", out, "--robustness", "0", "--clips", "4"]
    assert main(["evaluate", *good, "--resamples", "20", "--worst", "0"]) == 0
    assert "waf" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["data"]["asked"] == 4 and report["robustness"] == {} and report["worst"] == []


def test_a_served_bundle_gets_the_same_report(
    subject: Subject, toy_server: Server, clips: Path, tmp_path: Path
) -> None:
    here = run(subject, clips, tmp_path / "here", hard=0)
    served = open_subject(None, toy_server.grpc)
    with served.client:
        there = run(served, clips, tmp_path / "there", hard=0)
    assert there["subject"]["kind"] == "server"
    assert there["confusion"] == here["confusion"] and there["problems"] == here["problems"]
    assert there["overall"]["brier"]["value"] == pytest.approx(
        here["overall"]["brier"]["value"], abs=1e-4
    )


def test_an_unfinished_run_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.json", {})
    with pytest.raises(BundleNotFoundError, match="fusion"):
        open_subject(tmp_path)
