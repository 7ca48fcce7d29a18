"""What a study compares, stated before anything is measured.

A comparison put together by hand trains its rows at different times on different data, and its
claim is found after the figures. A study is a file: a recipe, the changes that make each row, the
stages that the rows share, what is measured, and the claims (the seed's own directions).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.settings import Count, from_table
from merkit_training.stages import STAGES

MERBENCH = " (MERBench)"
"""Set behind groups in the name of a row under the published head, in its own training."""
SYSTEMS = ("majority class", "logistic regression", "mean probability", "vote")
"""Systems over all feature groups that can stand beside single heads."""


@dataclass(frozen=True)
class Claim:
    """One row is said to beat another, on each test split."""

    says: str  # in words, with the seed's figures
    better: str  # a row: a variant, or `variant: groups` where several groups are measured
    worse: str


@dataclass(frozen=True)
class Variant:
    """One row: how its recipe differs from the study's."""

    name: str
    recipe: Mapping[str, Mapping[str, Any]]  # by table, the keys that differ


@dataclass(frozen=True)
class Study:
    """A study as its file states it."""

    name: str
    title: str
    about: str  # what the page says above the table
    stages: tuple[str, ...]  # that each row trains, in order
    groups: tuple[str, ...]  # feature groups whose heads are scored, such as "v" or "a+t"
    variants: tuple[Variant, ...]
    shared: tuple[str, ...] = ()  # stages that rows of one seed with the same table share
    merbench: tuple[str, ...] = ()  # feature groups also under MERBench's head and training
    systems: tuple[str, ...] = ()  # of `SYSTEMS`, over all groups
    claims: tuple[Claim, ...] = ()
    seeds: Count = 3
    epochs: Count = 30  # of each head
    tables: Mapping[str, Any] = field(default_factory=dict)  # the recipe's, before changes

    def recipe_of(self, variant: Variant, seed: int) -> Recipe:
        """The recipe of a row under a seed; InvalidInputError names a wrong key."""
        tables = {name: dict(table) for name, table in self.tables.items()}
        for name, table in variant.recipe.items():
            tables[name] = tables.get(name, {}) | dict(table)
        return recipe_from(tables, f"{self.name}: {variant.name}").with_seed(seed)

    def rows(self) -> list[str]:
        """The rows' names, in order."""
        return [row_name(v.name, h, self) for v in self.variants for h in self.heads()]

    def heads(self) -> list[str]:
        """What is scored of each variant, by name: groups, groups under MERBench, systems."""
        return [*self.groups, *(f"{g}{MERBENCH}" for g in self.merbench), *self.systems]

    def letters(self) -> list[str]:
        """The feature groups that the heads read."""
        return sorted({g for row in (*self.groups, *self.merbench) for g in row.split("+")})


def row_name(variant: str, head: str, study: Study) -> str:
    """How a row is called: by what tells it apart."""
    if len(study.heads()) == 1:
        return variant
    return head if len(study.variants) == 1 else f"{variant}: {head}"


def read_study(path: Path) -> Study:
    """Reads a study from TOML; its `recipe` is a path relative to the file.

    Raises:
        InvalidInputError: no file or no TOML; an unknown key, stage, group or row.
    """
    content = _toml(path)
    variants = tuple(_variant(table, path) for table in content.pop("variants", ()))
    recipe = path.parent / str(content.pop("recipe", ""))
    plain = from_table(_Plain, content, path.name)
    study = Study(
        **{**vars(plain), "claims": plain.claims}, variants=variants, tables=_toml(recipe)
    )
    _check(study, path)
    return study


@dataclass(frozen=True)
class _Plain:
    """The keys of the file that have plain types."""

    name: str
    title: str
    about: str
    stages: tuple[str, ...]
    groups: tuple[str, ...]
    shared: tuple[str, ...] = ()
    merbench: tuple[str, ...] = ()
    systems: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    seeds: Count = 3
    epochs: Count = 30


def _variant(table: Any, path: Path) -> Variant:
    if not isinstance(table, dict) or not isinstance(table.get("name"), str):
        raise InvalidInputError(f"{path.name}: a variant is {table!r}", "a table with a name")
    changes = {name: value for name, value in table.items() if name != "name"}
    for name, value in changes.items():
        if not isinstance(value, dict):
            raise InvalidInputError(
                f"{path.name}: {table['name']}.{name} is {value!r}",
                "a table of the recipe with the keys that differ",
                f"write {name} = {{key = value}}",
            )
    return Variant(table["name"], changes)


def _check(study: Study, path: Path) -> None:
    names = [v.name for v in study.variants]
    groups = study.letters()
    wrong = [(f"the stage {s!r}", ", ".join(STAGES)) for s in study.stages if s not in STAGES]
    unknown = [s for s in study.shared if s not in study.stages]
    wrong += [(f"the shared stage {s!r}", "one of its stages") for s in unknown]
    wrong += [(f"the group {g!r}", ", ".join(GROUPS)) for g in groups if g not in GROUPS]
    wrong += [(f"the system {s!r}", ", ".join(SYSTEMS)) for s in study.systems if s not in SYSTEMS]
    if study.systems and set(groups) != set(GROUPS):
        wrong += [(f"systems over the groups {groups}", f"all of {', '.join(GROUPS)}")]
    wrong += [
        (f"the row {row!r} of a claim", ", ".join(study.rows()))
        for claim in study.claims
        for row in (claim.better, claim.worse)
        if row not in study.rows()
    ]
    if len(set(names)) < len(names) or not names or not groups:
        wrong.insert(0, (f"variants {names} with groups {groups}", "some, and no name twice"))
    for found, expected in wrong[:1]:
        raise InvalidInputError(f"{path.name}: {found} cannot be", expected, "correct the study")
    for variant in study.variants:
        study.recipe_of(variant, 0)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        found = f"{path} cannot be read ({error.strerror})"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        found = f"{path} is no TOML ({error})"
    raise InvalidInputError(found, "a study, or its recipe, in TOML", "correct its path or text")
