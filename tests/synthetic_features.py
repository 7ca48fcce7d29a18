"""Features without encoders: Gaussian clouds around class centres, some modalities missing."""

from __future__ import annotations

import torch
from torch import Tensor

from merkit_training.fusion.dataset import FeatureSet

PRIOR = torch.tensor([0.26, 0.24, 0.20, 0.14, 0.11, 0.05])
STRENGTHS = {"a": 0.45, "t": 0.4, "v": 0.5, "j": 0.5, "V": 0.5}


def make_features(
    n: int, seed: int = 0, width: int = 16, strengths: dict[str, float] | None = None
) -> FeatureSet:
    """Clips of 20 speakers; every tenth modality is absent (its rows are zeros)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(PRIOR, n, replacement=True, generator=generator)
    presence = torch.rand(n, 3, generator=generator) > 0.1
    presence[~presence.any(dim=1)] = True
    strengths = strengths or STRENGTHS

    def cloud(group: str, present: Tensor) -> Tensor:
        centres = torch.randn(6, width, generator=torch.Generator().manual_seed(ord(group)))
        noise = torch.randn(n, width, generator=generator)
        return torch.where(present[:, None], strengths[group] * centres[labels] + noise, 0.0)

    video, audio, text = presence.unbind(dim=1)
    return FeatureSet(
        names=tuple(f"clip{i:05d}" for i in range(n)),
        identities=tuple(f"speaker{i % 20}" for i in range(n)),
        subsets=tuple(("aligned", "mixed", "conflicting")[i % 3] for i in range(n)),
        labels=labels,
        presence=presence,
        groups={
            "a": cloud("a", audio),
            "t": cloud("t", text),
            "v": cloud("v", video),
            "V": cloud("V", video),
            "j": torch.stack(
                [cloud("j", present) for present in (audio | text, audio, text)], dim=1
            ),
        },
    )
