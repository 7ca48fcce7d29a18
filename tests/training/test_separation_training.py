"""The stage `separator`: its mixtures, what it leaves behind, and published checkpoints."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_corpus import write_tiny_corpus

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.speech.noise.augment import Augment
from merkit_training.speech.noise.config import NoiseConfig
from merkit_training.speech.noise.levels import PEAK, active_power
from merkit_training.speech.separation.config import SeparatorConfig
from merkit_training.speech.separation.mixtures import Mixer, batch
from merkit_training.speech.separation.model import MossFormer2, Separator, load
from merkit_training.speech.separation.official import from_checkpoint
from merkit_training.speech.separation.train import measure, train
from merkit_training.stages import is_asked, stage_function

SMALL: dict[str, Any] = {
    "channels": 16, "kernel": 32, "layers": 1, "group": 32, "query_key": 8, "memory": 8,
    "order": 3, "epochs": 2, "mixtures": 24, "val_mixtures": 6, "seconds": 0.25,
    "batch_size": 4, "lr": 3e-3, "threads": 1,
}  # fmt: skip
NOISE = Augment(NoiseConfig(kinds=("pink",))).ambient


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tones of six pitches, each pitch a voice."""
    root = write_tiny_corpus(tmp_path_factory.mktemp("corpus"), train=32, val=12)
    path = root / "utterances" / "table.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows({**row, "voice": row["discrete"]} for row in rows)
    return root


def recipe(**table: Any) -> Recipe:
    return recipe_from({"run": {"name": "test"}, "separator": {**SMALL, **table}}, "test")


def test_a_recipe_asks_for_it_by_epochs_or_a_checkpoint() -> None:
    assert is_asked(recipe(), "separator")
    assert not is_asked(recipe(epochs=0), "separator")
    assert is_asked(recipe(epochs=0, checkpoint="folder"), "separator")
    assert stage_function("separator") is train


def test_mixtures_are_two_voices_or_a_voice_and_noise_at_the_stated_ratio(corpus: Path) -> None:
    config = SeparatorConfig(noise_share=0.5, snr=(-3.0, 3.0), noise_snr=(6.0, 9.0))
    mixer = Mixer.read(corpus, "train", config, NOISE)
    drawn = [mixer.draw(np.random.default_rng([1, i]), 4000) for i in range(60)]
    assert 15 < sum(m.noisy for m in drawn) < 45
    for mixture in drawn:
        assert mixture.waveform.shape == (4000,) and mixture.sources.shape == (2, 4000)
        np.testing.assert_allclose(mixture.sources.sum(0), mixture.waveform, atol=1e-6)
        assert np.abs(mixture.waveform).max() <= PEAK + 1e-6
        low, high = config.noise_snr if mixture.noisy else config.snr
        powers = [active_power(source) for source in mixture.sources]
        assert low - 0.5 < 10 * np.log10(powers[0] / powers[1]) < high + 0.5
        peaks = [np.abs(np.fft.rfft(source)).argmax() for source in mixture.sources]
        assert peaks[0] != peaks[1]  # another voice is another pitch


def test_a_mixture_is_a_function_of_its_generator(corpus: Path) -> None:
    mixer = Mixer.read(corpus, "val", SeparatorConfig(), NOISE)
    for i in range(4):
        first, second = (mixer.draw(np.random.default_rng(i)) for _ in range(2))
        np.testing.assert_array_equal(first.waveform, second.waveform)
    lengths = {len(mixer.draw(np.random.default_rng(i)).waveform) for i in range(8)}
    assert len(lengths) > 1  # of no stated size, as long as what is said
    waveform, length, sources, mask = batch([mixer.draw(np.random.default_rng(i)) for i in (1, 2)])
    assert mask.sum(1).tolist() == length[:, 0].tolist()
    assert not (waveform * (1 - mask)).any() and not (sources * (1 - mask)[:, None]).any()


def test_one_voice_alone_can_only_meet_noise(tmp_path: Path) -> None:
    alone = write_tiny_corpus(tmp_path, train=8, val=4)  # where every voice is m1
    with pytest.raises(InvalidInputError, match="one voice"):
        Mixer.read(alone, "train", SeparatorConfig(), NOISE)
    mixer = Mixer.read(alone, "train", SeparatorConfig(noise_share=1.0), NOISE)
    assert mixer.draw(np.random.default_rng(0)).noisy


def test_the_stage_learns_and_its_step_loads(corpus: Path, tmp_path: Path) -> None:
    scores = train(recipe(epochs=4, noise_share=0.0, mixtures=60), corpus, tmp_path)
    assert scores["si_sdri"] > 2  # tones of two pitches: better than leaving the mixture be
    assert "si_sdri_noise" not in scores
    module = load(tmp_path)
    mixer = Mixer.read(corpus, "val", recipe().separator, NOISE)
    mixtures = [mixer.draw(np.random.default_rng([9, i])) for i in range(6)]
    assert measure(module, mixtures)["si_sdri"] == pytest.approx(
        measure(module, mixtures, size=1)["si_sdri"], abs=1e-3
    )
    card = json.loads((tmp_path / "separator" / "card.json").read_text())
    assert card["scores"]["si_sdri"] == scores["si_sdri"]


