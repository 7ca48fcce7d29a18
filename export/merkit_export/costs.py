"""What each step costs, in operations: what lazy voting orders voters by.

Times would differ between machines and between runs, and with them which voters are asked; counts
of floating-point operations are the same everywhere and follow from the shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from merkit.contract import Contract
from merkit.steps import REGISTRY
from merkit_export import samples
from merkit_export.walk import Step, Values, torch_steps, walk

SECONDS, WORDS = 5.0, 12
"""Of the clip that is counted: a sentence, as MER's clips are."""


def operations(
    contract: Contract, modules: Mapping[str, nn.Module], resources: Path
) -> dict[str, int]:
    """Floating-point operations of matrix products and convolutions, by ONNX step, for one clip
    of all modalities.

    Args:
        contract: the pipeline.
        modules: its ONNX steps in torch.
        resources: the folder with the tokeniser.
    """
    p = contract.preprocessing
    clip = samples.clip(p, p.frames_per_clip, min(SECONDS, p.max_audio_seconds), WORDS)
    counts: dict[str, int] = {}

    def counted(name: str, step: Step) -> Step:
        def run(values: Mapping[str, object]) -> Values:
            with FlopCounterMode(display=False) as counter:
                made = step(values)  # type: ignore[arg-type]
            counts[name] = int(counter.get_total_flops())
            return made

        return run

    steps = {name: counted(name, step) for name, step in torch_steps(contract, modules).items()}
    walk(contract, {**steps, "tokenize": REGISTRY["tokenize"](contract, resources)}, clip)
    return counts
