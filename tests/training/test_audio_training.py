"""Pre-training and fine-tuning of the audio encoder: what learns, what stays, what is refused."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_corpus import write_tiny_corpus
from torch import Tensor
from transformers import HubertConfig, HubertModel

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.encoders.audio import frames as frames_module
from merkit_training.encoders.audio import pretrain, train
from merkit_training.encoders.audio.config import AudioConfig, AudioPretrainingConfig
from merkit_training.encoders.audio.encoder import AudioEncoder, load
from merkit_training.encoders.audio.frames import CachedFrames, FreshFrames, by_length, in_order
from merkit_training.encoders.audio.units import cepstra, cluster, hidden_spans
from merkit_training.encoders.utterances import Utterances
from merkit_training.recipe import Recipe, recipe_from

SIZES: Mapping[str, Any] = {
    "conv_channels": [24, 24], "conv_kernels": [200, 2], "conv_strides": [160, 2],
    "hidden": 32, "layers": 2, "heads": 2, "intermediate": 48, "position_groups": 4,
    "front_epochs": 1, "epochs": 1, "lr": 5e-3, "batch_size": 16, "threads": 1,
}  # fmt: skip
PRETRAINING: Mapping[str, Any] = {
    "epochs": 3, "clusters": [8, 8], "mask_share": 0.5, "mask_length": 4, "width": 16,
    "batch_size": 16, "lr": 5e-3, "threads": 1,
}  # fmt: skip


def recipe(pretraining: Mapping[str, Any] | None = None, **changes: Any) -> Recipe:
    tables = {"audio_encoder": {**SIZES, **changes}, "audio_pretraining": pretraining or {}}
    return recipe_from(tables)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_tiny_corpus(tmp_path_factory.mktemp("sounds"), train=64, val=16)
    return folder


def own_data(folder: Path) -> Path:
    """Three classes of the user's own, and nothing that only a generator knows."""
    root: Path = write_tiny_corpus(folder, train=32, val=12)
    labels = np.load(root / "utterances" / "labels.npy")
    np.save(root / "utterances" / "labels.npy", labels % 3)
    (root / "utterances" / "prosody.npy").unlink()
    (root / "card.json").write_text(json.dumps({"labels": ["calm", "tense", "glad"]}))
    with (root / "utterances" / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "text"])
        writer.writerows([f"own{i}", "words"] for i in range(44))
    return root


@pytest.mark.parametrize("tune", ["full", "lora", "head"])
def test_labels_alone_teach_and_only_what_is_tuned_moves(tune: str, tmp_path: Path) -> None:
    data, run = own_data(tmp_path / "corpus"), tmp_path / "run"
    checkpoint = tmp_path / "official"
    sizes = {"conv_dim": [16] * 7, "hidden_size": 32, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 48, "num_conv_pos_embeddings": 8,
             "num_conv_pos_embedding_groups": 4}  # fmt: skip
    torch.manual_seed(0)
    large = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
    style = {} if tune == "lora" else large  # transformers' defaults are the base style
    start = HubertModel(HubertConfig(**sizes, **style)).eval()
    start.save_pretrained(checkpoint)
    (checkpoint / "preprocessor_config.json").write_text('{"do_normalize": false}')
    kept = tune != "head"  # both ways of making frames
    scores = train.train(
        recipe(checkpoint=str(checkpoint), tune=tune, cache_frames=kept), data, run
    )
    assert all(np.isfinite(value) for value in scores.values())
    card = json.loads((run / "audio_encoder" / "card.json").read_text())
    assert "not z-normed" in card["note"] and card["checkpoint"] == str(checkpoint)
    before = {f"model.{k}": v for k, v in start.state_dict().items()}
    after = load(run).state_dict()
    assert after.keys() == before.keys()  # LoRA's factors are merged
    step = 2e-3  # what half precision moves a weight by
    moved = {k for k in after if (after[k] - before[k]).abs().max() > step}
    assert not any(".feature_extractor." in name for name in moved)
    if tune == "head":
        assert not moved
    elif tune == "lora":
        assert moved and all(".attention." in name for name in moved)
    else:
        assert any(".feed_forward." in name for name in moved)


