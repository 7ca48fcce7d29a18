"""The sound and word encoders: exported graphs equal the modules, padding and neighbours do not
count, and absent modalities have no influence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from merkit.contract import Preprocessing
from merkit.pipeline import GROUPS, standard_contract
from merkit_training.encoders.audio.config import AudioConfig
from merkit_training.encoders.audio.encoder import AudioEncoder
from merkit_training.encoders.joint.config import JointConfig
from merkit_training.encoders.joint.encoder import JointEncoder, JointSizes
from merkit_training.encoders.text.config import TextConfig
from merkit_training.encoders.text.encoder import TextEncoder

M = TypeVar("M", bound=nn.Module)

TEXT = TextConfig(vocabulary=50, hidden=32, layers=5, heads=2, intermediate=48)
AUDIO = AudioConfig(
    conv_channels=(8,) * 7,
    conv_kernels=(10, 3, 3, 3, 3, 2, 2),  # HuBERT's own
    conv_strides=(5, 2, 2, 2, 2, 2, 2),
    hidden=32,
    layers=2,
    heads=2,
    intermediate=48,
    position_groups=4,
)
JOINT = JointConfig(hidden=24, layers=1, heads=2, intermediate=48)
CONTRACT = standard_contract([str(i) for i in range(6)], dict.fromkeys(GROUPS, 32))


def audio_encoder() -> AudioEncoder:
    return randomised(AudioEncoder(AUDIO))


def text_encoder() -> TextEncoder:
    return randomised(TextEncoder(TEXT))


def joint_encoder(pool: str = "last") -> JointEncoder:
    sizes = JointSizes.of(JOINT, TEXT, Preprocessing())
    module = randomised(JointEncoder(sizes))
    module.pool = "mean" if pool == "mean" else "last"
    return module


def randomised(module: M) -> M:
    """Weights large enough that an influence would show."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.15 * torch.randn(weight.shape, generator=generator))
    return module.eval()


def sounds(lengths: Sequence[int], size: int = 0) -> tuple[Tensor, Tensor]:
    values = torch.zeros(len(lengths), size or max(lengths))
    for i, length in enumerate(lengths):
        values[i, :length] = torch.randn(length, generator=torch.Generator().manual_seed(length))
    return values, torch.tensor(lengths)[:, None]


def texts(lengths: Sequence[int], size: int = 0) -> tuple[Tensor, Tensor]:
    size = size or max(1, *lengths)
    ids = torch.zeros(len(lengths), size).long()
    for i, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(length)
        ids[i, :length] = torch.randint(1, 50, (length,), generator=generator)
    return ids, torch.tensor(lengths)[:, None]


def joints(lengths: Sequence[int], heard: Sequence[bool], size: int = 0) -> tuple[Tensor, ...]:
    ids, length = texts(lengths, size)
    mel = torch.stack(
        [torch.randn(80, 400, generator=torch.Generator().manual_seed(n)) for n in lengths]
    )
    presence = torch.tensor([[False, h, n > 3] for h, n in zip(heard, lengths, strict=True)])
    return mel, ids, length, presence


CASES = {
    "audio_encoder": (audio_encoder, sounds([4000]), sounds([1600, 9000, 300])),
    "text_encoder": (text_encoder, texts([5]), texts([1, 9, 0])),
    "joint_encoder": (
        joint_encoder,
        joints([5], [True]),
        joints([3, 12, 7], [True, False, True]),
    ),
}


