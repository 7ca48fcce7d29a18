"""What the joint encoder learns by, on which sounds and words, and what of it may move."""

from __future__ import annotations

import json
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from qwen_audio import CONFIG, random_weights, write_checkpoint
from tiny_corpus import write_tiny_corpus
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, WhisperConfig, WhisperModel

from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit_training.encoders.joint import pretrain, train
from merkit_training.encoders.joint.config import JointConfig, JointSizes
from merkit_training.encoders.joint.data import NO_SOUND, NO_WORDS, WHOLE, JointData, Spectra
from merkit_training.encoders.joint.encoder import JointEncoder, load
from merkit_training.encoders.joint.objective import JointLearner, answer_tokens
from merkit_training.encoders.joint.start import PRETRAINING, started
from merkit_training.encoders.joint.tower import averaged, compacted, sounding
from merkit_training.encoders.text import tokenizer
from merkit_training.encoders.text.config import DecoderSizes, TextConfig
from merkit_training.encoders.utterances import Utterances
from merkit_training.labels import MER6
from merkit_training.preprocess import LogMel
from merkit_training.recipe import Recipe, recipe_from
from merkit_training.runs import load_step_files

SIZES: dict[str, Any] = {
    "preprocessing": {"joint_window_seconds": 1.0, "prompt": "Hear {audio}and read: {text} Felt?"},
    "text_encoder": {"vocabulary": 330, "hidden": 32, "layers": 2, "heads": 2, "intermediate": 48},
    "joint_encoder": {
        "hidden": 24, "layers": 1, "heads": 2, "intermediate": 32, "tower_epochs": 0, "epochs": 2,
        "lr": 3e-3, "batch_size": 16, "threads": 1, "objective": "label_word", "pool": "last",
        "llm": {"vocabulary": 330, "hidden": 32, "layers": 2, "heads": 2, "intermediate": 48},
    },
    "tower_pretraining": {"epochs": 1, "batch_size": 16, "threads": 1},
}  # fmt: skip


