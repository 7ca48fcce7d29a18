"""A run fused from features of other encoders is refused by name before anything is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from merkit.errors import InvalidInputError
from merkit_export.cli import main
from merkit_export.origin import read_origin
from merkit_training.recipe import recipe_from
from merkit_training.runs import write_json


def write_fused(run: Path, widths: dict[str, int], groups: list[str]) -> Path:
    """What the exporter reads first of a run."""
    write_json(run / "recipe.json", recipe_from({}).to_json())
    write_json(run / "run.json", {"stages": {}})
    facts = {"voters": [{"name": "+".join(groups), "groups": groups, "waf": 0.5}]}
    write_json(run / "fusion" / "config.json", facts | {"labels": ["a", "b"], "widths": widths})
    return run


@pytest.mark.parametrize("own", [{}, dict.fromkeys("atvjV", 4)], ids=["alone", "beside a run's"])
def test_groups_without_an_encoder_are_named(
    own: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_fused(tmp_path / "run", {**own, "clip": 8, "wavlm": 9}, ["clip", "wavlm"])
    assert main(["build", str(run), "--out", str(tmp_path / "bundle")]) == 2
    said = capsys.readouterr().err
    assert "clip, wavlm, which no encoder of the pipeline makes" in said
    assert "Traceback" not in said and not (tmp_path / "bundle").exists()


def test_missing_groups_are_named(tmp_path: Path) -> None:
    run = write_fused(tmp_path / "run", {"a": 4, "t": 4}, ["a", "t"])
    with pytest.raises(InvalidInputError, match="no features of v, j, V"):
        read_origin(run)
