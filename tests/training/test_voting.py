"""The voting graph against its reference and against Fig. 4 read word by word."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from merkit.errors import InvalidInputError
from merkit.voting import NOBODY, ranked_mode
from merkit_training.voting import Voting, load

ABSTAINS = -1
EXHAUSTIVE = 5_000


def fig4(ballots: list[int]) -> int:
    """Fig. 4 in its own words, one clip: rank, count the mode, drop the last until unique."""
    remaining = [ballot for ballot in ballots if ballot != ABSTAINS]
    while remaining:
        counts = Counter(remaining)
        modes = [label for label, count in counts.items() if count == max(counts.values())]
        if len(modes) == 1:
            return modes[0]
        remaining.pop()
    return NOBODY


def patterns(voters: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Ballots [patterns, voters], -1 for an abstention: all of them, or a large sample."""
    if (classes + 1) ** voters <= EXHAUSTIVE:
        return np.array(list(itertools.product(range(ABSTAINS, classes), repeat=voters)))
    return rng.integers(ABSTAINS, classes, (EXHAUSTIVE, voters))


def scores_of(ballots: np.ndarray, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Random probabilities whose largest is where the ballot says; zeros for an abstention."""
    scores = rng.dirichlet(np.ones(classes), ballots.shape).astype(np.float32)
    rows = np.indices(ballots.shape)
    scores[(*rows, ballots)] = 1 + scores.max(axis=2)
    scores /= scores.sum(axis=2, keepdims=True)
    scores[ballots == ABSTAINS] = 0
    return scores


@pytest.mark.parametrize("voters", range(1, 7))
@pytest.mark.parametrize("classes", range(2, 9))
def test_graph_reference_and_figure_agree(voters: int, classes: int) -> None:
    rng = np.random.default_rng([voters, classes])
    ballots = patterns(voters, classes, rng)
    scores = scores_of(ballots, classes, rng)
    expected = np.array([fig4(row) for row in ballots.tolist()])
    label, mean = ranked_mode(scores)
    np.testing.assert_array_equal(label, expected)
    torch_label, torch_mean, _ = Voting()(torch.from_numpy(scores))
    np.testing.assert_array_equal(torch_label.numpy(), expected)
    np.testing.assert_allclose(torch_mean.numpy(), mean, atol=1e-6)
    somebody = expected != NOBODY
    np.testing.assert_array_equal(mean.argmax(axis=1)[somebody], expected[somebody])
    assert not mean[~somebody].any()


def test_scores_average_the_voters_of_the_winning_label_only() -> None:
    scores = np.array([[[0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]], np.float32)
    label, mean, _ = Voting()(torch.from_numpy(scores))
    assert label.tolist() == [0]
    np.testing.assert_allclose(mean.numpy(), [[0.7, 0.3]], atol=1e-6)


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


def test_the_exported_graph_votes_alike(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    torch.onnx.export(
        Voting(bytes(range(16))).eval(),
        (torch.rand(2, 4, 6),),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=["branch_scores"],
        output_names=["label", "scores", "contract_id"],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    ballots = rng.integers(ABSTAINS, 6, (500, 4))
    for batch in (1, 3, 500):
        scores = scores_of(ballots[:batch], 6, rng)
        label, mean, stamped = session.run(None, {"branch_scores": scores})
        expected, reference = ranked_mode(scores)
        np.testing.assert_array_equal(label, expected)
        np.testing.assert_allclose(mean, reference, atol=1e-6)
        assert stamped.shape == (batch, 16) and bytes(stamped[0]) == bytes(range(16))
