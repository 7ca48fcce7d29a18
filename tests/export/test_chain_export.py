"""The chain's graphs compute what torch computes: at lengths never traced, at none, in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hearing_run import HEARING
from numpy.typing import NDArray

from merkit.contract import Contract
from merkit.pipeline import GROUPS, standard_contract
from merkit_export import samples
from merkit_export.graphs import export_step
from merkit_export.speech.trim import trim
from merkit_training.runs import write_json
from merkit_training.speech.hearing.parts import chain_of
from merkit_training.speech.hearing.untrained import write_untrained_chain
from merkit_training.steps import load_step

Both = Callable[..., tuple[list[NDArray[np.generic]], list[NDArray[np.generic]]]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hearing")
    torch.manual_seed(0)
    write_json(path / "recipe.json", HEARING.to_json())
    write_untrained_chain(HEARING, path, lambda module: module.eval())
    return path


@pytest.fixture(scope="module")
def contract(run: Path) -> Contract:
    return standard_contract(("a", "b"), dict.fromkeys(GROUPS, 4), chain=chain_of(run))


@pytest.fixture(scope="module")
def both(run: Path, contract: Contract) -> Both:
    """A function from a step and its inputs to what torch makes and what ONNX Runtime makes."""
    opened: dict[str, tuple[torch.nn.Module, onnxruntime.InferenceSession]] = {}
    models = run / "graphs"
    models.mkdir()

    def of(name: str, *given: NDArray[np.generic]) -> tuple[list[NDArray[np.generic]], ...]:
        step = contract.step(name)
        if name not in opened:
            module = load_step(run, name)
            model = export_step(module, step, contract, samples.chain_example(contract))
            onnx.save(model, models / f"{name}.onnx")
            opened[name] = module, onnxruntime.InferenceSession(models / f"{name}.onnx")
        module, session = opened[name]
        with torch.no_grad():
            made = module(*(torch.from_numpy(np.array(array)) for array in given))
        tensors = made if isinstance(made, tuple) else (made,)
        found = session.run(None, dict(zip(step.inputs, given, strict=True)))
        return [tensor.numpy() for tensor in tensors], found

    return of  # type: ignore[return-value]


def sound(rows: int, samples_: int, seed: int) -> NDArray[np.float32]:
    wave = np.random.default_rng(seed).standard_normal((rows, samples_))
    return (0.1 * wave).astype(np.float32)


@pytest.mark.parametrize("lengths", [(0,), (1,), (300,), (47_111,), (9000, 0, 21_003), (0, 0)])
def test_a_sound_is_taken_apart_as_in_torch(both: Both, lengths: tuple[int, ...]) -> None:
    count = np.array([[n] for n in lengths])
    wanted, found = both("separate", sound(len(lengths), max(lengths), 1), count)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4)
    for row, n in zip(found[0], lengths, strict=True):
        assert not row[:, n:].any()


def test_clean_sound_is_not_computed(both: Both, run: Path) -> None:
    both("separate", sound(1, 400, 1), np.array([[400]]))
    model = onnx.load(run / "graphs" / "separate.onnx")
    trim(model, "speech", "mixture_length", "sources")
    onnx.checker.check_model(model, full_check=True)
    trimmed = onnxruntime.InferenceSession(model.SerializeToString())
    for lengths in ((0,), (5000,), (30_000,), (0, 7001, 300), (0, 0)):
        waves, count = sound(len(lengths), 30_000, 5), np.array([[n] for n in lengths])
        wanted, _ = both("separate", waves, count)
        found = trimmed.run(None, {"speech": waves, "mixture_length": count})[0]
        np.testing.assert_allclose(found, wanted[0], atol=1e-4)
    inside = model.graph.output.add()
    inside.name = "speech.trimmed"
    kept = onnxruntime.InferenceSession(model.SerializeToString()).run(
        ["speech.trimmed"], {"speech": sound(2, 30_000, 5), "mixture_length": np.array([[0], [9]])}
    )
    assert kept[0].shape == (2, 9)


@pytest.mark.parametrize("lengths", [(0,), (200,), (47_111,), (9000, 0, 21_003), (0, 0)])
def test_sounds_are_recognised_as_in_torch(both: Both, lengths: tuple[int, ...]) -> None:
    rows, most = len(lengths), max(lengths)
    count = np.array([[n] for n in lengths])
    mixture = np.where(np.arange(rows)[:, None] == 2, 0, count)
    sources = sound(2 * rows, most, 2).reshape(rows, 2, most)
    wanted, found = both("recognize", sound(rows, most, 3), count, sources, mixture)
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-3)
    assert found[0].shape[:2] == (rows, 3)


@pytest.mark.parametrize("counts", [(0,), (1,), (23,), (5, 0, 40)])
def test_words_are_marked_as_in_torch(both: Both, counts: tuple[int, ...]) -> None:
    ids = np.random.default_rng(4).integers(0, 20, (len(counts), max(1, *counts)))
    wanted, found = both("punctuate", ids, np.array([[n] for n in counts]))
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-4)
