"""What lazy voting saves is reckoned as the executor acts, and bounded by hindsight."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.lazy import PENDING, settled, step_costs
from merkit.bundle import open_bundle
from merkit.contract import MODALITIES
from merkit.entry import Clip, decoded_entry
from merkit.media.limits import Limits
from merkit.voting import NOBODY
from merkit_bench.lazy import Ledger, Tally, _ask, at_shapes
from merkit_export.costs import _counted, recipe_operations
from merkit_training.encoders.vision import train as vision
from merkit_training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "triton_repo" / "models"
RECIPES = ROOT / "training" / "recipes"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    opened = open_bundle(BUNDLE)
    return Ledger(opened.contract, step_costs(opened))


def test_whoever_is_asked_settles_the_vote_and_costs_no_less_than_hindsight(ledger: Ledger) -> None:
    for ballots in itertools.product((NOBODY, 0, 1, 2), repeat=4):
        if set(ballots) == {NOBODY}:
            continue
        asked = ledger.asked(ballots, MODALITIES)
        known = [b if i in asked or b == NOBODY else PENDING for i, b in enumerate(ballots)]
        assert settled(known, len(ledger.contract.labels))
        assert ledger.of(asked, MODALITIES) >= ledger.least(ballots, MODALITIES)


def test_what_is_reckoned_is_what_the_executor_asks(ledger: Ledger) -> None:
    opened, tally = open_bundle(BUNDLE), Tally()
    eager, lazy = EmbeddedBackend(opened, ["cpu"]), EmbeddedBackend(opened, ["cpu"], lazy=True)
    sample = ROOT / "docs" / "media" / "sample.mp4"
    for clip in (Clip(sample, "well, this is it"), Clip(None, "I hate this"), Clip(sample)):
        p = opened.contract.preprocessing
        entry = decoded_entry(clip, p, Limits(), None, keep_frames=False)
        _ask(tally, ledger, eager, lazy, entry.tensors)
    eager.close()
    lazy.close()
    assert tally.clips == tally.same == 3
    assert tally.asked == sum(len(ledger.asked(*vote)) for vote in tally.votes)
    whole, lazily, least = tally.operations
    assert whole >= lazily >= least > 0
    assert f"| {1 - lazily / whole:.1%} |" in at_shapes("tiny", ledger, tally.votes)


def test_operations_of_a_recipe_follow_from_its_shapes() -> None:
    tiny, paper = (recipe_operations(load_recipe(RECIPES / f"{n}.toml")) for n in ("tiny", "paper"))
    assert set(tiny) - set(paper) == {"punctuate"}  # whose checkpoint is to be named
    # two operations for each weight and patch; a sentence hardly adds attention to that
    assert paper["face_encoder_large"] == pytest.approx(2 * 5.9e9 * 257, rel=0.05)
    assert paper["text_encoder"] == pytest.approx(2 * 12.6e9 * 20, rel=0.05)
    assert tiny["face_encoder"] == counted_at_work("face_encoder")


def counted_at_work(step: str) -> float:
    """As the exporter counts it, of a module that really runs."""
    recipe = load_recipe(RECIPES / "tiny.toml")
    module = vision.from_recipe(recipe, step)[1]
    p = recipe.preprocessing
    return _counted(module, (torch.zeros(1, 3, p.face_size * p.grid, p.face_size * p.grid),))
