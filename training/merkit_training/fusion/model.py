"""The fusion step: every branch over its feature groups, in one graph, safe against absence.

Features of an absent modality are whatever an encoder made of padding, or zeros, or nothing at
all. They are replaced before anything reads them, so that no value there, not even NaN, can reach
a score; and a branch that has nothing to go by abstains with a row of zeros (design 3).

A branch is MERBench's "attention" network (an MLP for each group, weights from an MLP on their
concatenation) with a gate that is a softmax over the groups present. With `config.MERBENCH` it
is the published network exactly.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.contract import Voter
from merkit.pipeline import GROUPS
from merkit.voting import ranked_mode
from merkit_training.fusion.config import BranchConfig
from merkit_training.fusion.groups import in_order, modalities_of, read_by
from merkit_training.runs import load_step_files
from merkit_training.settings import from_table

FAR_BELOW = -1e4
"""Fill of masked logits: vanishes in a softmax, and float16 can hold it."""


def mlp(width: int, config: BranchConfig) -> nn.Sequential:
    """MERBench's encoder: `ReLU(W3 ReLU(W2 ReLU(W1 Drop(x))))`."""
    layers: list[nn.Module] = [nn.Dropout(config.dropout)]
    for size in (width, config.hidden, config.hidden):
        layers += [nn.Linear(size, config.hidden), nn.ReLU()]
    return nn.Sequential(*layers)


