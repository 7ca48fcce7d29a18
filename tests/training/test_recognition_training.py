"""Tokens of a corpus, FunASR folders, and the stage: what it learns, keeps and refuses."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tiny_corpus import write_tiny_corpus

from merkit.errors import BundleCorruptError, BundleNotFoundError, InvalidInputError
from merkit.speech.vocabulary import Vocabulary
from merkit_training.encoders.utterances import Utterances
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.speech.funasr import FunasrFolder, read_cmvn, write_cmvn
from merkit_training.speech.noise.augment import Augment
from merkit_training.speech.recognition import train
from merkit_training.speech.recognition.checkpoint import funasr_config, load_folder, write_folder
from merkit_training.speech.recognition.config import LARGE, RecognizerConfig
from merkit_training.speech.recognition.data import SpokenTexts
from merkit_training.speech.recognition.model import Recognizer
from merkit_training.speech.recognition.tokens import learn_vocabulary
from merkit_training.stages import is_asked

SIZES: Mapping[str, Any] = {
    "hidden": 24, "layers": 2, "heads": 2, "intermediate": 32, "decoder_layers": 2,
    "decoder_attending": 1, "decoder_heads": 2, "decoder_intermediate": 32,
    "epochs": 2, "batch_size": 8, "lr": 5e-3, "word_pieces": 40, "threads": 1,
}  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    return recipe_from({"recognizer": {**SIZES, **changes}})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = write_tiny_corpus(tmp_path_factory.mktemp("spoken"), train=32, val=8)
    return folder


def folder_of(path: Path, **changes: Any) -> tuple[Recognizer, RecognizerConfig, Vocabulary]:
    config = RecognizerConfig(**{**{k: SIZES[k] for k in list(SIZES)[:8]}, **changes})
    vocabulary = learn_vocabulary(["我很好", "a bad day"], 3)
    torch.manual_seed(3)
    recognizer = Recognizer(config, len(vocabulary)).eval()
    recognizer.frontend.shift.normal_()
    recognizer.frontend.scale.uniform_(0.1, 2)
    write_folder(path, recognizer, config, vocabulary)
    return recognizer, config, vocabulary


def test_every_word_of_a_corpus_can_be_spelt_in_few_pieces() -> None:
    texts = ["I am happy today", "happy days", "我很高兴，today", "stay happy"]
    vocabulary = learn_vocabulary(texts, 20)
    assert vocabulary.tokens[:3] == ("<blank>", "<s>", "</s>")
    assert vocabulary.tokens[-1] == "<unk>"
    assert {"我", "很", "高", "兴", "happy"} <= set(vocabulary.tokens)
    for text in [*texts, "pay a toy", "高我"]:  # of the same letters
        assert vocabulary.decode(vocabulary.encode(text)) == text.lower().replace("，", " ")
    assert len(vocabulary.encode("happy")) == 1
    bare = learn_vocabulary(texts, 0)
    assert len(bare.encode("happy")) == 5 and len(bare) < len(vocabulary)
    assert learn_vocabulary(reversed(texts), 20) == vocabulary


def test_a_folder_comes_back_to_the_bit(tmp_path: Path) -> None:
    recognizer, config, vocabulary = folder_of(tmp_path)
    loaded, found, tokens, report = load_folder(tmp_path)
    assert (found, tokens) == (config, vocabulary)
    state, other = recognizer.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    assert not report.initial and not report.unused
    assert {p.name for p in tmp_path.iterdir()} == {
        "config.yaml", "tokens.json", "am.mvn", "model.pt"
    }  # fmt: skip


def test_names_and_settings_are_those_of_the_published_model(tmp_path: Path) -> None:
    """What modelscope/FunASR's template.yaml states, and names its modules give."""
    config = funasr_config(RecognizerConfig(**LARGE))
    for table, values in {
        "encoder_conf": {"output_size": 512, "attention_heads": 4, "linear_units": 2048,
                         "num_blocks": 50, "input_layer": "pe", "kernel_size": 11,
                         "sanm_shfit": 0, "selfattention_layer_type": "sanm"},
        "decoder_conf": {"attention_heads": 4, "linear_units": 2048, "num_blocks": 16,
                         "att_layer_num": 16, "kernel_size": 11, "sanm_shfit": 0},
        "predictor_conf": {"idim": 512, "threshold": 1.0, "l_order": 1, "r_order": 1,
                           "tail_threshold": 0.45},
        "frontend_conf": {"fs": 16000, "window": "hamming", "n_mels": 80, "frame_length": 25,
                          "frame_shift": 10, "lfr_m": 7, "lfr_n": 6},
        "model_conf": {"ctc_weight": 0.0, "lsm_weight": 0.1, "predictor_weight": 1.0,
                       "predictor_bias": 1, "sampling_ratio": 0.75},
    }.items():  # fmt: skip
        assert {key: config[table][key] for key in values} == values
    assert config["input_size"] == 560
    recognizer, *_ = folder_of(tmp_path)
    names = set(recognizer.model.state_dict())
    assert {
        "encoder.encoders0.0.self_attn.linear_q_k_v.weight",
        "encoder.encoders.0.self_attn.fsmn_block.weight",
        "encoder.encoders.0.feed_forward.w_1.bias", "encoder.after_norm.weight",
        "predictor.cif_conv1d.weight", "predictor.cif_output.bias", "decoder.embed.0.weight",
        "decoder.decoders.0.self_attn.fsmn_block.weight",
        "decoder.decoders.0.src_attn.linear_k_v.weight",
        "decoder.decoders.0.feed_forward.norm.weight",
        "decoder.decoders2.0.norm2.weight", "decoder.decoders3.0.feed_forward.w_2.weight",
        "decoder.after_norm.bias", "decoder.output_layer.weight", "ctc.ctc_lo.weight",
    } <= names  # fmt: skip
    assert "decoder.decoders3.0.feed_forward.w_2.bias" not in names


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model", "module."])
def test_weights_may_lie_deeper_and_be_called_model_pb(wrapper: str, tmp_path: Path) -> None:
    recognizer, *_ = folder_of(tmp_path)
    plain = torch.load(tmp_path / "model.pt", weights_only=True)
    (tmp_path / "model.pt").unlink()
    if wrapper == "module.":
        torch.save({f"module.{k}": v for k, v in plain.items()}, tmp_path / "model.pb")
    else:
        torch.save({wrapper: plain, "epoch": 3}, tmp_path / "model.pb")
    loaded, *_ = load_folder(tmp_path)
    assert torch.equal(
        loaded.model.decoder.output_layer.weight, recognizer.model.decoder.output_layer.weight
    )


