"""Paraformer: published size, integrate-and-fire against the loop, and nothing leaks in a batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merkit_training.speech.recognition.cif import CifPredictor, integrate
from merkit_training.speech.recognition.config import LARGE, RecognizerConfig
from merkit_training.speech.recognition.model import END, PADDED, Paraformer, Recognizer
from merkit_training.speech.sanm import Memory, SanmAttention, SanmSizes, positions

SMALL: dict[str, Any] = {
    "hidden": 16, "layers": 2, "heads": 2, "intermediate": 24, "decoder_layers": 2,
    "decoder_attending": 1, "decoder_heads": 2, "decoder_intermediate": 24, "dropout": 0.0,
}  # fmt: skip
TOKENS = 12


def small(**changes: Any) -> tuple[Recognizer, RecognizerConfig]:
    config = RecognizerConfig(**{**SMALL, **changes})
    torch.manual_seed(0)
    recognizer = Recognizer(config, TOKENS)
    with torch.no_grad():
        for parameter in recognizer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return recognizer.eval(), config


def test_the_large_model_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Paraformer(RecognizerConfig(**LARGE), 8404)
    assert sum(p.numel() for p in model.parameters()) == 220_084_533


def fired(heard: Tensor, weights: Tensor) -> list[Tensor]:
    """Integrate and fire as its paper tells it: one frame after the other."""
    tokens, held, total = [], torch.zeros(heard.shape[1], dtype=heard.dtype), 0.0
    for frame, weight in zip(heard, weights.tolist(), strict=True):
        if total + weight < 1:
            held, total = held + weight * frame, total + weight
            continue
        tokens.append(held + (1 - total) * frame)
        total = total + weight - 1
        held = total * frame
    return tokens


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.floats(0, 1))
def test_the_matrix_product_is_the_loop(seed: int, time: int, most: float) -> None:
    rng = np.random.default_rng(seed)
    heard = torch.from_numpy(rng.standard_normal((time, 3)))
    weights = torch.from_numpy(most * rng.random(time))
    expected = fired(heard, weights)
    found = integrate(heard[None], weights[None], len(expected) + 2)[0]
    for number, token in enumerate(expected):
        torch.testing.assert_close(found[number], token)
    assert not found[len(expected) + 1 :].any()  # the one before holds the rest


def test_the_end_of_the_sound_counts_and_the_count_is_whole() -> None:
    predictor = CifPredictor(4, tail=0.45, smooth=1.0, noise_floor=0.0)
    with torch.no_grad():
        predictor.cif_conv1d.weight.zero_()
        predictor.cif_output.weight.zero_()
        predictor.cif_output.bias.zero_()  # every weight is one half
    for frames, count in ((0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 2)):
        valid = (torch.arange(6) < frames).float()[None, :, None]
        tokens, counts = predictor(torch.ones(1, 6, 4), valid)
        assert counts.tolist() == [count] and tokens.shape[1] == max(count, 1)


def test_training_aligns_to_the_number_of_tokens_that_were_said() -> None:
    recognizer, _ = small()
    predictor, heard = recognizer.model.predictor, torch.randn(2, 20, 16)
    valid = torch.ones(2, 20, 1)
    valid[1, 11:] = 0
    tokens, sums = predictor.aligned(heard, valid, torch.tensor([7, 3]))
    weights = predictor.weights(heard, valid)
    torch.testing.assert_close(sums, weights.sum(1))
    shares = weights * (torch.tensor([7, 3]) / sums)[:, None]
    whole = torch.einsum("bt,btd->bd", shares, heard * valid)
    torch.testing.assert_close(tokens.sum(1), whole)
    assert not tokens[1, 4:].any()


@pytest.mark.parametrize("shift", [0, 2])
def test_a_memory_is_a_filter_over_time(shift: int) -> None:
    memory = Memory(3, 5, shift, 0.0)
    values, valid = torch.randn(1, 9, 3), (torch.arange(9) < 7).float()[None, :, None]
    with torch.no_grad():
        found = memory(values, valid)[0]
    kernel = memory.fsmn_block.weight[:, 0].detach()
    for at in range(9):
        expected = values[0, at].clone() if at < 7 else torch.zeros(3)
        for tap in range(5):
            place = at + tap - 2 - shift
            if at < 7 and 0 <= place < 7:
                expected += kernel[:, tap] * values[0, place]
        torch.testing.assert_close(found[at], expected)


def test_attention_is_softmax_over_what_is_valid() -> None:
    sizes = SanmSizes(6, 8, 1, 2, 8, attention_dropout=0.0)
    attention = SanmAttention(6, sizes).eval()
    values, valid = torch.randn(1, 5, 6), torch.tensor([[[1.0], [1], [1], [0], [0]]])
    with torch.no_grad():
        found = attention(values, valid)
        query, key, value = attention.linear_q_k_v(values[:, :3]).chunk(3, -1)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = query[0, :, part] @ key[0, :, part].T / 2
            heads.append(scores.softmax(-1) @ value[0, :, part])
        expected = attention.linear_out(torch.cat(heads, -1))
        expected = expected + Memory.forward(attention, value, torch.ones(1, 3, 1))[0]
    torch.testing.assert_close(found[0, :3], expected)


def test_places_are_counted_from_one() -> None:
    found = positions(torch.zeros(1, 3, 4))[0]
    rates = (1.0, 1e-4)
    for place in (1, 2, 3):
        angles = torch.tensor([place * rate for rate in rates])
        torch.testing.assert_close(found[place - 1], torch.cat((angles.sin(), angles.cos())))


@pytest.mark.parametrize("ctc", [True, False])
def test_a_batch_gives_what_each_sound_gives_alone(ctc: bool) -> None:
    recognizer, _ = small(ctc=ctc, ctc_weight=0.3 if ctc else 0.0)
    lengths = [24_000, 9_003, 399, 30_000]
    waves = 0.1 * torch.randn(4, 30_000)
    with torch.no_grad():
        both = recognizer(waves, torch.tensor(lengths)[:, None])
        for row, length in enumerate(lengths):
            alone = recognizer(waves[row : row + 1, :length], torch.tensor([[length]]))
            count = int(both[1][row])
            assert count == int(alone[1])
            found, expected = both[0][row, :count], alone[0][0, :count]
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
            assert (both[0][row, count:].argmax(-1) == END).all()
            if ctc:
                frames = int(both[3][row])
                assert frames == int(alone[3])
                torch.testing.assert_close(
                    both[2][row, :frames], alone[2][0, :frames], atol=1e-4, rtol=0
                )
    assert len(both) == (4 if ctc else 2)
    assert int(both[1][2]) == 0  # 24.9 ms say nothing


def test_nothing_in_nothing_out() -> None:
    recognizer, _ = small()
    with torch.no_grad():
        logs, counts, *_ = recognizer(torch.zeros(2, 0), torch.zeros(2, 1, dtype=torch.long))
    assert counts.tolist() == [[0], [0]] and logs.shape == (2, 1, TOKENS)
    assert torch.isfinite(logs).all()


def test_the_sampler_shows_as_many_tokens_as_its_share_of_the_wrong_ones() -> None:
    recognizer, _ = small()
    model = recognizer.model
    heard, valid = torch.randn(2, 9, 16), torch.ones(2, 9, 1)
    embedded = torch.randn(2, 6, 16)
    real = (torch.arange(6) < torch.tensor([[6], [4]])).float()[..., None]
    with torch.no_grad():
        guess = model.decoder(embedded * real, real, heard, valid).argmax(-1)
        targets = guess.clone()
        targets[0] = (guess[0] + 1) % TOKENS  # six wrong
        targets[1, :2] = (guess[1, :2] + 1) % TOKENS  # two wrong
        targets[1, 4:] = PADDED
        shown = model._glance(embedded, real, heard, valid, targets, 0.75)
    right = model.decoder.embed(targets.clamp(min=0))
    told = (shown == right).all(-1) & (real[..., 0] > 0)
    assert told.sum(1).tolist() == [4, 1]  # floor(0.75 x 6), floor(0.75 x 2)
    assert torch.equal(shown[~told], (embedded * real)[~told])


def test_it_learns_a_few_sounds_by_heart() -> None:
    config = RecognizerConfig(**{**SMALL, "sampling": 0.5, "hidden": 32, "attention_dropout": 0.0})
    torch.manual_seed(1)
    model = Paraformer(config, TOKENS)
    speech, lengths = torch.randn(4, 14, 560), torch.tensor([14, 14, 12, 10])
    targets = torch.tensor([[3, 4, 5], [6, 7, PADDED], [8, PADDED, PADDED], [9, 10, 11]])
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    first = model.loss(speech, lengths, targets, config)
    for _ in range(60):
        loss = model.loss(speech, lengths, targets, config)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss < 0.5 * first
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    with torch.no_grad():
        logs, counts = model.eval()(speech, lengths)
    said = [row[: int(n)].tolist() for row, n in zip(logs.argmax(-1), counts, strict=True)]
    assert said == [[3, 4, 5, END], [6, 7, END], [8, END], [9, 10, 11, END]]
