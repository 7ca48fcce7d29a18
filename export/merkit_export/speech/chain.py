"""A step of the chain as a graph of its own, for who times it or takes it elsewhere.

The step's tensors are the contract's, so it is exported out of a contract made up around it.
"""

from __future__ import annotations

import onnx
from torch import nn

from merkit.pipeline import GROUPS, Chain, standard_contract
from merkit_export import samples
from merkit_export.graphs import export_step


def step_graph(name: str, module: nn.Module, chain: Chain) -> onnx.ModelProto:
    """The graph of `separate`, `recognize` or `punctuate` (`merkit_training.speech.hearing`).

    Raises:
        MerkitError: torch cannot export it.
    """
    widths = dict.fromkeys(GROUPS, 1)  # like the labels, they play no part
    contract = standard_contract(("any", "other"), widths, chain=chain)
    return export_step(module, contract.step(name), contract, samples.chain_example(contract))