def test_what_only_timestamps_and_hotwords_need_is_set_aside(tmp_path: Path) -> None:
    folder_of(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    settings |= {"model": "SeacoParaformer", "predictor": "CifPredictorV3"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    extra = ("predictor.blstm.weight_ih_l0", "predictor.upsample_cnn.bias",
             "predictor.cif_output2.weight", "bias_encoder.weight_hh_l1",
             "seaco_decoder.after_norm.weight", "hotword_output_layer.bias")  # fmt: skip
    torch.save(weights | {name: torch.zeros(2) for name in extra}, tmp_path / "model.pt")
    _, _, _, report = load_folder(tmp_path)
    assert set(report.unused) == set(extra)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "SenseVoiceSmall"}, "of the model 'SenseVoiceSmall'"),
        ({"encoder": "ConformerEncoder"}, "encoder = 'ConformerEncoder'"),
        ({"predictor_conf": {"threshold": 0.9}}, "threshold = 0.9"),
        ({"frontend_conf": {"fs": 8000}}, "fs = 8000"),
        ({"encoder_conf": {"output_size": 23}}, "impossible sizes"),
        ({"encoder_conf": {"output_size": "wide"}}, "impossible sizes"),
        ({"encoder_conf": [1]}, "encoder_conf in .* is list"),
        ({"encoder_conf": {"num_blocks": 5}}, "has nothing for"),
        ({"decoder_conf": {"linear_units": 40}}, "has the shape"),
        ({"frontend_conf": {"lfr_m": 5}}, "normalises 560 numbers"),
    ],
)
def test_another_model_is_refused_by_name(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder_of(tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for key, value in change.items():
        settings[key] = settings[key] | value if isinstance(value, dict) else value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises((InvalidInputError, BundleCorruptError), match=message):
        load_folder(tmp_path)


class _Anything:
    """Something that is no tensor."""


@pytest.mark.parametrize("name", ["config.yaml", "tokens.json", "am.mvn", "model.pt"])
def test_missing_and_damaged_files_are_named(name: str, tmp_path: Path) -> None:
    folder_of(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2] + b"\x00[")
    with pytest.raises((BundleCorruptError, BundleNotFoundError), match=name):
        load_folder(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(BundleNotFoundError):
        load_folder(tmp_path)


def test_nothing_is_unpickled_and_no_yaml_object_made(tmp_path: Path) -> None:
    folder_of(tmp_path)
    torch.save({"a": _Anything()}, tmp_path / "model.pt")
    with pytest.raises(BundleCorruptError, match="nothing but tensors"):
        load_folder(tmp_path)
    torch.save({"a": 1}, tmp_path / "model.pt")
    with pytest.raises(BundleCorruptError, match="more than tensors"):
        FunasrFolder(tmp_path).checkpoint()
    (tmp_path / "config.yaml").write_text("model: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(BundleCorruptError, match="no plain YAML"):
        load_folder(tmp_path)


def test_normalisation_comes_back_to_the_bit(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((2, 560)).astype(np.float32)
    rows[0, :3] = 1e-12, -3e7, 0
    write_cmvn(tmp_path / "am.mvn", rows[0], rows[1])
    np.testing.assert_array_equal(read_cmvn(tmp_path / "am.mvn"), rows)
    for shift in ("1 2", "nan", "x", ""):
        text = f"<AddShift> 1 1\n<LearnRateCoef> 0 [ {shift} ]\n<Rescale> 1 1\n[ 1 ]"
        (tmp_path / "am.mvn").write_text(text)
        with pytest.raises(BundleCorruptError, match="numbers to add"):
            read_cmvn(tmp_path / "am.mvn")


def test_a_recipe_has_a_recogniser_only_if_it_asks() -> None:
    assert not is_asked(recipe_from({}), "recognizer")
    assert is_asked(recipe(), "recognizer")
    assert is_asked(recipe(epochs=0, checkpoint="folder"), "recognizer")
    assert is_asked(recipe_from({}), "fusion")


def test_the_stage_learns_and_a_run_gives_it_back(corpus: Path, tmp_path: Path) -> None:
    scores = train.train(recipe(), corpus, tmp_path)
    assert scores["accuracy"] == 1 - scores["cer"] and {"ctc_cer", "loss"} <= scores.keys()
    again = tmp_path / "again"
    assert train.train(recipe(), corpus, again)["loss"] == scores["loss"]
    step = Path("recognizer", "model.safetensors")
    assert (tmp_path / step).read_bytes() == (again / step).read_bytes()
    recognizer, config, vocabulary = train.load(tmp_path)
    assert config.hidden == 24 and len(vocabulary) == recognizer.model.ctc.ctc_lo.out_features
    card = json.loads((tmp_path / "recognizer" / "card.json").read_text())
    assert card["tokens"] == len(vocabulary)
    data = SpokenTexts.of(Utterances.read(corpus, "train"), vocabulary, "train")
    speech, counts = recognizer.frontend(*data.waves(np.arange(8)))
    real = torch.cat([row[:n] for row, n in zip(speech, counts, strict=True)])
    assert real.mean(0).abs().max() < 0.5  # normalised on this very set
    (tmp_path / "recognizer" / "tokens.json").write_text('["</s>"]')
    with pytest.raises(BundleCorruptError, match="does not fit"):
        train.load(tmp_path)


def test_a_checkpoint_is_taken_as_it_is_or_trained_further(corpus: Path, tmp_path: Path) -> None:
    recognizer, *_ = folder_of(tmp_path / "published")
    named = str(tmp_path / "published")
    # its vocabulary spells "a", "b", "d", "y": enough for a target in each text
    scores = train.train(recipe(checkpoint=named, epochs=0, hidden=98), corpus, tmp_path / "as_is")
    assert scores["cer"] > 0
    kept, config, _ = train.load(tmp_path / "as_is")
    assert config.hidden == 24
    shift = recognizer.frontend.shift
    assert torch.equal(kept.frontend.shift, shift)
    train.train(recipe(checkpoint=named, epochs=1), corpus, tmp_path / "further")
    tuned, *_ = train.load(tmp_path / "further")
    assert torch.equal(tuned.frontend.shift, shift)  # what the weights expect to hear stays
    moved = tuned.model.decoder.output_layer.weight - kept.model.decoder.output_layer.weight
    assert moved.abs().max() > 1e-3


def test_noise_is_put_behind_training_where_the_table_asks_for_it(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[int, ...]] = []

    def counted(_self: Augment, waves: NDArray[np.float32], _: object) -> NDArray[np.float32]:
        heard.append(waves.shape)
        return 0.5 * waves

    monkeypatch.setattr(Augment, "__call__", counted)
    clean = train.train(recipe(epochs=1), corpus, tmp_path / "clean")
    assert not heard
    noisy = train.train(recipe(epochs=1, augment="noise"), corpus, tmp_path / "noisy")
    assert len(heard) == 4 and all(shape[0] == 8 for shape in heard)  # not in validation
    assert noisy["loss"] != clean["loss"]


def test_batches_hold_all_utterances_once_and_like_lengths(corpus: Path) -> None:
    sounds = Utterances.read(corpus, "train")
    vocabulary = learn_vocabulary(sounds.texts, 10)
    data = SpokenTexts.of(sounds, vocabulary, "train")
    batches = data.batches(5)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(data)))
    assert max(map(len, batches)) <= 5
    lengths = [sounds.lengths[data.rows[batch]] for batch in batches]
    for shorter, longer in pairwise(lengths):
        assert shorter.max() <= longer.min()
    noisy, _ = data.waves(batches[0], lambda waves, _: waves + 1, np.random.default_rng(0))
    plain, _ = data.waves(batches[0])
    torch.testing.assert_close(noisy, plain + 1)


def test_words_are_needed(tmp_path: Path) -> None:
    root = write_tiny_corpus(tmp_path / "corpus", train=8, val=4)
    table = root / "utterances" / "table.csv"
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([{**row, "text": ""} for row in rows])
    with pytest.raises(InvalidInputError, match="none of the 8 utterances"):
        train.train(recipe(), root, tmp_path / "run")


def test_hidden_bands_and_stretches_are_at_the_mean() -> None:
    recognizer = Recognizer(RecognizerConfig(**{k: SIZES[k] for k in list(SIZES)[:8]}), 9)
    config = RecognizerConfig(hide_mels=10, hide_inputs=4)
    torch.manual_seed(0)
    hidden = train.hide(torch.ones(6, 20, 560), recognizer.frontend, config)
    shown = hidden.view(6, 20, 7, 80)
    assert torch.equal(shown[:, :, :1].expand_as(shown), shown)  # the same mels of each frame
    assert set(hidden.unique().tolist()) == {0.0, 1.0} and hidden.mean() > 0.7
    bands = (shown.amax((1, 2)) == 0).sum(1)
    stretches = (shown.amax((2, 3)) == 0).sum(1)
    assert bands.max() <= 10 and stretches.max() <= 4 and bands.sum() and stretches.sum()
    plain = RecognizerConfig(hide_mels=0, hide_inputs=0)
    assert train.hide(torch.ones(2, 5, 560), recognizer.frontend, plain).min() == 1
