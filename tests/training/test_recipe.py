"""Recipes: every mistake is named before anything trains."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.recipe import TABLES, load_recipe, recipe_from
from merkit_training.settings import Count, Range, Share, from_table

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"


@dataclass(frozen=True)
class Inner:
    """A nested table."""

    depth: Count = 1


@dataclass(frozen=True)
class Options:
    """Every kind of field that recipes use."""

    size: Count
    share: Share = 0.5
    name: str = "a"
    on: bool = False
    kind: Literal["x", "y"] = "x"
    sizes: tuple[Count, ...] = (1,)
    pair: tuple[float, float] = (0.0, 1.0)
    bounded: Annotated[int, Range(2, 4)] = 2
    maybe: Annotated[int, Range(1)] | None = None
    inner: Inner = field(default_factory=Inner)

    def __post_init__(self) -> None:
        if self.size == 13:
            raise ValueError("size must not be 13")


def test_values_arrive_as_declared() -> None:
    table = {"size": 3, "share": 1, "sizes": [2, 3], "pair": [1, 2], "inner": {"depth": 2}}
    options = from_table(Options, table, "t")
    assert options == Options(3, 1.0, sizes=(2, 3), pair=(1.0, 2.0), inner=Inner(2))
    assert isinstance(options.share, float)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "lacks the key 'size'"),
        ({"size": 1, "sice": 2}, "unknown key 'sice'"),
        ({"size": "1"}, r"t\.size is '1'; expected an int"),
        ({"size": True}, r"t\.size is True"),
        ({"size": 1.5}, r"t\.size is 1\.5"),
        ({"size": 0}, "expected 1 or more"),
        ({"size": 13}, "size must not be 13"),
        ({"size": 1, "share": 1.01}, "expected 0 to 1"),
        ({"size": 1, "share": float("nan")}, "expected a finite number"),
        ({"size": 1, "on": 1}, "expected a bool"),
        ({"size": 1, "kind": "z"}, "one of 'x', 'y'"),
        ({"size": 1, "sizes": 3}, "expected a list"),
        ({"size": 1, "sizes": [1, 0]}, r"sizes\[1\] is 0"),
        ({"size": 1, "pair": [1]}, "expected 2 values"),
        ({"size": 1, "bounded": 5}, "expected 2 to 4"),
        ({"size": 1, "maybe": 0}, "expected 1 or more"),
        ({"size": 1, "inner": {"depth": 0}}, r"t\.inner\.depth is 0"),
        ({"size": 1, "inner": 3}, "expected a table"),
        ([], "expected a table"),
    ],
)
def test_each_mistake_is_named(table: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        from_table(Options, table, "t")


def test_every_recipe_of_the_project_loads_and_survives_json() -> None:
    paths = sorted(RECIPES.glob("*.toml"))
    assert paths
    for path in paths:
        recipe = load_recipe(path)
        assert path.stem.startswith(recipe.run.name)
        assert recipe_from(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_an_empty_recipe_is_all_defaults() -> None:
    recipe = recipe_from({})
    assert recipe.preprocessing == Preprocessing()
    assert recipe.with_seed(5).run.seed == 5


def test_unknown_tables_and_keys_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"unknown table \[face_encodr\]"):
        recipe_from({"face_encodr": {}})
    with pytest.raises(InvalidInputError, match=r"\[face_encoder\] has the unknown key 'width'"):
        recipe_from({"face_encoder": {"width": 3}})
    with pytest.raises(InvalidInputError, match="multiple of heads"):
        recipe_from({"face_encoder": {"hidden": 30, "heads": 4}})


def test_what_is_no_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_recipe(tmp_path / "none.toml")
    (tmp_path / "a.toml").write_text("[run\n", "utf-8")
    with pytest.raises(InvalidInputError, match="no TOML"):
        load_recipe(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidInputError, match="no TOML"):
        load_recipe(tmp_path / "b.toml")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        load_recipe(tmp_path)


def test_reading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from merkit_training.recipe import recipe_from; recipe_from({});"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert set(TABLES) <= set(recipe_from({}).to_json())


@pytest.mark.parametrize(
    ("key", "value"),
    [("face_size", 0), ("grid", -1), ("sample_rate", 0), ("max_audio_seconds", -1.0)],
)
def test_impossible_preprocessing_is_refused(key: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=rf"\[preprocessing\]: {key} is"):
        recipe_from({"preprocessing": {key: value}})
