"""The separator: published arithmetic and names, no influence of padding or neighbours, and a graph
that is right at lengths it was never traced at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from merkit_training.recipe import load_recipe
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.model import (
    HALF_TAPS,
    MossFormer2,
    Separator,
    begin_lapped,
    frames_of,
    half_band,
)

RECIPES = Path(__file__).resolve().parents[2] / "training" / "recipes"
SMALL = SeparatorConfig(
    channels=16, kernel=16, layers=2, group=32, query_key=40, memory=8, order=4, epochs=1
)
LENGTHS = (16, 17, 100, 527, 528, 2000)  # from one frame over a whole group and one more, to many


def separator(config: SeparatorConfig = SMALL) -> Separator:
    """Weights large enough that an influence would show."""
    module = Separator(config)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(0.15 * torch.randn(weight.shape, generator=generator))
    return module.eval().requires_grad_(False)


def sound(*lengths: int, size: int = 0) -> tuple[Tensor, Tensor]:
    values = torch.zeros(len(lengths), size or max(lengths))
    for i, length in enumerate(lengths):
        values[i, :length] = torch.randn(length, generator=torch.Generator().manual_seed(length))
    return values, torch.tensor(lengths)[:, None]


def test_the_published_shape_has_the_published_parameters_and_tensors() -> None:
    with torch.device("meta"):
        model = MossFormer2(load_recipe(RECIPES / "paper.toml").separator)
    assert sum(p.numel() for p in model.parameters()) == 55_735_410
    assert len(model.state_dict()) == 1099
    names = set(model.state_dict())
    blocks = "mask_net.mdl.intra_mdl.mossformerM"
    for name in (
        "enc.conv1d.weight",
        "mask_net.pos_enc.inv_freq",
        f"{blocks}.layers.23.rotary_pos_emb.freqs",
        f"{blocks}.layers.0.to_hidden.mdl.3.sequential.1.conv.weight",
        f"{blocks}.fsmn.5.gated_fsmn.fsmn.conv.prelu2.weight",
        "mask_net.mdl.intra_norm.bias",
        "mask_net.output_gate.0.weight",
        "dec.weight",
    ):
        assert name in names


@pytest.mark.parametrize("length", LENGTHS)
def test_the_model_computes_what_was_published(length: int) -> None:
    """Against the architecture restated for one sound without any mask."""
    module = separator().model
    waveform, lengths = sound(length)
    expected = published(dict(module.state_dict()), waveform, SMALL)
    np.testing.assert_allclose(module(waveform, lengths), expected, atol=2e-6)


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_neither_padding_nor_neighbours_count(rate: int) -> None:
    module = separator(SeparatorConfig(**{**vars(SMALL), "sample_rate": rate}))
    lengths = (100, 1500, 0, 7, 528)
    waveform, counts = sound(*lengths, size=1700)
    alone = [module(*sound(n)) if n else torch.zeros(1, 2, 0) for n in lengths]
    waveform += (torch.arange(1700) >= counts) * torch.randn(len(lengths), 1700)  # rubbish
    waveform[0, -1] = torch.nan
    together = module(waveform, counts)
    for row, single, n in zip(together, alone, lengths, strict=True):
        np.testing.assert_allclose(row[:, :n], single[0], atol=2e-6)
        assert not row[:, n:].any()
    assert together[1].abs().max() > 1e-3


@pytest.mark.parametrize("rate", [16_000, 8_000])
def test_the_exported_graph_equals_the_module_at_lengths_never_traced(
    rate: int, tmp_path: Path
) -> None:
    """A cache of rotary positions, say, would be a constant of the graph."""
    config = SeparatorConfig(**{**vars(SMALL), "sample_rate": rate, "layers": 1})
    module, path = separator(config), tmp_path / "model.onnx"
    with torch.no_grad():
        module(*sound(5000))  # what an earlier, longer sound may leave behind
        torch.onnx.export(
            module,
            sound(900, 700),
            path,
            input_names=["waveform", "waveform_length"],
            output_names=["sources"],
            dynamic_shapes=({0: "batch", 1: "samples"}, {0: "batch"}),
            opset_version=20,
            dynamo=True,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for lengths in ((0,), (1,), (15,), (16,), (100,), (511, 77, 0), (1024,), (1025, 5), (12_345,)):
        waveform, counts = sound(*lengths)
        feed = {"waveform": waveform.numpy(), "waveform_length": counts.numpy()}
        (found,) = session.run(None, feed)
        np.testing.assert_allclose(found, module(waveform, counts), atol=1e-5, err_msg=str(lengths))


def test_the_filter_between_the_rates_keeps_speech_and_nothing_above() -> None:
    time, taps = torch.arange(8000) / 16_000, half_band()
    for frequency, gain in ((200, 1.0), (3000, 1.0), (4400, 0.0), (6000, 0.0)):
        tone = torch.sin(2 * torch.pi * frequency * time)[None, None]
        low = F.conv1d(F.pad(tone, (0, 1)), taps, stride=2, padding=HALF_TAPS)
        high = F.conv_transpose1d(low, 2 * taps, stride=2, padding=HALF_TAPS)[..., :8000]
        middle = slice(500, -500)
        np.testing.assert_allclose(high[..., middle], gain * tone[..., middle], atol=3e-3)


def test_the_lapped_start_gives_the_sound_back() -> None:
    model = MossFormer2(SeparatorConfig(channels=20, kernel=16, layers=1))  # four stay random
    begin_lapped(model)
    waveform = sound(400)[0]
    with torch.no_grad():
        frames = F.relu(model.enc.conv1d(waveform[:, None]))[:, :16]
        found = F.conv_transpose1d(frames, model.dec.weight[:16], stride=8)[:, 0]
    np.testing.assert_allclose(found[:, 8:-8], waveform[:, 8:-8], atol=1e-5)
    assert model.dec.weight[16:].any()


def test_frames_are_counted_as_the_model_counts_them() -> None:
    assert [frames_of(n, SMALL) for n in (15, 16, 23, 24, 1600)] == [0, 1, 1, 2, 199]
    assert frames_of(1600, SeparatorConfig(**{**vars(SMALL), "sample_rate": 8_000})) == 99


@pytest.mark.parametrize(
    "wrong", [{"sources": 3}, {"kernel": 15}, {"snr": (5.0, 1.0)}, {"seconds": 0.0}]
)
def test_impossible_tables_are_refused(wrong: Mapping[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SeparatorConfig(**wrong)  # type: ignore[arg-type]


def published(w: Mapping[str, Tensor], waveform: Tensor, c: SeparatorConfig) -> Tensor:
    """MossFormer2 of one sound as its paper and ClearerVoice-Studio define it: [1, 2, s]."""
    stride, blocks = c.kernel // 2, "mask_net.mdl.intra_mdl.mossformerM"
    seen = F.relu(F.conv1d(waveform[:, None], w["enc.conv1d.weight"], stride=stride))
    n = seen.shape[-1]
    x = F.group_norm(seen, 1, w["mask_net.norm.weight"], w["mask_net.norm.bias"], 1e-8)
    x = F.conv1d(x, w["mask_net.conv1d_encoder.weight"])
    angle = torch.outer(torch.arange(n).float(), w["mask_net.pos_enc.inv_freq"])
    places = torch.cat((angle.sin(), angle.cos()), -1) * w["mask_net.pos_enc.scale"]
    inner = x = x + places.T
    x = x.transpose(1, 2)
    for i in range(c.layers):
        x = _attention(w, f"{blocks}.layers.{i}", x, c.group)
        x = _recurrence(w, f"{blocks}.fsmn.{i}", x, c.order)
    intra = "mask_net.mdl.intra_mdl.norm"
    x = F.layer_norm(x, x.shape[-1:], w[f"{intra}.weight"], w[f"{intra}.bias"], 1e-6)
    norm = "mask_net.mdl.intra_norm"
    x = F.group_norm(x.transpose(1, 2), 1, w[f"{norm}.weight"], w[f"{norm}.bias"], 1e-8) + inner
    x = F.prelu(x, w["mask_net.prelu.weight"])
    x = _conv(w, "mask_net.conv1d_out", x).view(2, -1, n)
    x = _conv(w, "mask_net.output.0", x).tanh() * _conv(w, "mask_net.output_gate.0", x).sigmoid()
    masks = F.relu(F.conv1d(x, w["mask_net.conv1_decoder.weight"]))
    made = F.conv_transpose1d(seen * masks, w["dec.weight"], stride=stride)[:, 0]
    return F.pad(made, (0, waveform.shape[1] - made.shape[1]))[None]


def _conv(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv1d(x, w[f"{name}.weight"], w[f"{name}.bias"])


def _projection(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    if f"{name}.mdl.0.g" in w:
        norm = x.norm(dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        x = x / norm.clamp(min=1e-5) * w[f"{name}.mdl.0.g"]
    else:
        x = F.layer_norm(x, x.shape[-1:], w[f"{name}.mdl.0.weight"], w[f"{name}.mdl.0.bias"])
    x = F.silu(F.linear(x, w[f"{name}.mdl.1.weight"], w[f"{name}.mdl.1.bias"]))
    near = w[f"{name}.mdl.3.sequential.1.conv.weight"]
    return x + F.conv1d(x.transpose(1, 2), near, padding=8, groups=len(near)).transpose(1, 2)


def _attention(w: Mapping[str, Tensor], name: str, x: Tensor, group: int) -> Tensor:
    n, half = x.shape[1], x.shape[2] // 2
    shifted = torch.cat((F.pad(x[..., :half], (0, 0, 1, -1)), x[..., half:]), -1)
    v, u = _projection(w, f"{name}.to_hidden", shifted).chunk(2, -1)
    qk = _projection(w, f"{name}.to_qk", shifted)
    gamma, beta = w[f"{name}.qk_offset_scale.gamma"], w[f"{name}.qk_offset_scale.beta"]
    freqs = w[f"{name}.rotary_pos_emb.freqs"]
    near_q, far_q, near_k, far_k = (_turned(qk * g + b, freqs) for g, b in zip(gamma, beta))  # noqa: B905
    outs = []
    for value in (v, u):
        near = [
            F.relu(q @ k.transpose(1, 2) / group).square() @ part
            for q, k, part in zip(*(t.split(group, 1) for t in (near_q, near_k, value)))  # noqa: B905
        ]
        outs.append(torch.cat(near, 1) + far_q @ (far_k.transpose(1, 2) @ value) / n)
    return x + _projection(w, f"{name}.to_out", outs[1] * v * (outs[0] * u).sigmoid())


def _turned(x: Tensor, freqs: Tensor) -> Tensor:
    """Each pair of the first channels as a complex number, turned by its place."""
    size = 2 * len(freqs)
    pairs = torch.view_as_complex(x[..., :size].reshape(*x.shape[:2], -1, 2))
    turn = torch.polar(torch.ones(()), torch.outer(torch.arange(x.shape[1]).float(), freqs))
    return torch.cat((torch.view_as_real(pairs * turn).flatten(2), x[..., size:]), -1)


def _recurrence(w: Mapping[str, Tensor], name: str, x: Tensor, order: int) -> Tensor:
    y = F.prelu(_conv(w, f"{name}.conv1.0", x.transpose(1, 2)), w[f"{name}.conv1.1.weight"])
    y = y.transpose(1, 2)
    y = F.layer_norm(y, y.shape[-1:], w[f"{name}.norm1.weight"], w[f"{name}.norm1.bias"])
    gated, memory = f"{name}.gated_fsmn", f"{name}.gated_fsmn.fsmn"
    u, v = _projection(w, f"{gated}.to_u", y), _projection(w, f"{gated}.to_v", y)
    kept = F.relu(F.linear(u, w[f"{memory}.linear.weight"], w[f"{memory}.linear.bias"]))
    kept = F.linear(kept, w[f"{memory}.project.weight"])
    out = seen = kept.transpose(1, 2)[..., None]
    for i in (1, 2):
        conv, norm = w[f"{memory}.conv.conv{i}.weight"], f"{memory}.conv.norm{i}"
        padding, groups = ((order - 1) * i, 0), len(conv)
        out = F.conv2d(seen, conv, padding=padding, dilation=(i, 1), groups=groups)
        mean = out.mean(2, keepdim=True)
        spread = (out.var(2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        gain, bias = (w[f"{norm}.{k}"][:, None, None] for k in ("weight", "bias"))
        out = F.prelu((out - mean) / spread * gain + bias, w[f"{memory}.conv.prelu{i}.weight"])
        seen = torch.cat((out, seen), 1)
    y = v * (u + out[..., 0].transpose(1, 2)) + y
    y = F.layer_norm(y, y.shape[-1:], w[f"{name}.norm2.weight"], w[f"{name}.norm2.bias"])
    return x + _conv(w, f"{name}.conv2", y.transpose(1, 2)).transpose(1, 2)
