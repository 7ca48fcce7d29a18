"""What does not fit into memory together is proven one model at a time, with the same verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from torch import nn

from merkit.backends.sessions import Session, open_sessions
from merkit.bundle import Bundle, onnx_steps
from merkit.errors import BundleCorruptError
from merkit_export import origin, turns
from merkit_export.build import prove
from merkit_export.origin import read_origin
from merkit_export.turns import in_turn
from merkit_training.steps import load_step


class Held:
    """Graphs and modules that are in memory, counted whenever one comes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: WeakSet[Session | nn.Module] = WeakSet()
        self.came: list[str] = []
        self.most = 0

        def loaded(run: Path, step: str) -> Any:
            return self._count(f"module {step}", load_step(run, step))

        def opened(
            bundle: Bundle, providers: list[str], threads: int, only: list[str]
        ) -> dict[str, Session]:
            made = open_sessions(bundle, providers, threads, only)
            return {step: self._count(f"graph {step}", made[step]) for step in made}

        monkeypatch.setattr(origin, "load_step", loaded)
        monkeypatch.setattr(turns, "open_sessions", opened)

    def _count(self, name: str, model: Any) -> Any:
        self.models.add(model)
        self.came.append(name)
        self.most = max(self.most, len(self.models))
        return model


def test_a_proof_holds_one_model(
    exported: Bundle, random_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = prove(exported, read_origin(random_run))
    held = Held(monkeypatch)
    for module in (origin, turns):
        monkeypatch.setattr(module, "KEPT_BYTES", 0)
    assert prove(exported, read_origin(random_run)) == together
    assert held.most == 1
    assert not held.models
    names = [step.name for step in onnx_steps(exported.contract)]
    modules = {f"module {name}" for name in names} - {"module voting"}  # which is always there
    assert sorted(held.came) == sorted({*modules, *(f"graph {name}" for name in names)})


def test_what_fits_is_open_from_the_start(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    modules: dict[str, nn.Module] = {}
    with in_turn(toy_bundle, modules) as (_, given):
        assert given is modules
    assert not held.came


def test_a_graph_that_cannot_be_opened_says_so_when_its_turn_comes(
    toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "KEPT_BYTES", 0)
    monkeypatch.setattr(Bundle, "model_path", lambda self, step: self.root / step)
    step = toy_bundle.contract.step("voting")
    with in_turn(toy_bundle, {}) as (backend, _), pytest.raises(BundleCorruptError, match="voting"):
        backend.run_step(step, {})