def test_without_epochs_a_checkpoint_is_taken_as_it_is(corpus: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    train.train(recipe(), corpus, run)
    step = str(run / "audio_encoder")
    train.train(recipe(checkpoint=step, epochs=0, hidden=64), corpus, again)
    before, after = (load_file(r / "audio_encoder" / "model.safetensors") for r in (run, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert json.loads((again / "audio_encoder" / "config.json").read_text())["hidden"] == 32


def test_frames_are_the_same_kept_or_made_anew(corpus: Path) -> None:
    torch.manual_seed(0)
    encoder = AudioEncoder(AudioConfig(**{**SIZES, "conv_channels": (24, 24)}))
    data = Utterances.read(corpus, "train")
    kept = CachedFrames.of(encoder, data, Preprocessing(), 1, 3)
    fresh = FreshFrames(encoder, data, Preprocessing(), 3)
    rows, copies = np.array([5, 0, 60]), np.array([0, 1, 1])
    start = torch.tensor([[3], [0], [7]])
    with torch.no_grad():
        for found, expected in (
            (kept.batch(rows, copies), fresh.batch(rows, copies)),
            (kept.stretches(rows, copies, start, 9), fresh.stretches(rows, copies, start, 9)),
        ):
            assert torch.equal(found[1], expected[1])
            mask = found[1][..., None]
            torch.testing.assert_close(found[0] * mask, expected[0] * mask, atol=2e-3, rtol=2e-3)
    assert fresh.stretches(rows, copies, start, 9)[0].shape[1] == 9


def test_stages_learn_without_keeping_frames_too(corpus: Path, tmp_path: Path) -> None:
    wanted = recipe({**PRETRAINING, "train_convolutions": True, "epochs": 1}, cache_frames=False,
                    mask_vector=True, epochs=1)  # fmt: skip
    before = pretrain.train(wanted, corpus, tmp_path)
    scores = train.train(wanted, corpus, tmp_path)
    assert np.isfinite([*before.values(), *scores.values()]).all()
    assert "model.masked_spec_embed" in load(tmp_path).state_dict()


def test_batches_by_length_are_bounded_and_complete() -> None:
    counts = torch.tensor([[10], [30_000], [0], [200], [900], [40]] + [[150]] * 100)
    batches = list(by_length(counts))
    assert len(batches[0]) == 1 and counts[batches[0][0]] == 30_000
    assert sorted(i for rows in batches for i in rows) == list(range(len(counts)))
    for rows in batches[1:]:
        assert len(rows) * int(counts[rows].max()) ** 2 <= frames_module.MOST_PAIRS
    back = in_order([(rows, torch.from_numpy(rows)) for rows in batches])
    assert back.tolist() == list(range(len(counts)))


def test_masked_prediction_learns_and_fine_tuning_starts_from_it(
    corpus: Path, tmp_path: Path
) -> None:
    wanted = recipe({**PRETRAINING, "epochs": 6}, front_epochs=2, epochs=0)
    scores = pretrain.train(wanted, corpus, tmp_path)
    assert scores["masked_accuracy"] > 1.3 * scores["chance"]
    left = {path.suffix for path in (tmp_path / "audio_pretraining").iterdir()}
    assert not left & {".npz", ".checkpoint", ".tmp"}
    train.train(wanted, corpus, tmp_path)
    before, after = (
        load_file(tmp_path / name / "model.safetensors")
        for name in ("audio_pretraining", "audio_encoder")
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


class _KilledError(Exception):
    pass


def test_killed_pretraining_goes_on_to_the_same_weights(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, whole, broken = recipe(PRETRAINING, front_epochs=0), tmp_path / "a", tmp_path / "b"
    pretrain.train(wanted, corpus, whole)
    real = pretrain.__dict__["layer_outputs"]
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "layer_outputs", _raise)  # between the iterations
        with pytest.raises(_KilledError):
            pretrain.train(wanted, corpus, broken)
    assert pretrain.__dict__["layer_outputs"] is real
    assert (broken / "audio_pretraining" / "units0.npz").exists()
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_cepstra", _raise)  # the first units are kept
        pretrain.train(wanted, corpus, broken)
    weights = Path("audio_pretraining", "model.safetensors")
    assert (whole / weights).read_bytes() == (broken / weights).read_bytes()


def _raise(*_: object) -> list[Any]:
    raise _KilledError


def test_spans_hide_the_asked_share_of_valid_frames_only() -> None:
    torch.manual_seed(0)
    counts = torch.tensor([[100], [37], [4], [0]])
    hidden = torch.stack([hidden_spans(counts, 100, 0.4, 10) for _ in range(200)])
    assert not hidden[:, 1, 37:].any() and not hidden[:, 2, 4:].any() and not hidden[:, 3].any()
    assert hidden[:, :3].any(2).all()  # something to learn from in each
    assert 0.28 < hidden[:, 0].float().mean() < 0.4  # spans overlap


def test_cepstra_tell_frames_apart_and_units_follow_them(corpus: Path) -> None:
    data = Utterances.read(corpus, "train")
    rows = cepstra(data, AudioConfig(conv_channels=(4, 4), conv_kernels=(200, 2),
                                     conv_strides=(160, 2)), 16_000, 13)  # fmt: skip
    encoder = AudioEncoder(AudioConfig(**{**SIZES, "conv_channels": (24, 24)}))
    counts = encoder.count(torch.from_numpy(data.lengths))
    assert [len(row) for row in rows] == counts.tolist() and rows[0].shape[1] == 39
    units = cluster(rows, len(rows), 6, 4000, seed=1)
    labels = data.labels.numpy()
    middle = [units.values[s + c // 2] for s, c in zip(units.starts, units.counts, strict=True)]
    pairs = {(label, unit) for label, unit in zip(labels, middle, strict=True)}
    assert len({unit for _, unit in pairs}) >= 4 and len(pairs) <= 8  # a pitch, a unit
    assert 0 < units.commonest() < 0.5


def damaged(folder: Path, **arrays: Any) -> Path:
    root: Path = write_tiny_corpus(folder, train=8, val=4)
    for name, change in arrays.items():
        path = root / "utterances" / f"{name}.npy"
        np.save(path, change(np.load(path)))
    return root


def _put(index: int, value: Any) -> Any:
    def change(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        array[index] = value
        return array

    return change


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"lengths": _put(1, -3)}, "lengths.npy are impossible: u00001"),
        ({"lengths": _put(2, 99_999)}, "lengths.npy are impossible: u00002"),
        ({"labels": _put(3, 6)}, "labels.npy are impossible: u00003"),
        ({"waveforms": lambda a: a.astype(np.float32)}, "waveforms.npy is float32"),
        ({"waveforms": lambda a: 0 * a}, "no utterance of the split 'train'.*8 silent: u00000"),
        ({"lengths": lambda a: 0 * a}, "no utterance of the split 'train'"),
    ],
)
def test_impossible_utterances_are_named(tmp_path: Path, arrays: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        Utterances.read(damaged(tmp_path, **arrays), "train")


def test_short_and_empty_utterances_do_not_stop_the_stages(tmp_path: Path) -> None:
    root = damaged(tmp_path / "corpus", lengths=lambda a: np.r_[0, 1, 150, a[3:]])
    run = tmp_path / "run"
    wanted = recipe({**PRETRAINING, "epochs": 1, "batch_size": 2}, epochs=1, batch_size=2)
    scores = pretrain.train(wanted, root, run) | train.train(wanted, root, run)
    assert np.isfinite(list(scores.values())).all()
    card = json.loads((run / "audio_encoder" / "card.json").read_text())
    assert "u00000" in card["silent"]["train"]


def test_of_a_long_utterance_the_middle_is_heard(corpus: Path) -> None:
    whole, part = Utterances.read(corpus, "train"), Utterances.read(corpus, "train", most=2000)
    start = (whole.lengths[4] - 2000) // 2
    assert np.array_equal(part.wave(4), whole.wave(4)[start : start + 2000])
    assert part.lengths.max() == 2000


@pytest.mark.parametrize(
    "changes", [{"clusters": (8,)}, {"clusters": (1, 8)}, {"temperature": 0.0}]
)
def test_impossible_pretraining_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        replace(AudioPretrainingConfig(), **changes)


def test_a_layer_that_there_is_not_is_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"layer is 3.*1 to 2"):
        pretrain.train(recipe({**PRETRAINING, "layer": 3}), corpus, tmp_path)


def test_features_of_a_checkpoint_of_the_base_style_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "conv_channels": (24, 24), "norm": "group", "stable": False}
    encoder = AudioEncoder(AudioConfig(**sizes)).eval()
    values, length = torch.randn(2, 9000), torch.tensor([[9000], [4000]])
    alone: Tensor = encoder(values[1:, :4000], length[1:])
    torch.testing.assert_close(encoder(values, length)[1:], alone, atol=1e-5, rtol=0)
