"""Lazy voting: what counts as settled, and the same label as asking everybody."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.lazy import PENDING, next_voter, pull_votes, settled, step_costs
from merkit.bundle import Bundle, open_bundle
from merkit.contract import StepSpec
from merkit.opening import load
from merkit.pipeline import GROUPS, standard_contract
from merkit.voting import NOBODY, ranked_mode, winner_of

CONTRACT = standard_contract([str(i) for i in range(6)], dict.fromkeys(GROUPS, 1))
VOTERS, CLASSES = len(CONTRACT.voters), len(CONTRACT.labels)
COSTS = {"face_encoder": 2.0, "face_encoder_large": 9.0, "audio_encoder": 3.0, "text_encoder": 1.0}
FEATURES = {step.outputs[0]: step.name for step in CONTRACT.steps if step.name.endswith("encoder")}


class Walker:
    """Plays the pipeline with given ballots, and notes which steps it was asked to run."""

    def __init__(self, ballots: np.ndarray, presence: np.ndarray) -> None:
        batch = len(ballots)
        self.scores = np.zeros((batch, VOTERS, CLASSES), np.float32)
        rows, voters = np.nonzero(ballots >= 0)
        self.scores[rows, voters, ballots[rows, voters]] = 0.9
        self.presence, self.ran = presence, []

    def __call__(self, plan: tuple[StepSpec, ...], values: dict[str, np.ndarray]) -> None:
        for step in plan:
            self.ran.append(step.name)
            for name in step.outputs:
                values[name] = self.value(step.name, name, values)

    def value(self, step: str, name: str, values: dict[str, np.ndarray]) -> np.ndarray:
        batch = len(self.presence)
        if step == "voting":
            label, scores = ranked_mode(values["branch_scores"])
            return {"label": label, "scores": scores}.get(name, np.zeros((batch, 16), np.uint8))
        if step == "fusion":
            return self.scores if name == "branch_scores" else np.ones((batch, VOTERS, 5), "f4")
        return self.presence if name == "presence" else np.zeros((batch, 1), np.float32)


def pull(ballots: np.ndarray, presence: np.ndarray | None = None) -> tuple[np.ndarray, Walker]:
    there = np.ones((len(ballots), 3), bool) if presence is None else presence
    walker, values = Walker(ballots, there), {"clip": np.zeros((len(ballots), 1), np.uint8)}
    values["text"] = np.array([["w"]] * len(ballots), object)
    pull_votes(CONTRACT, COSTS, values, walker)
    return values["label"], walker


@pytest.mark.parametrize("voters", range(2, 7))
@pytest.mark.parametrize("classes", range(2, 9))
def test_settled_is_certain_and_the_asked_alone_decide(voters: int, classes: int) -> None:
    """On 60 drawn patterns, at most three voters pending: certain means each completion agrees,
    and the vote among those asked, the others abstaining, is that outcome."""
    rng = np.random.default_rng([voters, classes])
    seen = set()
    for _ in range(60):
        ballots = rng.integers(NOBODY, min(classes, 4), voters)  # some abstain
        pending = np.flatnonzero(rng.random(voters) < 0.5)[:3]
        asked = [PENDING if i in pending else int(b) for i, b in enumerate(ballots)]
        completions = set()
        for votes in itertools.product(range(classes), repeat=len(pending)):
            whole = list(asked)
            for i, vote in zip(pending, votes, strict=True):
                whole[i] = vote
            completions.add(winner_of(whole))
        assert settled(asked, classes) == (len(completions) == 1), asked
        if len(completions) == 1 and set(asked) != {PENDING}:
            alone = [NOBODY if b == PENDING else b for b in asked]
            assert completions == {winner_of(alone)}, asked
        seen.add(len(completions) == 1)
    assert seen == {True, False}


@pytest.mark.parametrize("rank", range(4))
def test_the_only_voter_that_can_speak_is_asked(rank: int) -> None:
    ballots = [PENDING if i == rank else NOBODY for i in range(4)]
    assert not settled(ballots, classes=6)
    reads = tuple(((group, 1.0),) for group in "atvj")
    assert next_voter(ballots, reads, classes=6) == rank


def test_the_asked_alone_decide_on_every_pattern_of_the_seeds_four_voters() -> None:
    certain = 0
    for asked in itertools.product((PENDING, NOBODY, *range(CLASSES)), repeat=VOTERS):
        if any(b >= 0 for b in asked) and settled(asked, CLASSES):
            alone = [NOBODY if b == PENDING else b for b in asked]
            free = [i for i, b in enumerate(asked) if b == PENDING]
            for vote in range(CLASSES):
                whole = [vote if i in free else b for i, b in enumerate(asked)]
                assert winner_of(whole) == winner_of(alone), asked
            certain += 1
    assert certain > 1000


def test_all_1296_patterns_give_the_label_of_asking_everybody() -> None:
    patterns = np.array(list(itertools.product(range(CLASSES), repeat=VOTERS)))
    expected = [winner_of(row) for row in patterns.tolist()]
    saved = 0
    for row, label in zip(patterns, expected, strict=True):
        found, walker = pull(row[None])
        assert found.tolist() == [label], row
        assert len(set(walker.ran)) <= len(CONTRACT.steps)
        saved += "face_encoder_large" not in walker.ran
    assert 0 < saved < len(patterns)


def test_the_dearest_encoder_waits_until_only_its_voter_can_settle_the_vote() -> None:
    """The two best in agreement need no other, though a cheap low-ranked voter stands beside."""
    agreed, walker = pull(np.array([[3, 3, 3, 3]]))
    assert agreed.tolist() == [3] and "face_encoder_large" not in walker.ran
    split, walker = pull(np.array([[1, 2, 3, 3]]))
    assert split.tolist() == [3] and "face_encoder_large" in walker.ran


def test_every_mix_of_modalities_gives_the_label_of_asking_everybody() -> None:
    rng = np.random.default_rng(0)
    reads = [{"a": 1, "t": 2, "v": 0, "V": 0}, {"j": (1, 2)}]
    for bits in range(1, 8):
        presence = np.array([[bool(bits & 1 << i) for i in range(3)]])
        able = [
            any(
                presence[0, reads[0][g]] if g in reads[0] else presence[0, [1, 2]].any()
                for g in voter.groups
            )
            for voter in CONTRACT.voters
        ]
        for _ in range(40):
            ballots = np.where(able, rng.integers(0, CLASSES, VOTERS), NOBODY)[None]
            found, _ = pull(ballots, presence)
            assert found.tolist() == [winner_of(ballots[0].tolist())]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_voter_whose_scores_are_not_finite_counts_as_absent(value: float) -> None:
    for row in itertools.product(range(3), repeat=VOTERS):
        for broken in (*range(VOTERS), slice(None)):
            walker = Walker(np.array([row]), np.ones((1, 3), bool))
            walker.scores[0, broken, 4] = value
            values = {"clip": np.zeros((1, 1), np.uint8), "text": np.array([["w"]], object)}
            pull_votes(CONTRACT, COSTS, values, walker)
            voted = np.array(row)
            voted[broken] = NOBODY
            assert values["label"].tolist() == [winner_of(voted.tolist())]
            assert values["label"].tolist() == ranked_mode(walker.scores)[0].tolist()
            assert np.isfinite(values["scores"]).all()


def test_a_clip_does_not_depend_on_its_neighbours_and_batches_may_be_empty() -> None:
    patterns = np.random.default_rng(1).integers(0, CLASSES, (40, VOTERS))
    together, _ = pull(patterns)
    assert together.tolist() == [pull(row[None])[0][0] for row in patterns]
    assert pull(patterns[:0])[0].shape == (0,)


def test_costs_come_from_the_manifest_or_from_the_files(toy_bundle: Bundle) -> None:
    sizes = step_costs(toy_bundle)
    assert sizes["fusion"] == toy_bundle.model_path("fusion").stat().st_size
    stated = {**toy_bundle.manifest, "costs": dict.fromkeys(sizes, 3)}
    assert step_costs(Bundle(toy_bundle.root, toy_bundle.contract, stated))["fusion"] == 3.0
    broken = {**toy_bundle.manifest, "costs": {"fusion": "much"}}
    assert step_costs(Bundle(toy_bundle.root, toy_bundle.contract, broken)) == sizes


@pytest.mark.parametrize("text", [None, "I am glad, really glad."])
def test_the_demonstration_bundle_answers_alike(text: str | None) -> None:
    root = Path(__file__).parents[2]
    clip = root / "docs" / "media" / "sample.mp4"
    bundle = root / "triton_repo/models"
    with load(bundle) as eager, load(bundle, lazy=True) as lazy:
        whole, part = eager.predict(clip, text), lazy.predict(clip, text)
    assert part.label == whole.label and part.faces == whole.faces
    assert not whole.not_asked
    for name, vote in part.votes.items():
        assert vote == whole.votes[name] or name in part.not_asked
    assert all(part.votes[name] is None for name in part.not_asked)
    steps = {"face_encoder", "audio_encoder", "joint_encoder"}
    assert set(part.timings_ms) <= set(whole.timings_ms)
    assert steps & set(part.timings_ms)
    assert part.to_json()["not_asked"] == list(part.not_asked)


def test_scores_given_by_the_caller_are_voted_on_as_they_are(toy_bundle: Bundle) -> None:
    backend = EmbeddedBackend(open_bundle(toy_bundle.root), lazy=True)
    try:
        voted = backend.infer(
            {
                "branch_scores": np.eye(4, 6, dtype=np.float32)[None],
                "branch_contributions": np.zeros((1, 4, 5), np.float32),
                "presence": np.ones((1, 3), bool),
            }
        )
    finally:
        backend.close()
    assert voted["label"].tolist() == [0]
