"""`merkit-train recipe`: all of a recipe, its remarks kept, and readable again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from merkit_training import cli
from merkit_training.recipe import load_recipe, recipe_from
from merkit_training.recipe_text import full_text, remarks

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
TEXT = """
[run]
name = "a # b"  # a name
weights = "int8"  # not stated
[preprocessing]
prompt = "你\\"好\\\\" # not stated: ours
face_size = 32
[fusion.branch]
hidden = 8  # not stated
"""


def test_remarks_are_told_from_strings() -> None:
    assert remarks(TEXT) == {
        ("run", "name"): "a name",
        ("run", "weights"): "not stated",
        ("preprocessing", "prompt"): "not stated: ours",
        ("preprocessing", "face_size"): "",
        ("fusion.branch", "hidden"): "not stated",
    }


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_printed_recipe_is_the_same_recipe(path: Path) -> None:
    recipe = load_recipe(path)
    text = full_text(recipe.to_json(), remarks(path.read_text("utf-8")))
    assert recipe_from(tomllib.loads(text)) == recipe


def test_the_command_marks_defaults_and_lists_what_is_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.toml"
    path.write_text(TEXT, "utf-8")
    assert cli.main(["recipe", str(path)]) == 0
    printed = capsys.readouterr().out
    assert recipe_from(tomllib.loads(printed)) == load_recipe(path)
    assert 'name = "a # b"  # a name\n' in printed
    assert "face_size = 32\n" in printed and "grid = 2  # default\n" in printed
    said = printed.splitlines()[-2]
    assert said.endswith(": run.weights, preprocessing.prompt, fusion.branch.hidden.")


def test_a_wrong_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[fusion]\nepochs = 0\n", "utf-8")
    assert cli.main(["recipe", str(path)]) == 2
    assert "fusion].epochs is 0" in capsys.readouterr().err
