"""The un-padded form: what a graph is fed, whoever feeds it, and the same answer as one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from entries import tritons_feed
from numpy.typing import NDArray

from merkit.bundle import Bundle
from merkit.contract import Contract
from merkit.errors import BundleCorruptError
from merkit.pipeline import GROUPS, standard_contract
from merkit.ragged import graph_feed, graph_inputs

CONTRACT = standard_contract(("calm", "tense"), dict.fromkeys(GROUPS, 8))
STEP = CONTRACT.step("audio_encoder")


def request(*lengths: int, width: int = 0, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Sounds of so many samples in one request, padded with what must not be read."""
    rng = np.random.default_rng([seed, *lengths])
    values = rng.normal(size=(len(lengths), width or max(lengths, default=1))).astype(np.float32)
    return {"audio_values": values, "audio_length": np.array(lengths, np.int64).reshape(-1, 1)}


def test_the_graphs_inputs_are_named_and_typed_by_the_contract() -> None:
    found = graph_inputs(STEP, CONTRACT.tensors)
    assert {name: (spec.dtype, len(spec.shape)) for name, spec in found.items()} == {
        "audio_values": ("float32", 1),
        "audio_length": ("int64", 2),
        "audio_values_widths": ("int32", 2),
        "audio_values_span": ("int32", 1),
    }
    plain = CONTRACT.step("face_encoder")
    assert graph_inputs(plain, CONTRACT.tensors) == {"face_grid": CONTRACT.tensors["face_grid"]}


def test_rows_follow_each_other_without_their_padding() -> None:
    one, two = request(3, 0, width=5), request(4)
    feed = graph_feed(STEP, [one, two])
    expected = np.concatenate([one["audio_values"][0, :3], two["audio_values"][0]])
    np.testing.assert_array_equal(feed["audio_values"], expected)
    assert feed["audio_values_widths"].tolist() == [[3], [0], [4]]
    assert feed["audio_values_span"].shape == (5,), "the widest request, its padding included"
    assert feed["audio_length"].tolist() == [[3], [0], [4]]


@pytest.mark.parametrize("lengths", [(), (0,), (7,), (9, 9)])
def test_odd_batches_have_a_feed(lengths: tuple[int, ...]) -> None:
    feed = graph_feed(STEP, [request(*lengths)])
    assert feed["audio_values"].shape == (sum(lengths),)
    assert feed["audio_values"].dtype == np.float32
    assert feed["audio_values_widths"].shape == (len(lengths), 1)


def test_a_length_beyond_the_padding_reads_no_neighbour() -> None:
    liar = {**request(4), "audio_length": np.array([[9]], np.int64)}
    assert graph_feed(STEP, [liar, request(2)])["audio_values_widths"].tolist() == [[4], [2]]


def session(bundle: Bundle, name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(bundle.model_path(name), providers=["CPUExecutionProvider"])


def test_a_batch_of_mixed_lengths_gives_what_each_clip_gives_alone(toy_bundle: Bundle) -> None:
    """Fed as the portable runner does, and as Triton's own backend does."""
    graph = session(toy_bundle, "audio_encoder")
    step = toy_bundle.contract.step("audio_encoder")
    requests = [request(1600), request(0, width=1600), request(9000, 2500), request(2, width=1600)]
    together = graph.run(None, graph_feed(step, requests))[0]
    native = graph.run(None, tritons_feed(requests, "audio_values", "audio_length"))[0]
    row = 0
    for one in requests:
        for values, length in zip(one["audio_values"], one["audio_length"], strict=True):
            alone = {"audio_values": values[None], "audio_length": length[None]}
            expected = graph.run(None, graph_feed(step, [alone]))[0][0]
            np.testing.assert_allclose(together[row], expected, atol=1e-6)
            np.testing.assert_allclose(native[row], expected, atol=1e-6)
            row += 1
    assert row == len(together) == len(native)


def test_contracts_from_before_the_field_are_read_and_odd_ones_refused() -> None:
    plain = CONTRACT.to_json()
    for step in plain["steps"]:
        del step["ragged"]
    old = Contract.from_json(plain)
    assert not any(step.ragged for step in old.steps)
    assert old.contract_id == CONTRACT.contract_id
    wrong = CONTRACT.to_json()
    wrong["steps"][6]["ragged"] = [{"values": "text_ids", "length": "text_length"}]
    with pytest.raises(BundleCorruptError, match="does not read its ragged"):
        Contract.from_json(wrong)
