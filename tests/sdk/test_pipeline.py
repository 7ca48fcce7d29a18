"""Cuts through the pipeline: everything needed, nothing else, in an order that runs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merkit.errors import InvalidInputError
from merkit.pipeline import (
    BYTES_IN,
    DECODED_IN,
    DETAIL,
    GROUPS,
    OUTCOME,
    SEED_VOTERS,
    cut,
    standard_contract,
)

CONTRACT = standard_contract(("calm", "tense"), dict.fromkeys(GROUPS, 8))
STEPS = CONTRACT.steps
NAMES = sorted(CONTRACT.tensors)


@given(st.sets(st.sampled_from(NAMES)), st.sets(st.sampled_from(NAMES), min_size=1))
def test_a_cut_runs_in_order_and_holds_nothing_needless(
    inputs: set[str], outputs: set[str]
) -> None:
    try:
        kept = cut(STEPS, inputs, sorted(outputs))
    except InvalidInputError as error:
        assert "neither given nor made" in error.found
        return
    known = set(inputs)
    for step in kept:
        assert known.issuperset(step.inputs), "a step runs before what it reads is there"
        known.update(step.outputs)
    assert known >= outputs
    for left_out in kept:
        rest = {name for step in kept if step is not left_out for name in step.outputs}
        used = {name for step in kept if step is not left_out for name in step.inputs} | outputs
        missing = (set(left_out.outputs) & used) - set(inputs) - rest
        assert missing, f"{left_out.name} is not needed"


@given(st.permutations(STEPS))
def test_the_order_in_which_steps_are_listed_does_not_matter(steps: list[object]) -> None:
    kept = cut(steps, BYTES_IN, OUTCOME)  # type: ignore[arg-type]
    assert {step.name for step in kept} == {step.name for step in cut(STEPS, BYTES_IN, OUTCOME)}


def test_the_two_entries() -> None:
    whole = [step.name for step in cut(STEPS, BYTES_IN, (*OUTCOME, *DETAIL))]
    decoded = [step.name for step in cut(STEPS, DECODED_IN, OUTCOME)]
    assert set(whole) == {step.name for step in STEPS}
    assert set(whole) - set(decoded) == {"decode", "faces"}
    features = (*GROUPS.values(), "presence")
    assert [step.name for step in cut(STEPS, features, ["label"])] == ["fusion", "voting"]


def test_what_is_given_is_not_computed() -> None:
    assert cut(STEPS, ["scores"], ["scores"]) == ()


def test_an_output_out_of_reach_is_named() -> None:
    with pytest.raises(InvalidInputError, match="'clip'"):
        cut(STEPS, ["text"], OUTCOME)
    with pytest.raises(InvalidInputError, match="'no such tensor'"):
        cut(STEPS, BYTES_IN, ["no such tensor"])


def test_the_seeds_first_three_branches_read_all_four_groups_between_any_two() -> None:
    first = [set(voter.groups) for voter in SEED_VOTERS[:3]]
    assert all(a | b == {"a", "t", "v", "j"} for a in first for b in first if a is not b)