def test_an_interrupted_stage_goes_on_to_the_same_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(), corpus, tmp_path / "whole")
    from merkit_training.speech.separation import train as stage

    calls, draw = [0], stage.in_best_order

    def killed(*args: Any) -> Any:
        calls[0] += 1
        if calls[0] == 9:  # of 2 x 6 steps, and evaluations between them
            raise KeyboardInterrupt
        return draw(*args)

    monkeypatch.setattr(stage, "in_best_order", killed)
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), corpus, tmp_path / "cut")
    monkeypatch.undo()
    assert (tmp_path / "cut" / "separator" / "separation.checkpoint").exists()
    train(recipe(), corpus, tmp_path / "cut")
    whole, cut = (load(tmp_path / name).state_dict() for name in ("whole", "cut"))
    for name, tensor in whole.items():
        torch.testing.assert_close(cut[name], tensor, msg=name)


def publish(folder: Path, model: MossFormer2) -> None:
    """ClearerVoice-Studio's form: a pointer, and a training's state with the optimizer's."""
    folder.mkdir()
    (folder / "last_best_checkpoint").write_text("best.pt\n")
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"model": wrapped, "optimizer": {"step": 3}, "epoch": 2}, folder / "best.pt")


def modelscope(folder: Path, model: MossFormer2) -> None:
    """ModelScope's form: a state dict alone."""
    folder.mkdir()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")


@pytest.mark.parametrize("write", [publish, modelscope])
def test_published_checkpoints_bring_their_sizes_and_every_weight(
    write: Callable[[Path, MossFormer2], None], corpus: Path, tmp_path: Path
) -> None:
    sizes = {k: SMALL[k] for k in ("channels", "kernel", "layers", "query_key", "memory", "order")}
    model = MossFormer2(SeparatorConfig(**{**sizes, "layers": 2}))
    write(tmp_path / "published", model)
    config, separator = from_checkpoint(SeparatorConfig(checkpoint=str(tmp_path / "published")))
    assert {k: getattr(config, k) for k in sizes} == {**sizes, "layers": 2}
    assert (config.sources, config.group) == (2, 256)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(separator.model.state_dict()[name], tensor)

    asked = recipe(epochs=0, checkpoint=str(tmp_path / "published"))
    scores = train(asked, corpus, tmp_path / "run")
    assert {"si_sdri", "si_sdr"} <= set(scores)
    taken = load(tmp_path / "run")
    torch.testing.assert_close(
        taken.model.enc.state_dict(), model.enc.state_dict(), atol=1e-3, rtol=1e-2
    )


def test_a_shared_rotation_may_be_saved_once(tmp_path: Path) -> None:
    model = MossFormer2(SeparatorConfig(channels=8, kernel=8, layers=2, memory=4, order=2))
    state = {k: v for k, v in model.state_dict().items() if "layers.1.rotary" not in k}
    torch.save(state, tmp_path / "pytorch_model.bin")
    from_checkpoint(SeparatorConfig(checkpoint=str(tmp_path)))


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda s: s.pop("dec.weight"), InvalidInputError, "dec.weight"),
        (lambda s: s.update(extra=torch.zeros(1)), InvalidInputError, "extra"),
        (lambda s: s.pop("enc.conv1d.weight"), InvalidInputError, "no MossFormer2"),
        (lambda s: s.update({"dec.weight": torch.zeros(8, 1, 4)}), InvalidInputError, "dec.weight"),
        (lambda s: s.update(other={"a": [object]}), BundleCorruptError, "cannot be read"),
    ],
)
def test_what_is_no_separator_is_named(
    change: Callable[[dict[str, Any]], Any], error: type[Exception], said: str, tmp_path: Path
) -> None:
    model = MossFormer2(SeparatorConfig(channels=8, kernel=8, layers=1, memory=4, order=2))
    state: dict[str, Any] = dict(model.state_dict())
    change(state)
    torch.save(state, tmp_path / "last_best_checkpoint.pt")
    with pytest.raises(error, match=said):
        from_checkpoint(SeparatorConfig(checkpoint=str(tmp_path)))


def test_folders_without_weights_are_named(tmp_path: Path) -> None:
    for source in (str(tmp_path / "nowhere"), str(tmp_path)):
        with pytest.raises(BundleNotFoundError):
            from_checkpoint(SeparatorConfig(checkpoint=source))
    (tmp_path / "last_best_checkpoint").write_text("../elsewhere.pt")
    with pytest.raises(BundleCorruptError, match="elsewhere"):
        from_checkpoint(SeparatorConfig(checkpoint=str(tmp_path)))


def test_another_rate_is_another_separator() -> None:
    config = replace(recipe().separator, sample_rate=8_000)
    torch.manual_seed(0)
    low = Separator(config).eval()
    torch.manual_seed(0)
    full = Separator(recipe().separator).eval()
    waveform, length = torch.randn(1, 1600), torch.tensor([[1600]])
    with torch.no_grad():
        assert not torch.allclose(low(waveform, length), full(waveform, length))
    assert set(low.state_dict()) == set(full.state_dict())  # the filter is no weight