def recipe(**changes: Any) -> Recipe:
    return recipe_from(SIZES | {"joint_encoder": SIZES["joint_encoder"] | changes})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data: no prosody, no tones, one utterance silent and one without a transcript."""
    folder: Path = write_tiny_corpus(tmp_path_factory.mktemp("own"), train=48, val=16)
    sounds = folder / "utterances"
    (sounds / "prosody.npy").unlink()
    waves = np.load(sounds / "waveforms.npy")
    waves[5] = 0
    np.save(sounds / "waveforms.npy", waves)
    rows = (sounds / "table.csv").read_text("utf-8").splitlines()
    kept = [",".join(row.split(",")[:6] + row.split(",")[-1:]) for row in rows]
    kept[8] = kept[8].replace(kept[8].split(",")[5], "")
    (sounds / "table.csv").write_text("\n".join(kept) + "\n", "utf-8")
    return folder


@pytest.fixture(scope="module")
def run(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    tokenizer.train(recipe(), corpus, folder)
    return folder


def small(**changes: Any) -> tuple[JointSizes, JointEncoder]:
    joint = JointConfig(
        **{"hidden": 16, "layers": 1, "heads": 2, "intermediate": 24} | changes,
        llm=DecoderSizes(vocabulary=50, hidden=16, layers=2, heads=2, intermediate=24),
    )
    sizes = JointSizes.of(joint, TextConfig(), Preprocessing(joint_window_seconds=1.0))
    torch.manual_seed(0)
    model = JointEncoder(sizes)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return sizes, model.eval()


def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0], [9, 8, 7, 0]])
    mel = torch.rand(3, 80, 100, generator=torch.Generator().manual_seed(1))
    heard = torch.tensor([[False, True, True], [False, True, True], [False, False, True]])
    return mel, ids, torch.tensor([[4], [2], [3]]), heard


@pytest.mark.parametrize("changes", [{}, {"markers": True, "mask_padding": True}])
@pytest.mark.parametrize("audio_at", [0, 1])
def test_a_words_loss_is_that_of_saying_it_after_each_clip(
    changes: dict[str, Any], audio_at: int
) -> None:
    sizes, _ = small(**changes)
    torch.manual_seed(0)
    model = JointEncoder(replace(sizes, audio_at=audio_at)).eval()
    answers = torch.tensor([[11, 12, -100], [13, 14, 15], [16, -100, -100]])
    learner = JointLearner(model, "label_word", answers)
    inputs, labels = batch(), torch.tensor([1, 0, 2])
    losses = []
    for i, label in enumerate(labels.tolist()):
        word = answers[label][answers[label] >= 0]
        length = int(inputs[2][i])
        ids = torch.cat((inputs[1][i, :length], word))[None]
        one = inputs[0][i : i + 1], ids, torch.tensor([[len(ids[0])]]), inputs[3][i : i + 1]
        logits = model.decoder.logits(model.states(*one)[0][-1][0])
        losses += F.cross_entropy(logits[-len(word) - 1 : -1], word, reduction="none").tolist()
    found = learner.loss(inputs, labels, smoothing=0.0)
    assert found.item() == pytest.approx(np.mean(losses), rel=1e-4)


def test_words_that_begin_alike_are_told_apart_by_what_follows() -> None:
    _, model = small()
    inputs = batch()
    alike = JointLearner(model, "label_word", torch.tensor([[11, 12], [11, 14]]))
    second = JointLearner(model, "label_word", torch.tensor([[11, 12], [13, 14]]))
    with torch.no_grad():
        whole, first = alike.scores(inputs), second.scores(inputs)
        losses = [alike.loss(inputs, torch.full((3,), k), 0.0).item() for k in (0, 1)]
    assert whole.shape == (3, 2) and (whole < 0).all()
    assert (whole[:, 0] - whole[:, 1]).abs().min() > 1e-4
    # the loss is per token and per clip, the score per word
    np.testing.assert_allclose(-whole.mean(0) / 2, losses, rtol=1e-4)
    assert first.shape == (3, 2)


@pytest.mark.parametrize(
    ("objective", "words", "message"),
    [
        ("label_word", ("a", "b"), "one for each class"),
        ("label_word", ("up", "down", "up"), "tells apart"),
        ("label_word", ("up", " ", "down"), "tells apart"),
        ("label_tokens", (), 'objective = "label_word"'),
    ],
)
def test_impossible_answers_are_refused(
    objective: Any, words: tuple[str, ...], message: str, run: Path
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        answer_tokens(tokenizer.load(run), objective, ("x", "y", "z"), words)


@pytest.mark.parametrize("objective", ["label_word", "label_tokens", "head"])
def test_own_data_teaches_each_objective(objective: str, corpus: Path, run: Path) -> None:
    out = run.parent / f"run-{objective}"
    out.mkdir(exist_ok=True)
    (out / "tokenizer").symlink_to(run / "tokenizer")
    scores = train.train(recipe(objective=objective), corpus, out)
    assert all(np.isfinite(value) for value in scores.values())
    card = json.loads((out / "joint_encoder" / "card.json").read_text("utf-8"))
    assert card["left_out"]["silent"] == ["u00005"]
    assert card["classes"] == list(MER6) and card["pool"] == "last"
    assert load(out).audio_at == len(tokenizer.load(run).encode("Hear ").ids)


def write_ranks(path: Path) -> None:
    """Qwen's vocabulary file with the bytes alone."""
    lines = [b64encode(bytes([i])).decode() + f" {i}\n" for i in range(256)]
    path.write_text("".join(lines), "utf-8")


def test_a_qwen_audio_goes_from_its_folder_to_a_step(corpus: Path, tmp_path: Path) -> None:
    """Its own vocabulary, its markup in the prompt, its weights as they are."""
    home = tmp_path / "home"
    write_checkpoint(home, random_weights(vocab=300), CONFIG | {"vocab_size": 300})
    write_ranks(home / "qwen.tiktoken")
    made = recipe_from(
        {
            "preprocessing": {
                "joint_window_seconds": 1.0,
                "prompt": "<|im_start|>Audio 1:{audio}{text}<|im_end|>",
            },
            "text_encoder": SIZES["text_encoder"],
            "joint_encoder": {
                "checkpoint": str(home), "objective": "label_word", "tower_epochs": 0,
                "epochs": 0, "threads": 1,
            },
        }
    )  # fmt: skip
    tokenizer.train(made, corpus, tmp_path)
    scores = train.train(made, corpus, tmp_path)
    assert {"waf", "words_only_waf", "sound_only_waf", "probe_waf"} <= set(scores)
    model = load(tmp_path)
    assert model.audio_at == 1 + len("Audio 1:") and model.width == 32
    weight = model.state_dict()["decoder.h.2.mlp.w1.weight"]
    assert torch.equal(weight, random_weights(vocab=300)["transformer.h.2.mlp.w1.weight"].half())
    data = JointData.read(made, corpus, tmp_path, "val", "joint_encoder")
    assert data.alone[[0, -1]].tolist() == [257, 258]


