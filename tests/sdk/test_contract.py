"""The contract: one hash for what both sides must agree on, and no crash on any JSON."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merkit.contract import Contract, Preprocessing, StepSpec, TensorSpec
from merkit.errors import BundleCorruptError
from merkit.pipeline import GROUPS, standard_contract

CONTRACT = standard_contract(("calm", "tense", "glad"), dict.fromkeys(GROUPS, 8))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def test_json_gives_the_same_contract_back() -> None:
    again = Contract.from_json(CONTRACT.to_json())
    assert again == CONTRACT
    assert again.contract_id == CONTRACT.contract_id
    assert len(bytes.fromhex(CONTRACT.contract_id)) == 16


@pytest.mark.parametrize("name", [f.name for f in fields(Preprocessing)])
def test_every_preprocessing_constant_is_part_of_the_identity(name: str) -> None:
    value = getattr(CONTRACT.preprocessing, name)
    if isinstance(value, str):
        other: Any = value + "?"
    else:
        other = (*value[1:], 0.25) if isinstance(value, tuple) else value + 1
    changed = replace(CONTRACT.preprocessing, **{name: other})
    assert replace(CONTRACT, preprocessing=changed).contract_id != CONTRACT.contract_id


def test_the_identity_covers_labels_and_voters_and_tensors_but_not_the_way_of_computing() -> None:
    others = [
        replace(CONTRACT, labels=CONTRACT.labels[::-1]),
        replace(CONTRACT, voters=CONTRACT.voters[::-1]),
        replace(CONTRACT, tensors={**CONTRACT.tensors, "x": TensorSpec("bool", ("batch",))}),
    ]
    assert len({c.contract_id for c in (CONTRACT, *others)}) == 4
    merged = StepSpec("fusion_and_voting", "onnx", ("presence",), ("label",))
    assert replace(CONTRACT, steps=(merged,)).contract_id == CONTRACT.contract_id


@given(JSON)
def test_any_json_is_a_contract_or_a_typed_error(value: object) -> None:
    with pytest.raises(BundleCorruptError):
        Contract.from_json(value)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from _leaves(value[key], (*path, key))


PATHS = [path for path in _leaves(CONTRACT.to_json()) if path]


@settings(max_examples=300)
@given(st.sampled_from(PATHS), JSON)
def test_one_wrong_value_anywhere_is_a_contract_or_a_typed_error(
    path: tuple[Any, ...], value: object
) -> None:
    plain = copy.deepcopy(CONTRACT.to_json())
    inner = plain
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    try:
        read = Contract.from_json(plain)
    except BundleCorruptError as error:
        assert "contract in bundle.json" in error.found
    else:
        assert Contract.from_json(read.to_json()) == read


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("labels", ["one"], "labels"),
        ("labels", ["a", "a"], "labels"),
        ("groups", [1], "strings"),
        ("voters", [{"name": "x", "groups": ["unheard-of"]}], "unheard-of"),
        ("preprocessing", {"sample_rate": 8000}, "preprocessing"),
        ("tensors", {"x": {"dtype": "float8", "shape": ["batch"]}}, "float8"),
        ("tensors", {"x": {"dtype": "bool", "shape": [1]}}, "batch"),
    ],
)
def test_the_error_names_what_is_wrong(key: str, value: object, said: str) -> None:
    with pytest.raises(BundleCorruptError, match=said):
        Contract.from_json({**CONTRACT.to_json(), key: value})
