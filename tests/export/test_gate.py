"""The gate says what was found, and a bundle on record as failed stays where it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import merkit
from merkit.admission import releasable
from merkit.bundle import Bundle, open_bundle
from merkit.errors import InvalidInputError, UnreleasableBundleError
from merkit_export.cli import main
from merkit_export.clips import clips_of
from merkit_export.outcome import OutcomeParity
from merkit_export.page import page
from merkit_export.parity import StepParity
from merkit_export.report import Report
from merkit_export.tolerance import Budget, Tolerance
from merkit_export.verify import record

SURE, UNSURE = np.array([0.9, 0.1], np.float32), np.array([0.4, 0.6], np.float32)
INT8 = Tolerance("int8-qdq", None, 0.95, 0.02)


@pytest.fixture
def bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    return open_bundle(tmp_path / "bundle")


def outcome(flips: int, budget: Budget | None = None) -> OutcomeParity:
    found = OutcomeParity(("a", "b"), budget)
    for i in range(10):
        got = ("b", UNSURE) if i < flips else ("a", SURE)
        found.add(f"<clip {i}>", ("a", SURE), got, "a")
    return found.close()


def report(bundle: Bundle, flips: int = 0) -> Report:
    return Report(bundle, [StepParity("fusion", cases=3)], outcome(0), {"set": outcome(flips)})


def test_a_verdict_on_record_decides_whether_a_bundle_runs(bundle: Bundle) -> None:
    contract, identity = bundle.contract, bundle.bundle_id
    failed = record(report(bundle, flips=1))
    assert not releasable(failed)
    assert "<clip 0>" in failed.manifest["validation"]["unreleasable_because"][0]
    with pytest.raises(UnreleasableBundleError, match="clip 0"):
        merkit.load(bundle.root)
    passed = record(report(open_bundle(bundle.root)))
    assert releasable(passed)
    assert "unreleasable_because" not in passed.manifest["validation"]
    assert passed.manifest["validation"]["gate"]["clips"]["set"]["agreement"] == 1.0
    assert (passed.contract, passed.bundle_id) == (contract, identity)
    assert passed.manifest["name"] == bundle.manifest["name"]
    merkit.load(bundle.root).close()


def test_a_failed_bundle_is_not_signed(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    key = str(tmp_path / "key")
    assert main(["keygen", key]) == 0
    record(report(bundle, flips=1))
    assert main(["sign", str(bundle.root), "--key", key]) == 2
    assert "failed its gate" in capsys.readouterr().err
    assert main(["sign", str(bundle.root), "--key", key, "--unreleasable"]) == 0


def test_lossy_steps_need_clips(bundle: Bundle) -> None:
    lossy = StepParity("face_encoder", INT8)
    unjudged = Report(bundle, [lossy], outcome(0), {}, budget=Budget())
    assert not unjudged.passed
    assert "no clips were given" in next(unjudged.failures())
    assert any(line.startswith("FAIL  answers") for line in unjudged.lines())
    judged = replace(unjudged, clips={"set": outcome(1, Budget(0.9, 0.1, 0.1))})
    assert judged.passed
    assert not replace(judged, clips={"set": outcome(2, Budget(agreement=0.9))}).passed


@pytest.mark.parametrize("form", [Report.markdown, page], ids=["Markdown", "HTML"])
def test_pages_say_what_was_found(bundle: Bundle, form: Callable[[Report], str]) -> None:
    good, bad = form(report(bundle)), form(report(bundle, flips=1))
    assert "0.9000" not in good  # no flip, no loss
    assert "torch says a, the bundle b" in bad
    assert "fusion" in bad


def test_the_page_needs_nothing_and_runs_nothing(bundle: Bundle) -> None:
    text = page(report(bundle, flips=1))
    assert "<clip 0>" not in text
    assert "&lt;clip 0&gt;" in text
    assert "No: the gate is shut." in text
    for word in ("<script", "http://", "https://", "url("):
        assert word not in text


def test_machines_read_the_same(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "gate.json"
    report(bundle, flips=1).write(None, path, tmp_path / "gate.html")
    found = json.loads(path.read_text())
    assert not found["passed"]
    assert found["clips"]["set"]["labels_differ"] == 1
    assert found["clips"]["set"]["torch"]["waf"] == 1.0
    assert found["clips"]["set"]["bundle"]["waf"] < 1.0
    assert sorted(p.name for p in path.parent.iterdir()) == ["gate.json"]


def test_truth_is_read_where_it_is_known(tmp_path: Path) -> None:
    (tmp_path / "video").mkdir()
    for name in ("one", "two", "three"):
        (tmp_path / "video" / f"{name}.mp4").write_bytes(b"")
    assert {clip.truth for clip in clips_of(tmp_path, ("happy", "sad"))} == {""}
    labels = tmp_path / "labels.csv"
    labels.write_text("name,discrete\none,happiness\ntwo,angry\n", "utf-8")
    truths = {clip.name: clip.truth for clip in clips_of(tmp_path, ("happy", "sad"))}
    assert truths == {"one": "happy", "two": "", "three": ""}
    labels.write_text("name,discrete\none,calm\n", "utf-8")
    assert clips_of(tmp_path, ("calm", "loud"))[0].truth == "calm"
    with pytest.raises(InvalidInputError, match="calm"):
        clips_of(tmp_path, ("happy", "sad"))
