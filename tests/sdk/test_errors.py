"""The error vocabulary: complete, picklable, and unchanged by a trip over the wire."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from merkit import errors
from merkit.errors import WIRE_MARK, MerkitError, MissingExtraError

KINDS = sorted(MerkitError.kinds.values(), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_stands_in_the_tree_that_users_read(kind: type[MerkitError]) -> None:
    assert kind.__doc__
    assert kind.__name__ in (errors.__doc__ or "")


@given(st.sampled_from(KINDS), st.text(), st.text(), st.text(), st.text(max_size=20))
def test_an_error_crosses_the_wire_whatever_it_is_wrapped_in(
    kind: type[MerkitError], found: str, expected: str, action: str, noise: str
) -> None:
    sent = kind(found, expected, action)
    prefix = noise.replace(WIRE_MARK, "")
    got = MerkitError.from_wire(f"{prefix}{sent.to_wire()} at step 3")
    assert type(got) is kind
    assert (got.found, got.expected, got.action) == (found, expected, action)
    assert str(got) == str(sent)


@given(st.text())
def test_garbage_from_a_server_is_no_error_of_ours(text: str) -> None:
    assert MerkitError.from_wire(text) is None
    assert MerkitError.from_wire(WIRE_MARK + text) is None


def test_pickling_keeps_the_parts() -> None:
    error = pickle.loads(pickle.dumps(errors.ClipLimitError("a", "b", "c")))  # noqa: S301
    assert isinstance(error, errors.ClipLimitError)
    assert (error.found, error.expected, error.action) == ("a", "b", "c")


def test_a_message_says_found_expected_and_action() -> None:
    assert str(MerkitError("two", "three", "count again")) == "two; expected three; count again"
    assert "pip install 'merkit[local]'" in str(MissingExtraError.of("onnxruntime", "local"))
