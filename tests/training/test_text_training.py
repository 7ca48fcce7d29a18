"""The text stages: own classes, own checkpoints and vocabularies, three ways to tune, bad input."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from merkit.errors import BundleNotFoundError, InvalidInputError
from merkit.pipeline import GROUPS, standard_contract
from merkit.steps.tokenize import Tokenize
from merkit_training.encoders.text import tokenizer, train
from merkit_training.encoders.text.encoder import TextEncoder, load
from merkit_training.encoders.text.sentences import Sentences
from merkit_training.recipe import Recipe, recipe_from

CLASSES = ("calm", "thrilled", "bored")
SIZES = {
    "vocabulary": 300, "hidden": 16, "layers": 2, "heads": 2, "intermediate": 24, "threads": 1,
    "batch_size": 16, "lr": 5e-3, "finetune_lr": 1e-2, "epochs": 4, "label_smoothing": 0.0,
}  # fmt: skip
Rows = Sequence[tuple[str, str, str]]


def recipe(*, pretraining: Mapping[str, Any] | None = None, **changes: Any) -> Recipe:
    return recipe_from({"text_encoder": SIZES | changes, "text_pretraining": pretraining or {}})


def sentences(count: int = 120) -> Rows:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    return [
        (f"it is {i} and so {CLASSES[label]}", CLASSES[label], "train" if i < count - 24 else "val")
        for i, label in enumerate(labels)
    ]


def write_corpus(root: Path, rows: Rows) -> Path:
    for name in ("sentences", "utterances"):
        (root / name).mkdir(parents=True)
        with (root / name / "table.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "discrete", "split"))
            writer.writerows(rows)
    (root / "card.json").write_text(json.dumps({"labels": CLASSES}))
    return root


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), sentences())


@pytest.fixture(scope="module")
def pretrained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose tokeniser and `text_pretraining` are done."""
    run = tmp_path_factory.mktemp("run")
    tokenizer.train(recipe(), corpus, run)
    scores = train.pretrain(recipe(pretraining={"epochs": 2, "batch_size": 16}), corpus, run)
    assert scores["val_loss"] < np.log(300)
    return run


def started(pretrained: Path, run: Path) -> Path:
    for name in (tokenizer.STEP, train.PRETRAINING):
        (run / name).symlink_to(pretrained / name)
    return run


@pytest.mark.parametrize("tune", ["full", "lora", "head"])
def test_each_way_to_tune_saves_plain_weights(
    tune: str, corpus: Path, pretrained: Path, tmp_path: Path
) -> None:
    run = started(pretrained, tmp_path)
    lora = {"lora_rank": 4, "lora_alpha": 8.0, "lora_dropout": 0.0}
    scores = train.train(recipe(tune=tune, pretrain_epochs=0, epochs=8, **lora), corpus, run)
    assert "pretrain_loss" not in scores and 0 <= scores["waf"] <= 1
    if tune != "head":
        assert scores["loss"] < 1.45  # at first about 1.6: ln 3, and a tenth of ln 300 at most
    card = json.loads((run / "text_encoder" / "card.json").read_text())
    assert card["classes"] == list(CLASSES) and card["tune"] == tune
    encoder, before = load(run), before_tuning(pretrained)
    assert encoder.state_dict().keys() == before.keys()
    changed = {
        name
        for name, value in encoder.state_dict().items()
        if not torch.allclose(value, before[name], atol=1e-3)
    }
    layers = [name for name in before if "proj" in name]
    expected = {"full": set(before), "lora": set(layers), "head": set()}[tune]
    assert changed <= expected and len(changed) >= 0.5 * len(expected)


def before_tuning(run: Path) -> dict[str, torch.Tensor]:
    from merkit_training.runs import load_step_files

    return load_step_files(run, train.PRETRAINING)[1]


def test_a_checkpoint_can_be_taken_as_it_is(pretrained: Path, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / tokenizer.STEP).symlink_to(pretrained / tokenizer.STEP)
    folder = str(pretrained / train.PRETRAINING)
    plain = recipe(checkpoint=folder, epochs=0, pretrain_epochs=0, hidden=64)
    scores = train.train(plain, corpus, tmp_path)
    assert set(scores) == {"probe_waf", "probe_accuracy"}
    encoder: TextEncoder = load(tmp_path)
    for name, value in before_tuning(pretrained).items():
        assert torch.equal(encoder.state_dict()[name], value)


