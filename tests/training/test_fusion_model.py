"""The fusion step: what is absent has no influence, nobody guesses, and the graph says the same."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merkit.calibration.graph import read_constant, replace_constant
from merkit.contract import MODALITIES
from merkit.pipeline import GROUP_MODALITIES, GROUPS, SEED_VOTERS
from merkit_training.fusion.calibration import fit_temperature
from merkit_training.fusion.config import MERBENCH, BranchConfig
from merkit_training.fusion.model import Branch, Fusion, load
from merkit_training.runs import save_step

WIDTHS = {"a": 12, "t": 10, "v": 8, "j": 14, "V": 9}
CLASSES = 6
SUBSETS = [p for p in itertools.product((False, True), repeat=3) if any(p)]


def make_fusion(config: BranchConfig | None = None) -> Fusion:
    torch.manual_seed(0)
    config = config or BranchConfig(hidden=16)
    model = Fusion(SEED_VOTERS, WIDTHS, CLASSES, config)
    for branch in model.branches:
        assert isinstance(branch, Branch)
        widths = [len(branch.get_buffer(f"mean_{i}")) for i in range(len(branch.encoders))]
        features = [3 + 2 * torch.randn(50, width) for width in widths]
        branch.standardise_by(features, torch.ones(50, len(features), dtype=torch.bool))
    model.temperatures.copy_(torch.tensor([0.5, 1.0, 2.0, 3.0]))
    return model.eval()


def random_features(batch: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [5 * torch.randn(batch, WIDTHS[g], generator=generator) for g in GROUPS]


def has(group: str, presence: tuple[bool, ...]) -> bool:
    return any(presence[MODALITIES.index(m)] for m in GROUP_MODALITIES[group])


@pytest.mark.parametrize("config", [BranchConfig(hidden=16), MERBENCH], ids=["ours", "merbench"])
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e30])
def test_absent_features_have_no_influence_at_all(config: BranchConfig, poison: float) -> None:
    model = make_fusion(config)
    clean = random_features(len(SUBSETS))
    presence = torch.tensor(SUBSETS)
    dirty = [f.clone() for f in clean]
    for row, subset in enumerate(SUBSETS):
        for group, feature in zip(GROUPS, dirty, strict=True):
            if not has(group, subset):
                feature[row] = poison
    for expected, found in zip(model(*clean, presence), model(*dirty, presence), strict=True):
        assert torch.isfinite(found).all()
        assert torch.equal(found, expected)


def test_present_features_do_have_influence() -> None:
    model, features = make_fusion(), random_features(2)
    presence = torch.ones(2, 3, dtype=torch.bool)
    before, _ = model(*features, presence)
    for i, group in enumerate(GROUPS):
        moved = [f + 1 if k == i else f for k, f in enumerate(features)]
        after, _ = model(*moved, presence)
        touched = [(after[:, k] != before[:, k]).any().item() for k in range(len(SEED_VOTERS))]
        assert touched == [group in voter.groups for voter in SEED_VOTERS]


@pytest.mark.parametrize("subset", [(False, False, False), *SUBSETS])
def test_a_branch_votes_exactly_when_it_has_something_to_go_by(subset: tuple[bool, ...]) -> None:
    scores, shares = make_fusion()(*random_features(3), torch.tensor([subset] * 3))
    for k, voter in enumerate(SEED_VOTERS):
        present = [has(g, subset) and g in voter.groups for g in GROUPS]
        total = 1.0 if any(present) else 0.0
        torch.testing.assert_close(scores[:, k].sum(1), torch.full((3,), total))
        torch.testing.assert_close(shares[:, k].sum(1), torch.full((3,), total))
        assert ((shares[:, k] > 0) == torch.tensor(present)).all()


def test_one_group_left_carries_all_the_weight() -> None:
    _, shares = make_fusion()(*random_features(1), torch.tensor([[True, False, False]]))
    assert shares[0, 0].tolist() == pytest.approx([0, 0, 1, 0, 0])


def test_a_clip_is_judged_alike_alone_and_among_others() -> None:
    model, features = make_fusion(), random_features(len(SUBSETS))
    presence = torch.tensor(SUBSETS)
    together, _ = model(*features, presence)
    for i in range(len(SUBSETS)):
        alone, _ = model(*(f[i : i + 1] for f in features), presence[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-6, rtol=0)


def test_a_higher_temperature_flattens_without_changing_the_vote() -> None:
    model, features = make_fusion(), random_features(20)
    presence = torch.ones(20, 3, dtype=torch.bool)
    model.temperatures.fill_(1.0)
    sharp, _ = model(*features, presence)
    model.temperatures.fill_(4.0)
    flat, _ = model(*features, presence)
    assert torch.equal(sharp.argmax(2), flat.argmax(2))
    assert (flat.amax(2) < sharp.amax(2)).all()


class Published(nn.Module):
    """MERBench's toolkit/models/attention.py, written down independently (three modalities)."""

    def __init__(self, widths: list[int], hidden: int) -> None:
        super().__init__()
        sizes = [*widths, 3 * hidden]
        self.mlps = nn.ModuleList(
            nn.ModuleList(nn.Linear(w if i == 0 else hidden, hidden) for i in range(3))
            for w in sizes
        )
        self.fc_att = nn.Linear(hidden, 3)
        self.fc_out = nn.Linear(hidden, CLASSES)

    def encode(self, which: int, x: Tensor) -> Tensor:
        for linear in self.mlps[which]:  # type: ignore[union-attr]
            x = torch.relu(linear(x))
        return x

    def forward(self, features: list[Tensor]) -> Tensor:
        hidden = [self.encode(i, f) for i, f in enumerate(features)]
        attention = self.fc_att(self.encode(3, torch.cat(hidden, dim=1))).unsqueeze(2)
        fused = torch.matmul(torch.stack(hidden, dim=2), attention).squeeze(2)
        return self.fc_out(fused)


