"""`merkit-train`: stages skipped when done, errors in one line, nothing mixed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_corpus import write_tiny_corpus

from merkit_training import cli

RECIPE = """
[run]
name = "test"
[face_encoder]
hidden = 16
layers = 1
heads = 2
patch = 16
single_epochs = 1
grid_epochs = 1
grid_singles = 8
batch_size = 16
threads = 1
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(RECIPE, "utf-8")
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_tiny_corpus(tmp_path / "corpus", train=32, val=8)


def _run(recipe: Path, corpus: Path, out: Path, *more: str) -> int:
    return cli.main(
        ["run", str(recipe), "--corpus", str(corpus), "--out", str(out),
         "--stage", "face_encoder", *more]
    )  # fmt: skip


def test_a_stage_runs_once_and_is_recorded(
    recipe: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _run(recipe, corpus, out) == 0
    assert "face_encoder: single_waf" in capsys.readouterr().out
    weights = (out / "face_encoder" / "model.safetensors").stat().st_mtime_ns
    record = json.loads((out / "run.json").read_text("utf-8"))
    assert record["seed"] == 0 and record["packages"]["torch"].startswith("2.")
    assert record["stages"]["face_encoder"]["scores"]["grid_accuracy"] >= 0
    assert len(record["data"]) == 64
    assert json.loads((out / "recipe.json").read_text("utf-8"))["run"]["name"] == "test"
    assert _run(recipe, corpus, out) == 0
    assert "skipped" in capsys.readouterr().out
    assert (out / "face_encoder" / "model.safetensors").stat().st_mtime_ns == weights


def test_two_recipes_never_mix_in_one_run(
    recipe: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert _run(recipe, corpus, out) == 0
    assert _run(recipe, corpus, out, "--seed", "1") == 2
    assert "another seed" in capsys.readouterr().err
    recipe.write_text(RECIPE.replace("hidden = 16", "hidden = 32"), "utf-8")
    assert _run(recipe, corpus, out) == 2
    assert "another [face_encoder]" in capsys.readouterr().err
    assert json.loads((out / "recipe.json").read_text("utf-8"))["face_encoder"]["hidden"] == 16
    recipe.write_text(RECIPE, "utf-8")
    (corpus / "card.json").write_text("{}", "utf-8")
    assert _run(recipe, corpus, out) == 2
    assert "another corpus" in capsys.readouterr().err


def test_a_killed_stage_continues(
    recipe: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from merkit_training.encoders.vision import train as vision

    out = tmp_path / "run"
    assert _run(recipe, corpus, tmp_path / "whole") == 0

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vision, "_teach_clips", interrupt)
        assert _run(recipe, corpus, out) == 130
    assert (out / "face_encoder" / "single.checkpoint").exists()
    assert not (out / "face_encoder" / "card.json").exists()
    assert _run(recipe, corpus, out) == 0
    name = Path("face_encoder") / "model.safetensors"
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "none.toml", "--corpus", ".", "--out", "x"], "none.toml cannot be read"),
        (["run", "{recipe}", "--corpus", "none", "--out", "x"], "no corpus at none"),
        (["run", "{recipe}", "--corpus", ".", "--out", "x", "--seed", "-1"], "--seed is -1"),
        (["run", "{recipe}", "--corpus", ".", "--out", "{recipe}"], "is a file"),
        (
            ["run", "{recipe}", "--corpus", "{tmp}", "--out", "{tmp}/r", "--stage", "face_encoder"],
            "merkit-train synth",
        ),
    ],
)
def test_mistakes_are_one_line_and_status_2(
    arguments: list[str],
    message: str,
    recipe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(recipe=recipe, tmp=tmp_path) for a in arguments]
    assert cli.main(filled) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


STUDIES = Path(__file__).parents[2] / "training" / "studies"
OF_MANY_SEEDS = [["study", f"{STUDIES}/audio-text.toml"], ["hear", f"{STUDIES}/hearing.toml"]]
OF_ONE_SEED = [["selftrain", "{recipe}"], ["run", "{recipe}"]]
NO_CORPUS = "there is no corpus at none; expected a folder that merkit-train synth wrote; run: "
DIFFERENT = "expected different numbers that are not negative"


@pytest.mark.parametrize(
    ("command", "option", "message"),
    [
        *((c, "", NO_CORPUS) for c in OF_MANY_SEEDS + OF_ONE_SEED),
        *((c, "--seeds 1 1", f"--seeds are [1, 1]; {DIFFERENT}") for c in OF_MANY_SEEDS),
        *((c, "--seeds -1", f"--seeds are [-1]; {DIFFERENT}") for c in OF_MANY_SEEDS),
        *((c, "--workers 0", "--workers is 0; expected 1 or more") for c in OF_MANY_SEEDS),
        *((c, "--seed -1", "--seed is -1; expected a number that is not") for c in OF_ONE_SEED),
    ],
)
def test_the_same_mistake_gets_the_same_answer_from_every_command(
    command: list[str], option: str, message: str, recipe: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    line = [part.format(recipe=recipe) for part in command]
    assert cli.main([*line, "--corpus", "none", "--out", "x", *option.split()]) == 2
    assert capsys.readouterr().err.startswith(f"merkit-train: {message}")


def test_a_missing_extra_is_named(recipe: Path, corpus: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe), "--corpus", str(corpus), "--out", str(tmp_path / "run")]
    code = (
        "import sys; sys.modules['torch'] = None; from merkit_training.cli import main;"
        f"sys.exit(main({arguments!r}))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert "pip install 'merkit[train]'" in ended.stderr and ended.stderr.count("\n") == 1


def test_help_names_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", "--help"])
    assert stopped.value.code == 0
    assert "face_encoder_large" in capsys.readouterr().out


def test_an_unknown_stage_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["run", str(recipe), "--corpus", ".", "--out", "x", "--stage", "faces"])
    assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_line(
    recipe: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "run"
    assert cli.main(["run", str(recipe), "--corpus", str(corpus), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert str(out) in error and error.count("\n") == 1


def test_a_stage_asked_for_that_the_recipe_leaves_out_is_said(
    recipe: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(recipe), "--corpus", str(corpus), "--out", str(tmp_path / "run")]
    assert cli.main([*arguments, "--stage", "face_pretraining"]) == 0
    assert "face_pretraining: left out" in capsys.readouterr().out