def test_a_whisper_and_a_language_model_become_one(corpus: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ears = WhisperModel(
        WhisperConfig(
            d_model=24, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32,
            decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=24, vocab_size=60,
            pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0,
        )
    )  # fmt: skip
    mouth = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2,
        )
    )  # fmt: skip
    ears.save_pretrained(tmp_path / "ears")
    mouth.save_pretrained(tmp_path / "mouth")
    words = tokenizer.build(["any words"], 300, ("x",))
    words.save(str(tmp_path / "mouth" / "tokenizer.json"))
    made = recipe(
        tower_checkpoint=str(tmp_path / "ears"), llm_checkpoint=str(tmp_path / "mouth"), llm=None,
        tune="lora", epochs=1, heads=2,
    )  # fmt: skip
    tokenizer.train(made, corpus, tmp_path)
    sizes, model = started(made, tmp_path, 0)
    assert sizes.llm.vocabulary == 400 and sizes.joint.hidden == 24
    with torch.no_grad():
        mel = torch.randn(2, 80, 3000)
        model.tower.model.embed_positions = ears.encoder.embed_positions
        torch.testing.assert_close(model.tower(mel), ears.encoder(mel).last_hidden_state)
        ids = torch.arange(5)[None]
        states = model.decoder.states(model.decoder.embed(ids), torch.ones(1, 5).bool())
        expected = mouth(ids).logits
        torch.testing.assert_close(model.decoder.logits(states[-1]), expected, atol=1e-5, rtol=1e-4)
    scores = train.train(made, corpus, tmp_path)
    assert np.isfinite(scores["waf"])
    load(tmp_path)


def test_without_sound_or_words_the_prompt_stays(corpus: Path, run: Path) -> None:
    made, words = recipe(), tokenizer.load(run)
    data = JointData.read(made, corpus, run, "val", "joint_encoder")
    rows = np.arange(3)
    _, ids, lengths, presence = data.batch(rows, rows * 0, np.array([WHOLE, NO_SOUND, NO_WORDS]))
    around = [words.encode(part).ids for part in ("Hear ", "and read: ", " Felt?")]
    spoken = [words.encode(text).ids for text in data.spoken.texts[:2]]
    for i, between in enumerate([*spoken, []]):
        expected = [*around[0], *around[1], *between, *around[2]]
        assert ids[i, : int(lengths[i])].tolist() == expected
    assert presence.tolist() == [
        [False, True, True], [False, False, True], [False, True, False]
    ]  # fmt: skip


