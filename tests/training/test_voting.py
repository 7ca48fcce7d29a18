"""The voting graph against its reference and against Fig. 4 read word by word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from merkit.errors import InvalidInputError
from merkit.voting import NOBODY, ranked_mode
from merkit_training.voting import Voting, load

ABSTAINS = -1
BLOCK = 100_000
"""Patterns that are scored at once: all of 6 voters and 8 classes would take gigabytes."""


def fig4(ballots: Sequence[int]) -> int:
    """Fig. 4 in its own words, one clip: rank, count the mode, drop the last until unique."""
    remaining = [ballot for ballot in ballots if ballot != ABSTAINS]
    while remaining:
        counts = Counter(remaining)
        modes = [label for label, count in counts.items() if count == max(counts.values())]
        if len(modes) == 1:
            return modes[0]
        remaining.pop()
    return NOBODY


def outcomes(ballots: np.ndarray) -> np.ndarray:
    """`fig4` of each row [n, voters]. Fig. 4 does not look at what labels are called, so each row
    is judged under the number of the first voter that says the same: few different rows remain."""
    voters = ballots.shape[1]
    first = (ballots[:, :, None] == ballots[:, None, :]).argmax(axis=2)
    first[ballots == ABSTAINS] = ABSTAINS
    codes = (first + 1) @ (voters + 1) ** np.arange(voters)
    _, some, kind = np.unique(codes, return_index=True, return_inverse=True)
    winner = np.array([fig4(row) for row in first[some].tolist()])[kind.ravel()]
    label = np.take_along_axis(ballots, np.maximum(winner, 0)[:, None], axis=1)[:, 0]
    return np.where(winner == NOBODY, NOBODY, label)


def patterns(voters: int, classes: int) -> Iterator[np.ndarray]:
    """All ballots [n, voters], -1 for an abstention, block by block."""
    total = (classes + 1) ** voters
    for start in range(0, total, BLOCK):
        codes = np.arange(start, min(start + BLOCK, total))
        yield codes[:, None] // (classes + 1) ** np.arange(voters) % (classes + 1) + ABSTAINS


def scores_of(ballots: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Random scores whose largest is where the ballot says; zeros for an abstention."""
    scores = rng.random((*ballots.shape, classes), np.float32)
    np.put_along_axis(scores, np.maximum(ballots, 0)[..., None], np.float32(1.5), axis=2)
    scores[ballots == ABSTAINS] = 0
    return scores


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The vote as an ONNX session that takes any number of voters and classes."""
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path_factory.mktemp("voting") / "model.onnx"
    torch.onnx.export(
        Voting(bytes(range(16))).eval(),
        (torch.rand(2, 4, 6),),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=["branch_scores"],
        output_names=["label", "scores", "contract_id"],
        dynamic_shapes=({0: "batch", 1: "voters", 2: "classes"},),
        verbose=False,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def test_judging_by_first_voters_is_fig4() -> None:
    for ballots in patterns(4, 3):
        expected = [fig4(row) for row in ballots.tolist()]
        np.testing.assert_array_equal(outcomes(ballots), expected)


@pytest.mark.parametrize("voters", range(1, 7))
@pytest.mark.parametrize("classes", range(2, 9))
def test_graph_reference_and_figure_agree_on_every_pattern(
    voters: int, classes: int, graph: Any
) -> None:
    rng = np.random.default_rng([voters, classes])
    for ballots in patterns(voters, classes):
        scores = scores_of(ballots, classes, rng)
        expected = outcomes(ballots)
        label, mean = ranked_mode(scores)
        np.testing.assert_array_equal(label, expected)
        somebody = expected != NOBODY
        np.testing.assert_array_equal(mean.argmax(axis=1)[somebody], expected[somebody])
        assert not mean[~somebody].any()
        onnx_label, onnx_mean, _ = graph.run(None, {"branch_scores": scores})
        np.testing.assert_array_equal(onnx_label, expected)
        np.testing.assert_allclose(onnx_mean, mean, atol=1e-6)
        few = slice(0, 2_000)  # the graph was traced from this module
        torch_label, torch_mean, _ = Voting()(torch.from_numpy(scores[few]))
        np.testing.assert_array_equal(torch_label.numpy(), expected[few])
        np.testing.assert_allclose(torch_mean.numpy(), mean[few], atol=1e-6)


def test_scores_average_the_voters_of_the_winning_label_only() -> None:
    scores = np.array([[[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]], np.float32)
    label, mean, _ = Voting()(torch.from_numpy(scores))
    assert label.tolist() == [0]
    np.testing.assert_allclose(mean.numpy(), [[0.7, 0.3]], atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_abstains_like_a_row_of_zeros(value: float, graph: Any) -> None:
    """Graph, module and reference: a class of NaN is enough, and no sound row is touched."""
    rng = np.random.default_rng(3)
    zeros = scores_of(np.concatenate(list(patterns(4, 2))), 2, rng)
    rows = (zeros == 0).all(axis=2)
    broken = zeros.copy()
    broken[rows, rng.integers(0, 2, rows.sum())] = value
    expected, mean = ranked_mode(zeros)
    told = [ranked_mode(broken), graph.run(None, {"branch_scores": broken})[:2]]
    told.append([tensor.numpy() for tensor in Voting()(torch.from_numpy(broken))[:2]])
    for label, scores in told:
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_allclose(scores, mean, atol=1e-6)
    assert (expected == NOBODY).sum() == 1


def test_contract_id_stands_in_every_row() -> None:
    mark = bytes(range(16))
    _, _, stamped = Voting(mark)(torch.rand(3, 4, 6))
    assert [bytes(row.tolist()) for row in stamped] == [mark] * 3


def test_a_contract_id_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="4 bytes"):
        Voting(b"abcd")


def test_a_run_without_contract_stamps_zeros(tmp_path: Path) -> None:
    _, _, stamped = load(tmp_path)(torch.rand(2, 4, 6))
    assert not stamped.any()


@pytest.mark.parametrize("batch", [1, 3])
def test_every_row_of_the_graph_is_stamped(batch: int, graph: Any) -> None:
    scores = np.random.default_rng(0).random((batch, 4, 6), np.float32)
    _, _, stamped = graph.run(None, {"branch_scores": scores})
    assert [bytes(row) for row in stamped] == [bytes(range(16))] * batch
