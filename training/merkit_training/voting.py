"""Ranked-mode voting as a torch module, so that the vote ships as a graph like every other step.

Were the vote taken by the client, each backend would carry its own; as a graph it also stamps
the contract's identity on every answer (design 2). `merkit.voting.ranked_mode` is the readable
form, and tests hold the two equal.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from merkit.contract import CONTRACT_ID_BYTES
from merkit.errors import InvalidInputError


class Voting(nn.Module):
    """The step `voting` (seed 2.5, Fig. 4).

    Args:
        contract_id: 16 bytes that every answer repeats; zeros where no bundle exists yet.
    """

    contract_id: Tensor

    def __init__(self, contract_id: bytes = bytes(CONTRACT_ID_BYTES)) -> None:
        super().__init__()
        if len(contract_id) != CONTRACT_ID_BYTES:
            raise InvalidInputError(
                f"a contract id of {len(contract_id)} bytes",
                f"{CONTRACT_ID_BYTES} bytes",
                "give bytes.fromhex(contract.contract_id)",
            )
        self.register_buffer("contract_id", torch.tensor(list(contract_id), dtype=torch.uint8))

    def forward(self, branch_scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The vote over calibrated scores, voters in rank order.

        Args:
            branch_scores: float32 [b, voters, classes]; a row of zeros abstains, and so does one
                that holds NaN or infinity.

        Returns:
            label int64 [b] (-1 if all abstain), scores float32 [b, classes] (mean over the
            voters that voted for the label), contract_id uint8 [b, 16].
        """
        batch, voters, classes = branch_scores.shape
        finite = branch_scores.isfinite().to(torch.float32).amin(dim=2, keepdim=True) > 0
        rows = torch.where(finite, branch_scores, 0.0)
        choice = rows.argmax(dim=2, keepdim=True)
        voted = (rows != 0).to(torch.float32).amax(dim=2, keepdim=True)
        ballots = (torch.arange(classes, device=choice.device) == choice).to(torch.float32) * voted
        tallies = ballots.cumsum(dim=1)
        most = tallies.amax(dim=2, keepdim=True)
        decided = ((tallies == most).sum(dim=2, keepdim=True) == 1) & (most > 0)
        rounds = torch.arange(1, voters + 1, device=choice.device).reshape(1, -1, 1)
        last = torch.where(decided, rounds, 0).argmax(dim=1, keepdim=True)
        winner = tallies.gather(1, last.expand(-1, -1, classes)).argmax(dim=2)
        label = torch.where(voted.amax(dim=1) > 0, winner, -1)
        agree = (choice == label.unsqueeze(1)).to(torch.float32) * voted
        scores = (rows * agree).sum(dim=1) / agree.sum(dim=1).clamp(min=1)
        return label.squeeze(1), scores, self.contract_id.unsqueeze(0).expand(batch, -1)


def load(_run: Path) -> nn.Module:
    """The vote of a run that has no contract yet: its contract_id is zeros."""
    return Voting().eval()
