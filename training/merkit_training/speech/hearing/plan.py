"""What a hearing study compares, stated in a file before anything is measured.

Rows are recognisers (each adds something to the one before), separators, and the chain of both in
front of an emotion model. Every row is trained under every seed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from merkit.errors import InvalidInputError
from merkit_training.corpus import CLIP_SPLITS
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.settings import Count, Natural, Range, Share, from_table

TESTS = tuple(split for split in CLIP_SPLITS if split.startswith("test"))
Decibels = Annotated[float, Range(-20, 60)]


@dataclass(frozen=True)
class Row:
    """A recogniser or separator: how its recipe differs from the study's."""

    name: str
    tables: Mapping[str, Mapping[str, Any]]
    self_training: bool = False  # a recogniser that goes on with sound that has no text
    like: str = ""  # a recogniser's row, trained there: this one adds the language model


@dataclass(frozen=True)
class HearingStudy:
    """A study as its file states it."""

    name: str
    title: str
    about: str  # what the page says above the tables
    chain: str  # the recogniser's row that the chain hears with
    recognizers: tuple[Row, ...]
    separators: tuple[Row, ...]
    tables: Mapping[str, Any] = field(default_factory=dict)  # the recipe's, before changes
    seeds: Count = 3
    split: str = "test_multi"  # clips whose words are recognised
    clips: Natural = 300  # of it; 0: all
    snrs: tuple[Decibels, ...] = (20.0, 10.0, 5.0, 0.0)
    beam: Count = 5
    emotion_clips: Natural = 100  # of each test split, for the chain; 0: all
    thresholds: tuple[Share, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)  # of the selection rule
    clean_from: tuple[Decibels, ...] = (10.0, 20.0, 25.0, 30.0, 35.0)  # estimates not to separate

    def recipe_of(self, row: Row | None, seed: int) -> Recipe:
        """The recipe of a row (None: of the study itself) under a seed; that of a row `like`
        another begins with the other's."""
        tables = {name: dict(table) for name, table in self.tables.items()}
        like = [r for r in self.recognizers if row and r.name == row.like]
        for each in (*like, *((row,) if row else ())):
            for name, table in each.tables.items():
                tables[name] = tables.get(name, {}) | dict(table)
        where = f"{self.name}: {row.name}" if row else self.name
        return recipe_from(tables, where).with_seed(seed)


@dataclass(frozen=True)
class _Plain:
    """The keys of the file that have plain types."""

    name: str
    title: str
    about: str
    chain: str
    seeds: Count = 3
    split: str = "test_multi"
    clips: Natural = 300
    snrs: tuple[Decibels, ...] = (20.0, 10.0, 5.0, 0.0)
    beam: Count = 5
    emotion_clips: Natural = 100
    thresholds: tuple[Share, ...] = (0.0, 0.05, 0.1, 0.2, 0.3)
    clean_from: tuple[Decibels, ...] = (10.0, 20.0, 25.0, 30.0, 35.0)


def read_hearing(path: Path) -> HearingStudy:
    """Reads a study from TOML; its `recipe` is a path relative to the file, `[tables.<table>]`
    what it changes of that for all rows.

    Raises:
        InvalidInputError: no file or no TOML; an unknown key, split or row.
    """
    content = _toml(path)
    recognizers = tuple(_row(t, path) for t in content.pop("recognizers", ()))
    separators = tuple(_row(t, path) for t in content.pop("separators", ()))
    tables = _toml(path.parent / str(content.pop("recipe", "")))
    for name, table in content.pop("tables", {}).items():
        tables[name] = tables.get(name, {}) | table
    plain = from_table(_Plain, content, path.name)
    study = HearingStudy(
        **vars(plain), recognizers=recognizers, separators=separators, tables=tables
    )
    _check(study, path)
    return study


def _row(table: Any, path: Path) -> Row:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise InvalidInputError(f"{path.name}: a row is {table!r}", "a table with a name")
    known = {key: table[key] for key in ("name", "self_training", "like") if key in table}
    changes = {key: value for key, value in table.items() if key not in known}
    wrong = [key for key, value in changes.items() if not isinstance(value, dict)]
    if wrong or not isinstance(known.get("self_training", False), bool):
        raise InvalidInputError(
            f"{path.name}: {table['name']} has {(wrong or ['self_training'])[0]!r} of a wrong type",
            "name, self_training = true, like, and tables of the recipe",
            "correct the study",
        )
    return Row(tables=changes, **known)


def _check(study: HearingStudy, path: Path) -> None:
    names = [row.name for row in (*study.recognizers, *study.separators)]
    own = [row.name for row in study.recognizers if not row.like]
    wrong = [(f"like {r.like!r}", own) for r in study.recognizers if r.like and r.like not in own]
    if len(set(names)) < len(names) or not own:
        wrong.insert(0, (f"rows {names}", ["some recognisers, and no name twice"]))
    if study.chain not in {row.name for row in study.recognizers}:
        wrong.append((f"the chain {study.chain!r}", [r.name for r in study.recognizers]))
    if study.split not in TESTS:
        wrong.append((f"the split {study.split!r}", list(TESTS)))
    for found, expected in wrong[:1]:
        raise InvalidInputError(
            f"{path.name}: {found} cannot be", ", ".join(expected), "correct the study"
        )
    for row in (*study.recognizers, *study.separators):
        study.recipe_of(row, 0)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        found = f"{path} cannot be read ({error.strerror})"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = f"{path} is no TOML ({error})"
    raise InvalidInputError(found, "a study, or its recipe, in TOML", "correct its path or text")
