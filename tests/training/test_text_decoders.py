"""Language models behind one interface: Baichuan restated, transformers' own, checkpoints filled.

Each is held to the same: its states are those of the published model, what is not visible has no
influence, and the text encoder around it exports with free batch and length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.checkpoints import open_checkpoint
from merkit_training.encoders.text.baichuan import slopes
from merkit_training.encoders.text.config import DecoderSizes, TextConfig
from merkit_training.encoders.text.decoder import Decoder, make_decoder
from merkit_training.encoders.text.encoder import TextEncoder, from_recipe
from merkit_training.encoders.text.weights import decoder_sizes, fill_decoder
from merkit_training.recipe import recipe_from
from merkit_training.runs import save_step

BAICHUAN = {
    "model_type": "baichuan",
    "architectures": ["BaichuanForCausalLM"],
    "auto_map": {"AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM"},
    "vocab_size": 50,
    "hidden_size": 30,
    "num_hidden_layers": 5,
    "num_attention_heads": 5,
    "intermediate_size": 44,
    "model_max_length": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}
SMALL = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
}
Save = Callable[[Path], Path]


def baichuan_weights(seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of the hub's files."""
    generator = torch.Generator().manual_seed(seed)

    def of(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.sqrt(shape[-1])

    weights = {"model.embed_tokens.weight": of(50, 30), "lm_head.weight": of(50, 30)}
    weights["model.norm.weight"] = 1 + of(30)
    for i in range(5):
        layer = f"model.layers.{i}."
        weights[f"{layer}self_attn.W_pack.weight"] = of(90, 30)
        weights[f"{layer}self_attn.o_proj.weight"] = of(30, 30)
        weights[f"{layer}mlp.gate_proj.weight"] = of(44, 30)
        weights[f"{layer}mlp.up_proj.weight"] = of(44, 30)
        weights[f"{layer}mlp.down_proj.weight"] = of(30, 44)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{layer}{norm}.weight"] = 1 + of(30)
    return weights


def save_baichuan(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BAICHUAN | config))
    torch.save(baichuan_weights(), folder / "pytorch_model.bin")
    return folder


def save_llama(folder: Path) -> Path:
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False)).save_pretrained(folder)
    return folder


def save_qwen3(folder: Path) -> Path:
    torch.manual_seed(2)
    config = Qwen3Config(**SMALL, head_dim=16, tie_word_embeddings=True)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder


SAVED: dict[str, Save] = {"baichuan": save_baichuan, "llama": save_llama, "qwen3": save_qwen3}


def filled(folder: Path) -> Decoder:
    checkpoint = open_checkpoint(str(folder))
    decoder = make_decoder(decoder_sizes(checkpoint))
    fill_decoder(decoder, checkpoint)
    return decoder.eval()


