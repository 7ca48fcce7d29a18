"""The chain's steps have the contract's tensors, and no row of a batch knows of another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hearing_run import CLEANED, HEARING

from merkit.contract import Preprocessing
from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.pipeline import standard_contract
from merkit.speech.separate import at_level as by_least_squares
from merkit_training.preprocess import Preprocess
from merkit_training.runs import write_json
from merkit_training.speech.hearing import parts
from merkit_training.speech.hearing.config import HearingConfig
from merkit_training.speech.hearing.modules import Punctuate, Recognize, Separate, at_level
from merkit_training.speech.hearing.untrained import write_untrained_chain
from merkit_training.speech.recognition.model import END, IMPOSSIBLE
from merkit_training.stages import builds_on
from merkit_training.steps import load_step


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("hearing")
    torch.manual_seed(0)
    write_json(path / "recipe.json", HEARING.to_json())
    write_untrained_chain(HEARING, path, lambda module: module.eval())
    return path


def waves(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    rows = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, length in zip(rows, lengths, strict=True):
        row[:length] = 0.1 * rng.standard_normal(length)
    return torch.from_numpy(rows), torch.tensor([[n] for n in lengths])


@pytest.mark.parametrize("kind", ["apart", "faint", "upside down", "near", "alike", "one", "none"])
def test_the_closed_form_is_the_least_squares_solution(kind: str) -> None:
    rng = np.random.default_rng(1)
    voices = rng.standard_normal((2, 4000)).astype(np.float32)
    mixture = voices.sum(0)
    made = {
        "apart": voices * np.float32([[0.3], [7.0]]),
        "faint": voices * np.float32([[1e-6], [1.0]]),
        "upside down": -voices,
        "near": np.stack((voices[0], voices[0] + 0.05 * voices[1])),
        "alike": np.stack((voices[0], 2 * voices[0])),
        "one": np.stack((voices[0], 0 * voices[0])),
        "none": 0 * voices,
    }[kind]
    found = at_level(torch.from_numpy(made)[None], torch.from_numpy(mixture)[None])[0].numpy()
    np.testing.assert_allclose(found, by_least_squares(made, mixture), atol=2e-4)


def test_sources_are_at_their_level_and_nothing_is_made_of_nothing(run: Path) -> None:
    separate = load_step(run, "separate")
    assert isinstance(separate, Separate)
    speech, length = waves(8000, 5000, 3000)
    length[1] = 0
    sources = separate(speech, length)
    assert sources.shape == (3, 2, 8000)
    assert sources.isfinite().all() and not sources[1].any() and not sources[2, :, 3000:].any()
    left = speech[0] - sources[0].sum(0)
    assert left.square().sum() <= speech[0].square().sum()
    alone = separate(speech[2:, :3000], length[2:])
    torch.testing.assert_close(alone[0], sources[2, :, :3000], atol=1e-5, rtol=0)
    assert separate(speech[:, :0], 0 * length).shape == (3, 2, 0)


def test_a_source_that_is_no_sound_is_left_out() -> None:
    class Broken(torch.nn.Module):
        def forward(self, speech: torch.Tensor, length: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
            made = torch.stack((speech, speech), dim=1)
            made[:, 1, 7] = torch.nan
            made[:, 1, 8] = torch.inf
            return made

    speech, length = waves(2000)
    assert Separate(Broken())(speech, length).isfinite().all()  # type: ignore[arg-type]


def test_three_sounds_are_recognised_in_one_pass(run: Path) -> None:
    recognize = load_step(run, "recognize")
    assert isinstance(recognize, Recognize)
    speech, length = waves(16_000, 9000, 12_000)
    sources = torch.stack((0.5 * speech, 0.25 * speech), dim=1)
    mixture = torch.where(torch.tensor([[True], [False], [True]]), length, 0)
    logs, count = recognize(speech, length, sources, mixture)
    assert logs.shape[:2] == (3, 3) and count.shape == (3, 3) and count.dtype == torch.int64
    assert (count[:, 0] > 0).all() and not count[1, 1:].any()
    assert (logs[1, 1, :, END] == 0).all() and (logs[1, 1, :, END + 1 :] == IMPOSSIBLE).all()
    alone, counted = recognize(sources[2, 1:, :12_000], length[2:])
    n = int(count[2, 2])
    assert counted.tolist() == [[n]]
    torch.testing.assert_close(alone[0, 0, :n], logs[2, 2, :n], atol=1e-4, rtol=0)
    silent, none = recognize(speech[:, :0], 0 * length, sources[..., :0], 0 * length)
    assert silent.shape[2] == 1 and not none.any() and (silent[..., END] == 0).all()


def test_marks_are_scored_for_words_alone(run: Path) -> None:
    punctuate = load_step(run, "punctuate")
    assert isinstance(punctuate, Punctuate)
    ids, count = torch.arange(14).reshape(2, 7), torch.tensor([[7], [3]])
    scores = punctuate(ids, count)
    assert scores.shape == (2, 7, 6) and not scores[1, 3:].any()
    alone = punctuate(ids[1:, :3], count[1:])
    torch.testing.assert_close(alone[0], scores[1, :3], atol=1e-5, rtol=0)
    assert not punctuate(ids[:, :1], 0 * count).any()


def test_the_contract_states_the_chain_that_the_run_holds(run: Path, tmp_path: Path) -> None:
    chain = parts.chain_of(run)
    assert chain is not None and chain.separated and chain.marks == 6
    assert chain.hearing.language_weight == 0.3
    contract = standard_contract(("a", "b"), dict.fromkeys("atvjV", 4), chain=chain)
    assert contract.tensors["token_logs"].shape == ("batch", 3, "said", chain.tokens)
    names = [path.name for path in parts.copy_resources(run, "transcribe", tmp_path / "t")]
    assert names == ["language.arpa", "tokens.json", "words.json"]


def test_a_run_without_a_recogniser_has_no_chain(tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.json", {})
    assert parts.chain_of(tmp_path) is None
    write_json(tmp_path / "recipe.json", {"hearing": {"audio_hears": "cleaned"}})
    with pytest.raises(InvalidInputError, match="holds no recognizer"):
        parts.chain_of(tmp_path)
    with pytest.raises(InvalidInputError, match=r"\[recognizer\] has neither epochs"):
        parts.check_asked(replace(CLEANED, recognizer=replace(HEARING.recognizer, epochs=0)))
    parts.check_asked(CLEANED)


def test_a_language_model_of_other_tokens_is_refused(run: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "recipe.json", HEARING.to_json())
    recipe = replace(HEARING, recognizer=replace(HEARING.recognizer, word_pieces=5))
    write_untrained_chain(recipe, tmp_path, lambda module: module)
    (tmp_path / "language_model" / "tokens.json").write_bytes(
        (run / "recognizer" / "tokens.json").read_bytes()
    )
    with pytest.raises(BundleCorruptError, match="tokens of its own"):
        parts.chain_of(tmp_path)


def test_features_of_cleaned_sound_build_on_the_chain() -> None:
    assert "separator" in builds_on(CLEANED, "features")
    assert "separator" not in builds_on(HEARING, "features")


@pytest.mark.parametrize("hears", ["audio_hears", "joint_hears"])
def test_an_encoder_hears_what_the_recipe_says(hears: str) -> None:
    config = HearingConfig(**{hears: "cleaned"})  # type: ignore[arg-type]
    preprocess = Preprocess(Preprocessing(), config.audio_hears, config.joint_hears)
    waveform, length = waves(16_000)
    faces = torch.zeros(1, 0, 64, 64, 3, dtype=torch.uint8)
    rest = (faces, 0 * length, waveform, length, 0 * length)
    quiet = torch.zeros_like(waveform)
    _, values, _, mel, presence = preprocess(*rest, quiet)
    _, plain, _, plain_mel, _ = preprocess(*rest)
    assert bool(values.any()) == (hears == "joint_hears")
    assert torch.equal(mel, plain_mel) == (hears == "audio_hears")
    assert torch.equal(values, plain) == (hears == "joint_hears")
    assert presence[0, 1]  # whether there is sound, the original decides
