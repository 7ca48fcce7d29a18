"""LoRA changes little while it trains, and nothing of a module's names when it is merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training.encoders.text.config import DecoderSizes
from merkit_training.encoders.text.decoder import Decoder, make_decoder
from merkit_training.lora import LoraSettings, add_lora, merge_lora

SIZES = DecoderSizes(vocabulary=40, hidden=16, layers=2, heads=2, intermediate=24)
VISIBLE = torch.ones(2, 5, dtype=torch.bool)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return make_decoder(SIZES).eval()


def last(module: Decoder) -> Tensor:
    ids = torch.arange(10).view(2, 5)
    return module.states(module.embed(ids), VISIBLE)[-1]


def shaken(module: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)


def test_factors_alone_train_and_start_without_effect() -> None:
    module = decoder()
    before = last(module)
    add_lora(module, LoraSettings(rank=4, targets=("q_proj", "v_proj")))
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * SIZES.layers
    assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in trained)
    torch.testing.assert_close(last(module.eval()), before)


@pytest.mark.parametrize("targets", [(), ("o_proj",)])
def test_merging_keeps_the_outputs_and_restores_the_names(targets: tuple[str, ...]) -> None:
    module = decoder()
    names = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    plain = last(module)
    add_lora(module, LoraSettings(rank=4, targets=targets))
    shaken(module)
    tuned = last(module.eval())
    assert (tuned - plain).abs().max() > 1e-2
    merge_lora(module)
    torch.testing.assert_close(last(module), tuned, atol=1e-5, rtol=1e-5)
    assert {name: tuple(value.shape) for name, value in module.state_dict().items()} == names
    assert all(p.requires_grad for p in module.parameters())
    make_decoder(SIZES).load_state_dict(module.state_dict())


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"W_pack.*q_proj"):
        add_lora(decoder(), LoraSettings(targets=("W_pack",)))
