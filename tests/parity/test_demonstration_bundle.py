"""The checked-in bundle is whole, rendered by this code, and answers alike embedded and served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import REPOSITORY

import merkit
from merkit.bundle import Bundle, open_bundle
from merkit.cli.inspection import verify
from merkit.client import Client
from merkit.pipeline import GROUPS
from merkit.serving import Server
from merkit.serving.render import Deployment, render
from merkit.serving.tritonserver import Installation
from merkit.voting import ranked_mode

SAMPLE = REPOSITORY / "docs" / "media" / "sample.mp4"
WORDS = SAMPLE.with_suffix(".txt").read_text("utf-8").strip()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(REPOSITORY / "triton_repo" / "models")


@pytest.fixture(scope="module")
def near(bundle: Bundle) -> Iterator[Client]:
    with merkit.load(bundle.root) as client:
        yield client


@pytest.fixture(scope="module")
def far(bundle: Bundle, triton: Installation) -> Iterator[Client]:
    with Server(bundle, installation=triton) as server, merkit.connect(server.grpc) as client:
        yield client


def test_it_verifies(bundle: Bundle) -> None:
    failed = [check for check in verify(bundle.root) if not check.passed]
    assert not failed


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_its_graphs_leave_out_branches_of_features_that_are_no_numbers(
    bundle: Bundle, group: str, value: float
) -> None:
    rng = np.random.default_rng(0)
    specs = {name: bundle.contract.tensors[name] for name in GROUPS.values()}
    given = {name: rng.normal(size=(3, spec.shape[1])) for name, spec in specs.items()}
    features = {name: value.astype(np.float32) for name, value in given.items()}
    features["presence"] = np.ones((3, 3), bool)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    fusion, voting = (
        onnxruntime.InferenceSession(bundle.model_path(name), options)
        for name in ("fusion", "voting")
    )
    sound = fusion.run(["branch_scores"], features)[0]
    features[GROUPS[group]][1, 0] = value
    scores = fusion.run(["branch_scores"], features)[0]
    heard = [group not in voter.groups for voter in bundle.contract.voters]
    assert np.isfinite(scores[1]).all(axis=1).tolist() == heard
    sound[1, np.logical_not(heard)] = 0
    label, mean, _ = voting.run(None, {"branch_scores": scores})
    expected, expected_mean = ranked_mode(sound)
    np.testing.assert_array_equal(label, expected)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-6)


def test_its_configs_are_what_this_code_renders(bundle: Bundle, tmp_path: Path) -> None:
    rendered = render(bundle, tmp_path / "repository", Deployment("onnxruntime"))
    for path in rendered:
        checked_in = bundle.root / path.relative_to(tmp_path / "repository")
        assert checked_in.read_bytes() == path.read_bytes(), checked_in


def test_it_reads_the_sample(near: Client) -> None:
    found = near.predict(SAMPLE, WORDS)
    assert found.label == "happy"
    assert found.modalities == ("video", "audio", "text")
    assert "synthetic" in found.bundle["notice"]


@pytest.mark.parametrize(
    ("clip", "text"), [(SAMPLE, WORDS), (SAMPLE, None), (None, WORDS), (None, "我太难过了")]
)
def test_served_equals_embedded(
    near: Client, far: Client, clip: Path | None, text: str | None
) -> None:
    assert_same(near, far, clip, text)


@pytest.mark.parametrize("name", ["single_face.mp4", "no_face.mp4", "jfk.flac", "single_face.jpg"])
def test_served_equals_embedded_on_real_recordings(
    near: Client, far: Client, media: Path, name: str
) -> None:
    assert_same(near, far, media / name, None)


def assert_same(near: Client, far: Client, clip: Path | None, text: str | None) -> None:
    here, there = near.predict(clip, text), far.predict(clip, text)
    assert (here.label, here.modalities) == (there.label, there.modalities)
    assert here.warnings == there.warnings
    assert there.scores == pytest.approx(here.scores, abs=1e-5)
    for branch, vote in here.votes.items():
        other = there.votes[branch]
        assert (vote is None) == (other is None)
        if vote is not None and other is not None:
            assert other.scores == pytest.approx(vote.scores, abs=1e-5)