def test_empty_and_unlabelled_sentences_are_counted_not_dropped_in_silence(
    corpus: Path, tmp_path: Path
) -> None:
    rows = [*sentences(), ("", "calm", "train"), (" \u3000", "calm", "val"), ("hm", "", "train")]
    mixed = write_corpus(tmp_path / "corpus", rows)
    run = tmp_path / "run"
    tokenizer.train(recipe(), corpus, run)
    data, val = (Sentences.read(recipe(), mixed, run, split) for split in ("train", "val"))
    assert data.empty == (97,) and val.empty == (25,)
    assert len(data) == 97 and len(data.labelled()) == 96
    ids, lengths = data.batch(np.array([96, 0]), torch.device("cpu"))
    own = tokenizer.encode(tokenizer.load(run), ["hm", rows[0][0]], 64)
    assert torch.equal(ids, torch.from_numpy(own[0]))
    assert torch.equal(lengths, torch.from_numpy(own[1]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("so calm", "calm", "train"), ("well", "glad", "train")], "sentence 2 .*'glad'"),
        ([("", "calm", "train"), ("a", "calm", "val")], "no words in the split 'train'"),
        ([("a", "calm", "train")], "no words in the split 'val'"),
        ([("a b", "", "train"), ("a", "calm", "val")], "0 sentences to train on"),
    ],
)
def test_sentences_that_cannot_teach_are_named(
    rows: Rows, said: str, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    tokenizer.train(recipe(), corpus, run)
    with pytest.raises(InvalidInputError, match=said):
        train.train(recipe(pretrain_epochs=0), write_corpus(tmp_path / "c", rows), run)


def test_a_batch_of_single_words_has_nothing_to_predict() -> None:
    learner = train.TextLearner(TextEncoder(recipe().text_encoder), recipe().text_encoder, 3)
    loss = learner.language_loss(torch.tensor([[5], [6]]), torch.tensor([[1], [1]]))
    assert loss.item() == 0


def write_tokenizer(path: Path, words: Sequence[str]) -> None:
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.enable_padding(length=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save(str(path))


def test_published_tokenisers_travel_as_they_are(
    corpus: Path, pretrained: Path, tmp_path: Path
) -> None:
    write_tokenizer(tmp_path / "text" / "tokenizer.json", ["?", "it", "is", "calm"])
    llm = tmp_path / "llm"
    llm.mkdir()
    for name in ("config.json", "model.safetensors"):
        (llm / name).write_bytes((pretrained / train.PRETRAINING / name).read_bytes())
    wanted = recipe_from(
        {
            "text_encoder": SIZES | {"tokenizer": str(tmp_path / "text")},
            "joint_encoder": {"llm_checkpoint": str(llm)},
        }
    )
    with pytest.raises(BundleNotFoundError, match="holds no tokeniser"):
        tokenizer.train(wanted, corpus, tmp_path / "run")
    write_tokenizer(llm / "tokenizer.json", ["calm", "is", "it", "?"])
    tokenizer.train(wanted, corpus, tmp_path / "run")
    ids = [
        tokenizer.load(tmp_path / "run", joint=joint).encode("it is calm").ids
        for joint in (False, True)
    ]
    assert ids == [[1, 2, 3], [2, 1, 0]]
    contract = standard_contract(CLASSES, dict.fromkeys(GROUPS, 16))
    step = Tokenize(contract, tmp_path / "run" / tokenizer.STEP)
    out = step({"text": np.array([["it is calm"]], object)})
    assert out["text_ids"].tolist() == [ids[0]]
    assert out["joint_ids"][0, -3:].tolist() == ids[1]


def test_a_vocabulary_larger_than_the_model_is_refused(corpus: Path, tmp_path: Path) -> None:
    tokenizer.train(recipe(), corpus, tmp_path)
    with pytest.raises(InvalidInputError, match="embeddings"):
        train.train(recipe(vocabulary=40), corpus, tmp_path)