def test_spectra_that_are_too_many_to_keep_are_the_same(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken, rows = Utterances.read(corpus, "val"), np.array([3, 1])
    kept = Spectra(recipe(), spoken, "joint_encoder", noisy=1)
    monkeypatch.setattr("merkit_training.encoders.joint.data.CACHE_BYTES", 0)
    made = Spectra(recipe(), spoken, "joint_encoder", noisy=1)
    assert kept.cached is not None and made.cached is None
    for copies in (rows * 0, rows * 0 + 1):
        found, expected = made.batch(rows, copies), kept.batch(rows, copies)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("changes", "moved", "stays"),
    [
        ({"tune": "frozen"}, "projector", "decoder"),
        ({"tune": "lora", "lora_targets": ["q_proj"]}, "decoder", "decoder.model.layers.0.mlp"),
        ({"freeze_tower": True}, "decoder", "tower"),
    ],
)
def test_what_is_frozen_stays_and_lora_leaves_plain_weights(
    changes: dict[str, Any], moved: str, stays: str, corpus: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").symlink_to(run / "tokenizer")
    made = recipe(**changes | {"epochs": 1})
    torch.manual_seed(train.stage_seed(made, "joint_encoder"))
    before = started(made, tmp_path, 0)[1].state_dict()
    train.train(made, corpus, tmp_path)
    after = load(tmp_path).state_dict()
    assert set(after) == set(before)
    changed = {n for n in after if (after[n] - before[n]).abs().max() > 2e-3}  # saved as float16
    assert any(n.startswith(moved) for n in changed)
    assert not any(n.startswith(stays) for n in changed)


def test_the_tower_learns_to_spell_and_the_joint_encoder_starts_from_it(
    corpus: Path, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer").symlink_to(run / "tokenizer")
    scores = pretrain.train(recipe(), corpus, tmp_path)
    assert 0 <= scores["character_error_rate"] <= 1.5
    card = json.loads((tmp_path / PRETRAINING / "card.json").read_text("utf-8"))
    assert card["left_out"] == {"silent": ["u00005"], "not spelt": ["u00007"]}
    spelt = load_step_files(tmp_path, PRETRAINING)[1]
    model = started(recipe(), tmp_path, 0)[1]
    name = "tower.model.conv1.weight"
    assert torch.equal(model.state_dict()[name], spelt[name])
    with pytest.raises(BundleCorruptError, match="tower_pretraining"):
        started(recipe(hidden=32), tmp_path, 0)


def test_transcripts_that_no_alignment_can_spell_are_named(corpus: Path) -> None:
    spoken = Utterances.read(corpus, "val")
    letters = pretrain.frequent(spoken.texts, 100)
    whole = pretrain.Spelling.of(spoken, letters, 16_000, 50)
    assert len(whole.places) == len(spoken) and not whole.left_out
    coarse = pretrain.Spelling.of(spoken, letters, 16_000, 10)
    assert not len(coarse.places) and coarse.left_out == spoken.names
    assert pretrain.Spelling.of(spoken, letters, 100, 50).left_out == spoken.names


def test_ctc_reads_and_counts_edits() -> None:
    assert pretrain.collapsed(np.array([0, 3, 3, 0, 3, 2, 2, 0])) == [3, 3, 2]
    assert pretrain.frequent(["Aab", "c"], 2) == "ab"
    for found, truth, count in ((b"kitten", b"sitting", 3), (b"", b"ab", 2), (b"ab", b"ab", 0)):
        assert pretrain.edits(list(found), list(truth)) == count


@pytest.mark.parametrize("seconds", [0.4, 1.03, 3.99, 4.0, 9.0])
def test_where_a_sound_ends_is_read_off_its_spectrum(seconds: float) -> None:
    p = Preprocessing(joint_window_seconds=4.0)
    samples = round(seconds * p.sample_rate)
    wave = torch.randn(1, samples, generator=torch.Generator().manual_seed(0))
    frames = int(sounding(LogMel(p)(wave, torch.tensor([[samples]]))))
    assert 0 <= 2 * frames - min(100 * seconds, 400) <= 3
    assert int(sounding(torch.zeros(1, 80, 400))) == 0


@torch.no_grad()
def test_beyond_its_window_the_joint_encoder_is_deaf() -> None:
    """Of longer sound it hears the middle: the features change there and nowhere else."""
    p = Preprocessing(joint_window_seconds=1.0)
    _, model = small()
    mel, length = LogMel(p), torch.tensor([[48_000]])
    wave = torch.randn(1, 48_000, generator=torch.Generator().manual_seed(0))
    rest = batch()[1][:1], batch()[2][:1], batch()[3][:1]

    def features(changed: slice) -> Tensor:
        other = wave.clone()
        other[:, changed] = 0.5
        made: Tensor = model(mel(other, length), *rest)
        return made

    whole = features(slice(0, 0))
    assert torch.equal(whole, features(slice(0, 16_000)))
    assert torch.equal(whole, features(slice(32_000, 48_000)))
    assert (whole - features(slice(20_000, 24_000))).abs().max() > 1e-3


def test_what_is_seen_moves_together_in_order() -> None:
    values = torch.arange(8.0).view(1, 8, 1).expand(2, -1, -1)
    seen = torch.tensor([[1, 0, 0, 1, 1, 0, 1, 0], [0] * 8]).bool()
    moved, mask = compacted(values, seen)
    assert (
        moved[0, mask[0], 0].tolist() == [0, 3, 4, 6]
        and mask[0].tolist() == [False] * 4 + [True] * 4
    )
    assert not mask[1].any()
    assert averaged(torch.arange(7.0).view(1, 7, 1), 3).flatten().tolist() == [1.0, 4.0]