@pytest.fixture(scope="module", params=SAVED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SAVED[request.param](tmp_path_factory.mktemp("models") / request.param)


def everything(count: int) -> Tensor:
    return torch.ones(1, count, dtype=torch.bool)


def restated(ids: list[int], heads: int = 5) -> list[Tensor]:
    """Baichuan-13B once more, a position and a head at a time, from its published description."""
    w = baichuan_weights()
    hidden = w["model.embed_tokens.weight"][ids]
    width, states = hidden.shape[1] // heads, []

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.weight"]

    for i in range(5):
        layer = f"model.layers.{i}."
        x = norm(hidden, f"{layer}input_layernorm")
        q, k, v = (x @ w[f"{layer}self_attn.W_pack.weight"].T).split(30, dim=1)
        mixed = torch.zeros_like(hidden)
        for h, slope in enumerate((1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 2)):
            own = slice(h * width, (h + 1) * width)
            for t in range(len(ids)):
                scores = k[: t + 1, own] @ q[t, own] / width**0.5
                scores = scores + slope * (torch.arange(t + 1) - t)
                mixed[t, own] = scores.softmax(0) @ v[: t + 1, own]
        hidden = hidden + mixed @ w[f"{layer}self_attn.o_proj.weight"].T
        x = norm(hidden, f"{layer}post_attention_layernorm")
        gate = F.silu(x @ w[f"{layer}mlp.gate_proj.weight"].T)
        up = x @ w[f"{layer}mlp.up_proj.weight"].T
        hidden = hidden + (gate * up) @ w[f"{layer}mlp.down_proj.weight"].T
        states.append(hidden)
    states[-1] = norm(hidden, "model.norm")
    return states


@torch.no_grad()
def test_baichuan_is_its_published_description(tmp_path: Path) -> None:
    decoder, ids = filled(save_baichuan(tmp_path / "b")), [3, 14, 15, 9, 2, 6, 5, 35]
    states = decoder.states(decoder.embed(torch.tensor([ids])), everything(8))
    for found, expected in zip(states, restated(ids), strict=True):
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
    scores = decoder.logits(states[-1])
    head = baichuan_weights()["lm_head.weight"]
    torch.testing.assert_close(scores[0], restated(ids)[-1] @ head.T, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_second_series_norms_its_head(tmp_path: Path) -> None:
    decoder = filled(save_baichuan(tmp_path / "b", z_loss_weight=0))
    state = torch.randn(3, 30)
    rows = baichuan_weights()["lm_head.weight"]
    expected = state @ (rows / rows.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(decoder.logits(state), expected)


def test_slopes_of_forty_heads_are_those_of_thirty_two_and_eight_between() -> None:
    found = slopes(40)
    assert len(found) == 40
    assert found[:32] == pytest.approx([2 ** (-(i + 1) / 4) for i in range(32)])
    assert found[32:] == pytest.approx([2 ** (-(2 * i + 1) / 8) for i in range(8)])


def test_the_papers_shape_has_its_parameters() -> None:
    sizes = DecoderSizes(
        "baichuan", 64_000, 5120, layers=40, heads=40, intermediate=13_696, tied=False
    )
    with torch.device("meta"):
        decoder = make_decoder(sizes)
    assert sum(p.numel() for p in decoder.parameters()) == 13_264_901_120


@torch.no_grad()
def test_states_are_those_that_transformers_publishes(tmp_path: Path) -> None:
    for save in (save_llama, save_qwen3):
        folder = save(tmp_path / save.__name__)
        decoder, ids = filled(folder), torch.tensor([[4, 8, 15, 16, 23]])
        reference = AutoModelForCausalLM.from_pretrained(folder)
        found = decoder.states(decoder.embed(ids), everything(5))
        theirs = reference(ids, output_hidden_states=True)
        assert len(found) == 5
        for mine, their in zip(found, theirs.hidden_states[1:], strict=True):
            torch.testing.assert_close(mine, their, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(decoder.logits(found[-1]), theirs.logits, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_not_visible_has_no_influence(folder: Path) -> None:
    decoder = filled(folder)
    embeddings = decoder.embed(torch.randint(1, 50, (2, 9)))
    visible = torch.arange(9)[None] < torch.tensor([[9], [5]])
    visible[1, 1] = False  # also before what is visible
    other = torch.where(visible[..., None], embeddings, torch.full_like(embeddings, 3.0))
    states, changed = decoder.states(embeddings, visible), decoder.states(other, visible)
    for a, b in zip(states, changed, strict=True):
        torch.testing.assert_close(a[visible], b[visible], atol=1e-5, rtol=0)
    alone = decoder.states(embeddings[1:, :5], visible[1:, :5])
    for a, b in zip(states, alone, strict=True):
        torch.testing.assert_close(a[1:, :5][visible[1:, :5]], b[visible[1:, :5]])


@torch.no_grad()
def test_the_encoder_exports_with_free_batch_and_length(folder: Path, tmp_path: Path) -> None:
    config, encoder = from_recipe(recipe_from({"text_encoder": {"checkpoint": str(folder)}}))
    encoder.eval()

    def texts(lengths: list[int]) -> tuple[Tensor, Tensor]:
        return torch.randint(1, 50, (len(lengths), max(lengths))), torch.tensor(lengths)[:, None]

    path, free = tmp_path / "model.onnx", torch.export.Dim.DYNAMIC
    torch.onnx.export(
        encoder,
        texts([3, 7]),
        path,
        input_names=["text_ids", "text_length"],
        dynamic_shapes=({0: free, 1: free}, {0: free}),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for lengths in ([5], [1, 12, 0]):
        ids, length = texts(lengths)
        (found,) = session.run(None, {"text_ids": ids.numpy(), "text_length": length.numpy()})
        expected = encoder(ids, length)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert found.shape == (len(lengths), config.hidden) and np.abs(found).max() > 0.1


@torch.no_grad()
def test_layers_are_averaged_or_added_and_frames_are_handed_out(folder: Path) -> None:
    table = {"checkpoint": str(folder)}
    _, mean = from_recipe(recipe_from({"text_encoder": table}))
    _, added = from_recipe(recipe_from({"text_encoder": table | {"pool_layers": "sum"}}))
    mean.eval(), added.eval()
    ids, length = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[3]])
    torch.testing.assert_close(added(ids, length), 4 * mean(ids, length))
    frames, mask = mean.frames(ids, length)
    assert mask.tolist() == [[True, True, True, False]]
    torch.testing.assert_close(frames[:, :3].mean(1), mean(ids, length))


def test_a_saved_step_needs_no_checkpoint_any_more(folder: Path, tmp_path: Path) -> None:
    config, encoder = from_recipe(recipe_from({"text_encoder": {"checkpoint": str(folder)}}))
    from dataclasses import asdict

    from merkit_training.encoders.text.encoder import load

    save_step(tmp_path, "text_encoder", asdict(config), encoder.state_dict(), {})
    again = load(tmp_path)
    ids, length = torch.tensor([[5, 6, 7]]), torch.tensor([[3]])
    with torch.no_grad():
        torch.testing.assert_close(
            again(ids, length), encoder.eval()(ids, length), atol=1e-2, rtol=1e-2
        )
    own = {"text_encoder": {"checkpoint": str(tmp_path / "text_encoder")}}  # a run's step too
    _, third = from_recipe(recipe_from(own))
    assert all(
        torch.equal(a, b)
        for a, b in zip(third.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_sizes_come_from_the_checkpoint_even_without_its_weights(folder: Path) -> None:
    recipe = recipe_from({"text_encoder": {"checkpoint": str(folder), "hidden": 8, "heads": 2}})
    with torch.device("meta"):
        config, encoder = from_recipe(recipe)
    assert config.hidden in (30, 32) and config.layers == 5
    assert next(encoder.parameters()).is_meta


def break_(folder: Path, name: str, value: Tensor | None) -> None:
    if (folder / "model.safetensors").exists():
        weights = load_file(folder / "model.safetensors")
        weights.pop(name, None)
        extra = {} if value is None else {name: value}
        save_file(weights | extra, folder / "model.safetensors", {"format": "pt"})
        return
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    weights.pop(name, None)
    torch.save(weights | ({} if value is None else {name: value}), folder / "pytorch_model.bin")


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("model.norm.weight", None, "nothing for 'model.norm.weight'"),
        ("model.layers.9.bias", torch.zeros(3), r"model\.layers\.9\.bias.*\(3,\)"),
        ("model.embed_tokens.weight", torch.zeros(7, 5), r"embed_tokens.*\(7, 5\).*\(50, 3[02]\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    kind: str, name: str, value: Tensor | None, said: str, tmp_path: Path
) -> None:
    folder = SAVED[kind](tmp_path / kind)
    break_(folder, name, value)
    with pytest.raises(InvalidInputError, match=said):
        filled(folder)


def test_configurations_that_nothing_can_be_built_from_are_refused(tmp_path: Path) -> None:
    folder = save_baichuan(tmp_path / "b")
    for config, said in (
        ({"model_type": "baichuan", "hidden_size": 4}, "lacks 'vocab_size'"),
        (BAICHUAN | {"max_position_embeddings": 4096}, "Baichuan-7B"),
        ({"model_type": "hubert"}, "hubert"),
        ({"model_type": "no-such"}, "no-such"),
        ({"hidden_size": 4}, "None"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InvalidInputError, match=said):
            decoder_sizes(open_checkpoint(str(folder)))
    (save_llama(tmp_path / "l") / "model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(BundleCorruptError):
        filled(tmp_path / "l")


@torch.no_grad()
def test_learnt_positions_work_too(tmp_path: Path) -> None:
    """GPT-2: another prefix, other names of sizes, positions in a table, biases."""
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config).eval()
    reference.save_pretrained(tmp_path)
    decoder, ids = filled(tmp_path), torch.tensor([[4, 8, 15, 16]])
    states = decoder.states(decoder.embed(ids), everything(4))
    theirs = reference(ids, output_hidden_states=True)
    torch.testing.assert_close(states[-1], theirs.hidden_states[-1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[0], theirs.hidden_states[1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decoder.logits(states[-1]), theirs.logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "baichuan"])
def test_other_families_start_from_random_weights(architecture: Any) -> None:
    sizes = TextConfig(architecture, 40, hidden=16, layers=2, heads=4, intermediate=24, tied=False)
    encoder = TextEncoder(sizes).eval()
    feature = encoder(torch.tensor([[1, 2, 3]]), torch.tensor([[3]]))
    assert feature.shape == (1, 16) and feature.isfinite().all()
    assert any(name.endswith("lm_head.weight") for name in encoder.state_dict())


def test_an_auto_decoder_without_a_checkpoint_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint"):
        DecoderSizes("auto")