class Branch(nn.Module):
    """One fusion branch (eq. 1-5): feature groups in, logits and gate weights out.

    Args:
        widths: feature width of each of its groups, in order.
        classes: number of classes.
        config: sizes and switches.
    """

    def __init__(self, widths: Sequence[int], classes: int, config: BranchConfig) -> None:
        super().__init__()
        self.config = config
        self.encoders = nn.ModuleList(mlp(width, config) for width in widths)
        self.joint = mlp(config.hidden * len(widths), config)
        self.attention = nn.Linear(config.hidden, len(widths))
        self.head = nn.Linear(config.hidden, classes)
        if config.valence:
            self.valence = nn.Linear(config.hidden, 1)
        for i, width in enumerate(widths):
            self.register_buffer(f"mean_{i}", torch.zeros(width))
            self.register_buffer(f"scale_{i}", torch.ones(width))

    def standardise_by(self, features: Sequence[Tensor], here: Tensor) -> None:
        """Takes mean and spread from training features [n, width] where `here` [n, groups]."""
        if not self.config.standardise:
            return
        for i, feature in enumerate(features):
            present = feature[here[:, i]]
            if len(present) > 1:
                spread = present.std(dim=0)
                self.get_buffer(f"mean_{i}").copy_(present.mean(dim=0))
                self.get_buffer(f"scale_{i}").copy_(torch.where(spread > 1e-6, 1 / spread, 0.0))

    def forward(self, features: Sequence[Tensor], here: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and gate.

        Args:
            features: float32 [b, width] for each group; absent rows may hold anything, and
                count as zeros.
            here: bool [b, groups], which are present.

        Returns:
            logits float32 [b, classes]; shares float32 [b, groups], summing to 1 over the
            groups present, all 0 where none is.
        """
        attended, shares = self.attend(features, here)
        return self.head(attended), shares

    def attend(self, features: Sequence[Tensor], here: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads read, float32 [b, hidden], and the shares; arguments as of `forward`."""
        hidden = []
        for i, (encoder, feature) in enumerate(zip(self.encoders, features, strict=True)):
            present = here[:, i : i + 1]
            known = torch.where(present, feature, 0.0)
            scaled = (known - self.get_buffer(f"mean_{i}")) * self.get_buffer(f"scale_{i}")
            encoded = encoder(scaled)
            hidden.append(torch.where(present, encoded, 0.0) if self.config.masked else encoded)
        joint = self.joint(torch.cat(hidden, dim=1))
        weights = self.weigh(self.attention(joint), here)
        attended = (torch.stack(hidden, dim=1) * weights.unsqueeze(2)).sum(dim=1)
        if self.config.residual:
            attended = attended + joint
        size = torch.where(here, weights.abs(), 0.0)
        return attended, size / size.sum(dim=1, keepdim=True).clamp(min=1e-12)

    def weigh(self, logits: Tensor, here: Tensor) -> Tensor:
        """Attention weights [b, groups]; masked ones are exactly 0 for absent groups."""
        masked = self.config.masked
        if self.config.gate == "softmax":
            logits = (torch.where(here, logits, FAR_BELOW) if masked else logits).softmax(dim=1)
        return torch.where(here, logits, 0.0) if masked else logits


class Fusion(nn.Module):
    """The step `fusion`: all voters in rank order, calibrated.

    Calibration is two buffers that the exported graph keeps by these names, so that
    `merkit calibrate` can replace them: `temperatures` [voters] divide a branch's logits,
    `log_prior` [classes] is added to what is left.

    Args:
        voters: branches, best first.
        widths: feature width of each group, of the pipeline's or any others (`fusion.groups`).
        classes: number of classes.
        config: sizes and switches, the same for all branches.
    """

    temperatures: Tensor
    log_prior: Tensor

    def __init__(
        self,
        voters: Sequence[Voter],
        widths: Mapping[str, int],
        classes: int,
        config: BranchConfig,
    ) -> None:
        super().__init__()
        self.config = config
        self.groups = in_order(widths)
        self.voters = tuple(voters)
        self.branches = nn.ModuleList(
            Branch([widths[g] for g in voter.groups], classes, config) for voter in voters
        )
        self.register_buffer("temperatures", torch.ones(len(voters)))
        self.register_buffer("log_prior", torch.zeros(classes))

    def forward(
        self,
        audio_features: Tensor,
        text_features: Tensor,
        face_features: Tensor,
        joint_features: Tensor,
        face_features_large: Tensor,
        presence: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`judge` of the pipeline's five groups, under the names that the graph's inputs have.

        Args:
            audio_features, ..., face_features_large: float32 [b, width], in GROUPS' order.
            presence: bool [b, 3], columns as in `contract.MODALITIES`.
        """
        given = (audio_features, text_features, face_features, joint_features, face_features_large)
        return self.judge(*given, presence)

    def judge(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of each branch and what each group contributed.

        Args:
            inputs: as `FeatureSet.inputs`: float32 [b, width] of each group in order, then presence
                bool [b, modalities], columns as in `groups.modalities_of`.

        Returns:
            branch_scores float32 [b, voters, classes]: probabilities, or zeros where a branch
            has nothing to go by; branch_contributions float32 [b, voters, groups]: gate weights,
            0 for groups absent or not the branch's.
        """
        *given, presence = inputs
        features = dict(zip(self.groups, given, strict=True))
        here = group_presence(presence, self.groups)
        rows, spoke, shares = [], [], []
        for voter, branch in zip(self.voters, self.branches, strict=True):
            own = torch.cat([here[g] for g in voter.groups], dim=1)
            logits, share = branch([features[g] for g in voter.groups], own)
            some = own.to(torch.float32).amax(dim=1, keepdim=True)
            rows.append(logits)
            spoke.append(some)
            zero = torch.zeros_like(some)
            place = {g: k for k, g in enumerate(voter.groups)}
            columns = [share[:, place[g]].unsqueeze(1) if g in place else zero for g in self.groups]
            shares.append(torch.cat(columns, dim=1))
        # voters last: so the graph divides by the temperatures as they are, not by copies
        calibrated = (torch.stack(rows, dim=2) / self.temperatures).transpose(1, 2)
        scores = (calibrated + self.log_prior).softmax(dim=2) * torch.stack(spoke, dim=1)
        return scores, torch.stack(shares, dim=1)

    @torch.no_grad()
    def valence(self, *inputs: Tensor) -> NDArray[np.float32]:
        """Valence [b], in training alone: the mean over the branches that voted for the winner.

        Args:
            inputs: as of `judge`, of a fusion whose config has valence.

        Returns:
            NaN where no branch votes.
        """
        features = dict(zip(self.groups, inputs[:-1], strict=True))
        here = group_presence(inputs[-1], self.groups)
        scores = self.judge(*inputs)[0].numpy()
        label, _ = ranked_mode(scores)
        agree = (scores.argmax(axis=2) == label[:, None]) & (scores != 0).any(axis=2)
        each = []
        for voter, branch in zip(self.voters, self.branches, strict=True):
            assert isinstance(branch, Branch)
            own = torch.cat([here[g] for g in voter.groups], dim=1)
            attended = branch.attend([features[g] for g in voter.groups], own)[0]
            each.append(branch.valence(attended)[:, 0].numpy())
        total, count = (np.stack(each, axis=1) * agree).sum(axis=1), agree.sum(axis=1)
        found = np.where(count > 0, total / np.maximum(count, 1), np.nan)
        return found.astype(np.float32)


def group_presence(presence: Tensor, groups: Collection[str] = GROUPS) -> dict[str, Tensor]:
    """Bool [b, 1] for each of a set's groups: whether any modality it reads is present."""
    columns = {name: presence[:, i : i + 1] for i, name in enumerate(modalities_of(groups))}
    here = {}
    for group in groups:
        first, *others = read_by(group)
        here[group] = columns[first]
        for other in others:
            here[group] = here[group] | columns[other]
    return here


def load(run: Path) -> Fusion:
    """The trained fusion of a run, in eval mode, voters in rank order; errors as in `runs`."""
    facts, tensors = load_step_files(run, "fusion")
    voters = [Voter(v["name"], tuple(v["groups"])) for v in facts["voters"]]
    config = from_table(BranchConfig, facts["branch"], "fusion/config.json [branch]")
    model = Fusion(voters, facts["widths"], len(facts["labels"]), config)
    model.load_state_dict({"log_prior": model.log_prior} | tensors)  # runs of old have none
    return model.eval()
