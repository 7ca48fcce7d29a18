"""Published separators: ClearerVoice-Studio's at 16 kHz, ModelScope's at 8 kHz (the seed's).

Both are MossFormer2 under the same parameter names. Neither comes with its sizes, so these are
read off the tensors; and each tensor must have its place, as `merkit_training.checkpoints` says.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.checkpoints import Checkpoint, load_into, open_checkpoint
from merkit_training.speech.funasr import FunasrCheckpoint
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.model import Separator

POINTER = "last_best_checkpoint"
"""A file that holds the name of the checkpoint beside it."""
WRAPPERS = re.compile(r"^(module\.)?(model\.)?")
LAYER = re.compile(r"mask_net\.mdl\.intra_mdl\.mossformerM\.layers\.(\d+)\.")
BLOCKS = "mask_net.mdl.intra_mdl.mossformerM"


def from_checkpoint(
    config: SeparatorConfig, *, hub: bool = False
) -> tuple[SeparatorConfig, Separator]:
    """The published separator in `config.checkpoint`, and `config` with its sizes.

    Raises:
        BundleNotFoundError: no such folder, or no weights in it.
        BundleCorruptError: a file that cannot be read as tensors.
        InvalidInputError: tensors of another architecture.
    """
    checkpoint = open_weights(config.checkpoint, hub=hub)
    sized = sizes_of(checkpoint, config)
    separator = Separator(sized)
    load_into(separator.model, checkpoint, plain)
    return sized, separator


def open_weights(source: str, *, hub: bool = False) -> Checkpoint:
    """The weights in a folder of either publisher; errors as `from_checkpoint`."""
    folder = Path(source).expanduser()
    name = f"{POINTER}.pt"
    if source and (folder / POINTER).is_file():
        name = (folder / POINTER).read_text("utf-8", errors="replace").strip().split("\n")[0]
        if Path(name).name != name or not (folder / name).is_file():
            raise BundleCorruptError(
                f"{folder / POINTER} names {name[:80]!r}",
                "a checkpoint beside it",
                "fetch the whole folder again",
            )
    if source and (folder / name).is_file():
        return FunasrCheckpoint(folder / name)  # its publisher wraps weights alike
    return open_checkpoint(source, hub=hub)


def plain(name: str) -> str:
    """A parameter's name without what training wrapped the model in."""
    return WRAPPERS.sub("", name)


def sizes_of(checkpoint: Checkpoint, config: SeparatorConfig) -> SeparatorConfig:
    """`config` with the sizes that the tensors have; errors as `from_checkpoint`."""
    shapes = {plain(name): checkpoint.shape(name) for name in checkpoint.names()}
    layers = [int(found[1]) for name in shapes if (found := LAYER.match(name))]
    try:
        channels, _, kernel = shapes["enc.conv1d.weight"]
        memory, _, width, _ = shapes[f"{BLOCKS}.fsmn.0.gated_fsmn.fsmn.conv.conv1.weight"]
        return replace(
            config,
            sources=shapes["mask_net.conv1d_out.weight"][0] // channels,
            channels=channels,
            kernel=kernel,
            layers=max(layers) + 1,
            query_key=shapes[f"{BLOCKS}.layers.0.qk_offset_scale.gamma"][1],
            memory=memory,
            order=(width + 1) // 2,
        )
    except (KeyError, ValueError) as error:
        raise InvalidInputError(
            f"{checkpoint.folder} holds no MossFormer2 separator ({error})",
            "the parameter names of ClearerVoice-Studio's MossFormer2_SS",
            "check the recipe's `checkpoint`",
        ) from None
