"""The benchmark measures what it says: contenders in turn, paired ratios, figures that add up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from merkit.bundle import Bundle
from merkit.errors import InferenceError
from merkit_bench.contest import Tally, contest
from merkit_bench.summary import markdown, percentiles, summarise, write


def tally(*milliseconds: float, happy: float = 0.75) -> Tally:
    outcome = {"label": "happy", "scores": {"happy": happy, "sad": 1 - happy}}
    return Tally(1.0, 100.0, list(milliseconds), {"fusion": list(milliseconds)}, {"clip": outcome})


def test_a_contest_times_each_clip_in_each_round(toy_bundle: Bundle, tmp_path: Path) -> None:
    words: list[tuple[Path | None, str | None]] = [(None, "good"), (None, "not so good")]
    tallies = contest(["embedded"], words, 2, toy_bundle.root, tmp_path, threads=1)
    found = tallies["embedded"]
    assert len(found.total_ms) == 4
    assert {len(ms) for ms in found.step_ms.values()} == {4}
    assert found.cold_start_s > 0
    assert found.peak_mb > 10


def test_a_contender_that_dies_ends_the_contest(tmp_path: Path) -> None:
    with pytest.raises(InferenceError, match="ended with status"):
        contest(["embedded"], [(None, "good")], 1, tmp_path / "no-bundle", tmp_path, threads=1)


def test_ratios_are_medians_of_pairs_and_gaps_are_found(tmp_path: Path) -> None:
    tallies = {"torch": tally(10, 20, 90), "embedded": tally(5, 5, 30, happy=0.5)}
    result = summarise(tallies, {"clips": 1, "rounds": 3, "threads": 1, "trained": True})
    rows = result["contenders"]
    assert rows["embedded"]["ratio_p50"] == pytest.approx(3.0)  # of 2, 4 and 3
    assert rows["torch"]["ratio_p50"] == pytest.approx(1.0)
    assert rows["embedded"]["max_score_gap"] == pytest.approx(0.25)
    assert rows["embedded"]["same_labels"]
    write(result, tmp_path)
    assert json.loads((tmp_path / "latency.json").read_text()) == result
    assert (tmp_path / "latency.md").read_text() == markdown(result)
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"latency.{e}" for e in ("json", "md", "png")
    ]


def test_percentiles() -> None:
    assert percentiles([float(i) for i in range(101)]) == {"p50": 50, "p95": 95, "p99": 99}
