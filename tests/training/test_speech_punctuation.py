"""The CT-Transformer: FunASR's folder and graph, padding without effect, marks that are learnt."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit.speech.punctuate import MARKS, Punctuator
from merkit_training.recipe import recipe_from
from merkit_training.speech.punctuation.checkpoint import (
    PunctuationModel,
    load_folder,
    write_folder,
)
from merkit_training.speech.punctuation.config import COMMON, PunctuatorConfig
from merkit_training.speech.punctuation.data import MarkedSentences, learn_tokens
from merkit_training.speech.punctuation.model import CtTransformer
from merkit_training.speech.punctuation.train import load, scores_of, train

SMALL = PunctuatorConfig(embedded=16, hidden=16, layers=2, heads=2, intermediate=32, kernel=5)
TOKENS = ("<unk>", *(f"w{i}" for i in range(29)))


@pytest.fixture(name="known")
def a_model() -> PunctuationModel:
    torch.manual_seed(0)
    model = CtTransformer(SMALL, len(TOKENS), len(MARKS)).eval()
    return PunctuationModel(model, SMALL, TOKENS, MARKS)


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(len(TOKENS), shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_published_size_has_the_published_number_of_parameters() -> None:
    config = PunctuatorConfig(**COMMON)  # type: ignore[arg-type]
    with torch.device("meta"):
        model = CtTransformer(config, 272_727, len(MARKS))
    assert sum(p.numel() for p in model.parameters()) == 72_990_470  # 292 MB in float32
    names = set(model.state_dict())
    assert {"embed.weight", "encoder.encoders0.0.self_attn.fsmn_block.weight"} < names
    assert {"encoder.encoders.2.feed_forward.w_1.bias", "encoder.after_norm.bias"} < names
    assert {"decoder.weight", "decoder.bias"} < names


def test_neither_padding_nor_neighbours_change_a_text(known: PunctuationModel) -> None:
    words, lengths = ids(3, 9), torch.tensor([9, 4, 1])
    with torch.no_grad():
        together = known.model(words, lengths)
        for row, length in enumerate(lengths.tolist()):
            alone = known.model(words[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(together[row, :length], alone[0], atol=1e-5, rtol=1e-5)


def test_a_funasr_folder_comes_back_as_it_was_written(
    known: PunctuationModel, tmp_path: Path
) -> None:
    write_folder(tmp_path, known)
    again, report = load_folder(tmp_path, PunctuatorConfig(lr=0.5))
    assert (again.tokens, again.marks) == (known.tokens, known.marks)
    assert again.config.hidden == SMALL.hidden
    assert again.config.lr == 0.5
    assert not report.unused
    assert not report.initial
    words, lengths = ids(2, 7), torch.tensor([7, 5])
    with torch.no_grad():
        assert torch.equal(again.model(words, lengths), known.model(words, lengths))


def test_names_of_the_first_releases_are_understood(
    known: PunctuationModel, tmp_path: Path
) -> None:
    write_folder(tmp_path, known)
    state = {f"punc_model.{name}": t for name, t in known.model.state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    load_folder(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        ("model: CTTransformer", "model: CTTransformerStreaming", InvalidInputError, "offline"),
        ("input_layer: pe", "input_layer: conv2d", InvalidInputError, "conv2d"),
        ("att_unit: 16", "att_unit: 32", BundleCorruptError, "encoder of"),
        ("num_blocks: 2", "num_blocks: 3", InvalidInputError, "nothing for"),
        ("num_blocks: 2", "num_blocks: 1", InvalidInputError, "has no"),
        ("attention_heads: 2", "attention_heads: 3", BundleCorruptError, "impossible"),
        ("- 、", "", InvalidInputError, "decoder"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused(
    known: PunctuationModel, tmp_path: Path, old: str, new: str, kind: type[Exception], words: str
) -> None:
    write_folder(tmp_path, known)
    config = tmp_path / "config.yaml"
    text = config.read_text("utf-8")
    assert old in text
    config.write_text(text.replace(old, new), "utf-8")
    with pytest.raises(kind, match=words):
        load_folder(tmp_path)


def test_missing_and_damaged_words_are_told(known: PunctuationModel, tmp_path: Path) -> None:
    write_folder(tmp_path, known)
    (tmp_path / "tokens.json").write_text("{}", "utf-8")
    with pytest.raises(BundleCorruptError, match="list of strings"):
        load_folder(tmp_path)
    (tmp_path / "tokens.json").unlink()
    with pytest.raises(BundleNotFoundError, match=r"tokens\.json"):
        load_folder(tmp_path)


def test_sentences_become_words_marks_and_a_stop() -> None:
    texts = ["Well, you came?", "我好，你呢", "", "…"]
    tokens = learn_tokens([*texts, *texts], 100)
    data = MarkedSentences.of(texts, tokens, MARKS)
    assert len(data) == 2
    assert [tokens[i] for i in data.words[0]] == ["well", "you", "came"]
    assert [[MARKS[i] for i in row] for row in data.marks] == [
        ["，", "_", "？"], ["_", "，", "_", "。"]
    ]  # fmt: skip
    for seed in range(20):
        words, marks = data.row(0, 3, np.random.default_rng(seed))
        assert words[:3].tolist() == data.words[0].tolist()
        assert len(words) == len(marks)
    with pytest.raises(InvalidInputError, match="no sentence"):
        MarkedSentences.of(["", "?"], tokens, MARKS)


def test_half_width_marks_of_a_folder_are_the_same_classes() -> None:
    data = MarkedSentences.of(["a, b?"], ("<unk>",), ("<unk>", "_", ",", "。", "?", "、"))
    assert data.marks[0].tolist() == [2, 4]


def test_scores_are_those_of_each_mark() -> None:
    counts = np.zeros((len(MARKS), len(MARKS)), np.int64)
    counts[1, 1], counts[2, 2], counts[2, 1], counts[3, 3] = 90, 3, 1, 6
    scores = scores_of(counts, MARKS)
    assert scores["f1_comma"] == pytest.approx(6 / 7)
    assert scores["f1_stop"] == 1.0
    assert scores["f1"] == pytest.approx((6 / 7 + 1) / 2)
    assert "f1_question" not in scores
    assert scores["accuracy"] == 0.99


def test_a_stage_learns_marks_and_the_sdk_sets_them(tmp_path: Path) -> None:
    corpus, run = tmp_path / "corpus", tmp_path / "run"
    write_sentences(corpus / "sentences" / "table.csv")
    table = {
        "embedded": 32, "hidden": 32, "layers": 1, "heads": 2, "intermediate": 64,
        "epochs": 8, "lr": 5e-3, "batch_size": 32, "joined": 3,
    }  # fmt: skip
    recipe = recipe_from({"punctuator": table})
    assert recipe.punctuator.asked
    scores = train(recipe, corpus, run)
    assert scores["f1"] > 0.9, scores
    assert next(iter(scores)) == "f1"
    known = load(run)

    def classify(words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            logits = known.model(torch.from_numpy(words), torch.from_numpy(lengths))
        return np.asarray(logits)

    punctuate = Punctuator(known.tokens, known.marks, classify)
    assert punctuate("well he came look she left 他走了吗我在家") == (
        "Well, he came. Look, she left. 他走了吗？我在家。"
    )


def write_sentences(path: Path) -> None:
    path.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    who, did = ("he", "she", "we", "they"), ("came", "left", "ran", "slept")
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "discrete", "language", "category", "split"))
        for i in range(400):
            start, w, d = (rng.choice(x) for x in (("well", "look", ""), who, did))
            english = f"{start}, {w} {d}" if start else f"{w} {d}"
            chinese = f"{rng.choice(list('你我他'))}{rng.choice(['走了吗？', '在家', '来了吗？'])}"
            split = "val" if i % 8 == 0 else "train"
            writer.writerow((english if i % 2 else chinese, "neutral", "", "neutral", split))