@pytest.mark.parametrize("step", CASES)
def test_the_exported_graph_equals_the_module_at_other_sizes(step: str, tmp_path: Path) -> None:
    build, one, three = CASES[step]
    module, spec = build(), CONTRACT.step(step)
    dynamic = {
        name: {i: d for i, d in enumerate(CONTRACT.tensors[name].shape) if isinstance(d, str)}
        for name in spec.inputs
    }
    path = tmp_path / "model.onnx"
    shapes = tuple({i: torch.export.Dim.DYNAMIC for i in dynamic[name]} for name in spec.inputs)
    torch.onnx.export(
        module,
        tuple(three),
        path,
        input_names=list(spec.inputs),
        output_names=list(spec.outputs),
        dynamic_shapes=shapes,
        opset_version=20,
        dynamo=True,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(spec.inputs)
    for tensors in (one, three):
        feeds = {n: t.numpy() for n, t in zip(spec.inputs, tensors, strict=True)}
        (found,) = session.run(None, feeds)
        with torch.no_grad():
            expected = module(*tensors)
        assert found.shape == (len(tensors[0]), 32)
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
        assert np.abs(found).max() > 0.1


@torch.no_grad()
def test_a_sound_does_not_feel_padding_or_neighbours() -> None:
    module = audio_encoder()
    lengths = [1600, 9000, 5555]
    together = module(*sounds(lengths, 12_000))
    for i, length in enumerate(lengths):
        alone = module(*sounds([length]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_what_the_padding_of_a_sound_holds_has_no_influence() -> None:
    module = audio_encoder()
    values, length = sounds([5000], 9000)
    noisy = torch.where(torch.arange(9000) < length, values, torch.full_like(values, 7.0))
    torch.testing.assert_close(module(noisy, length), module(values, length), atol=1e-5, rtol=0)


@torch.no_grad()
def test_sound_too_short_for_a_frame_gives_zeros() -> None:
    assert not audio_encoder()(*sounds([0, 399], 1600)).any()


def test_frames_are_counted_as_the_convolutions_make_them() -> None:
    module = audio_encoder()
    for samples in (400, 719, 720, 5555, 16_000):
        made = module.front(torch.zeros(1, samples), torch.tensor([[samples]])).shape[1]
        assert int(module.count(torch.tensor(samples))) == made
    assert int(module.count(torch.tensor(0))) == 0


@torch.no_grad()
def test_the_last_layer_of_hubert_is_the_one_after_the_final_norm() -> None:
    """transformers 5 hands out `hidden_states[-1]` before it."""
    module = audio_encoder()
    values, length = sounds([8000])
    frames = module.front(values, length)
    valid = torch.ones(frames.shape[:2], dtype=torch.bool)
    states = module.states(frames, valid)
    reference = module.model(values, output_hidden_states=True)
    torch.testing.assert_close(states[-1], reference.last_hidden_state, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(states[-2], reference.hidden_states[-2], atol=1e-5, rtol=1e-5)
    expected = torch.stack(states[-4:]).mean(0).mean(1)
    torch.testing.assert_close(module(values, length), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_layers_of_the_decoder_are_those_of_transformers() -> None:
    module = text_encoder()
    ids, length = texts([7])
    states, _ = module.states(ids, length)
    reference = module.decoder.model(input_ids=ids, output_hidden_states=True)
    torch.testing.assert_close(states[-1], reference.last_hidden_state, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(states[-2], reference.hidden_states[-2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_text_does_not_feel_padding_or_neighbours() -> None:
    module = text_encoder()
    lengths = [1, 9, 0, 4]
    together = module(*texts(lengths, 20))
    for i, length in enumerate(lengths):
        torch.testing.assert_close(together[i : i + 1], module(*texts([length])), atol=1e-5, rtol=0)
    assert not together[2].any()


@pytest.mark.parametrize("pool", ["mean", "last"])
@torch.no_grad()
def test_sound_and_words_together_do_not_feel_padding_or_neighbours(pool: str) -> None:
    module = joint_encoder(pool)
    lengths, heard = [3, 12, 7], [True, False, True]
    together = module(*joints(lengths, heard, 20))
    for i, (length, h) in enumerate(zip(lengths, heard, strict=True)):
        alone = module(*joints([length], [h]))
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pool", ["mean", "last"])
@torch.no_grad()
def test_absent_sound_has_no_influence_and_present_sound_has(pool: str) -> None:
    module = joint_encoder(pool)
    mel, ids, length, presence = joints([6, 6], [True, False])
    other = mel.clone()
    other[0] += 1
    other[1] = torch.nan
    before = module(mel, ids, length, presence)
    after = module(other, ids, length, presence)
    assert torch.equal(before[1], after[1])
    assert (before[0] - after[0]).abs().max() > 1e-2


@torch.no_grad()
def test_without_sound_the_place_of_the_words_does_not_matter() -> None:
    """Positions are relative: fifty masked audio embeddings before the words change nothing."""
    module = joint_encoder("mean")
    mel, ids, length, presence = joints([6], [False])
    alone = module.decoder.states(module.decoder.embed(ids), torch.ones(1, 6, dtype=torch.bool))
    expected = torch.stack(alone[-4:]).mean(0).mean(1)
    torch.testing.assert_close(module(mel, ids, length, presence), expected, atol=1e-4, rtol=1e-4)
