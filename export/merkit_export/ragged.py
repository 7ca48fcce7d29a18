"""A module whose graph takes sounds and words end to end, and tells the clips apart inside.

Padding on the way to the graph would have to be agreed on by everybody who batches; so the
padding happens here, in the graph itself (`merkit.ragged` says what it is given and why).
Comparisons, a sum and one gather do it: operators that every runtime has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from merkit.contract import Ragged, StepSpec


class Unragged(nn.Module):
    """`module`, called with what `merkit.ragged.graph_inputs` lists instead of padded tensors."""

    def __init__(self, module: nn.Module, step: StepSpec) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, *inputs: Tensor) -> Tensor:
        """As the module."""
        given = dict(zip(self.step.inputs, inputs, strict=False))
        beside = iter(inputs[len(self.step.inputs) :])
        for ragged, widths, span in zip(self.step.ragged, beside, beside, strict=True):
            given |= _told_apart(ragged, given, widths, span.shape[0])
        made: Tensor = self.module(*given.values())
        return made


def _told_apart(
    ragged: Ragged, given: dict[str, Tensor], widths: Tensor, span: int
) -> dict[str, Tensor]:
    """The padded values [batch, span] with zeros beyond each row's length, and those lengths."""
    values, widths = given[ragged.values], widths.long()
    length = torch.minimum(given[ragged.length].clamp(min=0), widths)
    clip = torch.arange(widths.shape[0], device=values.device)
    before = torch.where(clip[None, :] < clip[:, None], widths.transpose(0, 1), 0)
    column = torch.arange(span, device=values.device)[None, :]
    at = before.sum(1, keepdim=True) + column
    # what no clip has is read from one zero more at the end
    at = torch.where(column < length, at, values.shape[0])
    padded = torch.cat((values, values.new_zeros(1))).index_select(0, at.flatten())
    return {ragged.values: padded.view(at.shape), ragged.length: length}