def test_merbench_mode_is_the_published_network() -> None:
    torch.manual_seed(1)
    widths = [WIDTHS[g] for g in "atv"]
    published = Published(widths, MERBENCH.hidden)
    ours = Branch(widths, CLASSES, MERBENCH).eval()
    theirs = [*published.parameters()]
    names = [k for k, _ in ours.named_parameters()]
    assert [k.split(".")[0] for k in names[-4:]] == ["attention"] * 2 + ["head"] * 2
    for mine, their in zip(ours.parameters(), theirs, strict=True):
        mine.data.copy_(their.data)
    features = [torch.randn(5, w) for w in widths]
    logits, _ = ours(features, torch.ones(5, 3, dtype=torch.bool))
    torch.testing.assert_close(logits, published(features), atol=0, rtol=0)


def test_standardisation_ignores_absent_rows_and_constant_columns() -> None:
    branch = Branch([2], CLASSES, BranchConfig(hidden=4))
    feature = torch.tensor([[1.0, 7.0], [3.0, 7.0], [float("nan"), float("nan")]])
    branch.standardise_by([feature], torch.tensor([[True], [True], [False]]))
    assert branch.get_buffer("mean_0").tolist() == [2.0, 7.0]
    assert branch.get_buffer("scale_0").tolist() == pytest.approx([2**-0.5, 0.0])


@pytest.mark.parametrize("true_temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_made_the_labels_is_found(true_temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(20_000, CLASSES, generator=generator)
    labels = torch.multinomial((logits / true_temperature).softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, labels) == pytest.approx(true_temperature, rel=0.05)


def test_without_clips_or_without_errors_the_temperature_stays_finite() -> None:
    assert fit_temperature(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.int64)) == 1.0
    assert 0 < fit_temperature(9 * torch.eye(CLASSES), torch.arange(CLASSES)) < 1


@pytest.mark.parametrize("config", [BranchConfig(hidden=16), MERBENCH], ids=["ours", "merbench"])
def test_the_exported_graph_says_the_same(config: BranchConfig, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = make_fusion(config), tmp_path / "model.onnx"
    names = [*GROUPS.values(), "presence"]
    torch.onnx.export(
        model,
        (*random_features(2), torch.ones(2, 3, dtype=torch.bool)),
        str(path),
        dynamo=True,
        opset_version=20,
        input_names=names,
        output_names=["branch_scores", "branch_contributions"],
        dynamic_shapes=tuple({0: "batch"} for _ in names),
        verbose=False,
    )
    content = path.read_bytes()
    assert read_constant(content, "temperatures").tolist() == model.temperatures.tolist()
    for temperatures, prior in (
        ((0.5, 1, 2, 3), (0.0,) * 6),
        ((2, 1, 1, 5), (1, 0, -1, 0, 0.5, 0)),
    ):
        model.temperatures.copy_(torch.tensor(temperatures))
        model.log_prior.copy_(torch.tensor(prior))
        content = replace_constant(content, "temperatures", model.temperatures.numpy())
        content = replace_constant(content, "log_prior", model.log_prior.numpy())
        path.write_bytes(content)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        _says_the_same(session, model, names)


def _says_the_same(session: Any, model: Fusion, names: list[str]) -> None:
    for subsets in ([(True, True, True)], [(False, False, False)], SUBSETS):
        features, presence = random_features(len(subsets), seed=3), torch.tensor(subsets)
        given = [f.clone() for f in features]
        given[0][~presence[:, 1]] = float("nan")
        feeds = dict(zip(names, [t.numpy() for t in (*given, presence)], strict=True))
        expected = model(*features, presence)
        for found, torch_says in zip(session.run(None, feeds), expected, strict=True):
            np.testing.assert_allclose(found, torch_says.detach().numpy(), atol=1e-5)


def test_runs_without_a_class_prior_still_load(tmp_path: Path) -> None:
    model = make_fusion()
    voters = [{"name": v.name, "groups": list(v.groups)} for v in SEED_VOTERS]
    facts = {"voters": voters, "labels": ["x"] * CLASSES, "widths": WIDTHS}
    facts |= {"branch": {"hidden": 16, "dropout": 0.3, "gate": "softmax"}}
    tensors = {k: v for k, v in model.state_dict().items() if k != "log_prior"}
    save_step(tmp_path, "fusion", facts, tensors, {"scores": {}})
    features, presence = random_features(3), torch.ones(3, 3, dtype=torch.bool)
    again = load(tmp_path)(*features, presence)
    for found, expected in zip(again, model(*features, presence), strict=True):
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)  # weights are rounded


def test_the_class_prior_moves_every_branch_alike() -> None:
    model, features = make_fusion(), random_features(20)
    presence = torch.ones(20, 3, dtype=torch.bool)
    before, _ = model(*features, presence)
    model.log_prior.copy_(torch.tensor([1.0, 0, 0, 0, 0, -2.0]))
    after, _ = model(*features, presence)
    moved = (after / before).log()
    for c, shift in ((0, 1.0), (5, -2.0)):
        torch.testing.assert_close(
            moved[..., c] - moved[..., 1], torch.full((20, 4), shift), atol=1e-3, rtol=0
        )
