"""A hearing study measures what it states, skips what is done, and says what its figures say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from merkit.errors import InvalidInputError
from merkit.speech.snr import estimated_snr
from merkit_training.runs import read_json, write_json
from merkit_training.speech.hearing.cells import Hearing, chain_name, run_hearing, slug
from merkit_training.speech.hearing.chain import chosen, pass_through
from merkit_training.speech.hearing.conditions import Condition, conditions_of, under
from merkit_training.speech.hearing.measure import chosen_clips, recognition, sound
from merkit_training.speech.hearing.page import hearing_page
from merkit_training.speech.hearing.plan import TESTS, HearingStudy, read_hearing
from merkit_training.speech.hearing.skipping import correlation, spared
from merkit_training.speech.hearing.tools import Tools
from merkit_training.speech.noise.levels import Wave, active_power, power
from merkit_training.speech.noise.listen import Heard
from merkit_training.studies.inputs import Inputs

STUDY = Path(__file__).parents[2] / "training" / "studies" / "hearing.toml"
WORDS = ("one", "two", "three", "four")
SEEDS = (0, 1, 2)


def tone(index: int) -> Wave:
    return (0.3 * np.sin(np.arange(4000) * (0.05 + 0.05 * index))).astype(np.float32)


def clips() -> Inputs:
    """Four clips whose sound is a tone of their own; their labels are 0, 1, 2, 3."""
    arrays = {
        "crops": np.zeros((4, 4, 8, 8, 3), np.uint8),
        "face_count": np.array([[1]] * 4),
        "waveform": np.stack([np.pad(tone(i), (0, 96)) for i in range(4)]),
        "waveform_length": np.full((4, 1), 4000),
    }
    return Inputs(arrays, ("a", "b", "c", "d"), WORDS, ("p",) * 4, np.arange(4))


def number_of(wave: Wave) -> int:
    """Which of the tones is the loudest in a sound."""
    return int(np.argmax([abs(float(wave @ tone(i))) for i in range(4)]))


def noisiness(wave: Wave) -> float:
    clean = tone(number_of(wave))
    rest = wave - clean * (wave @ clean) / (clean @ clean)
    return power(rest) / max(power(wave), 1e-12)


# conditions


def test_levels_of_a_curve_differ_in_nothing_but_the_level() -> None:
    mixed = {
        snr: sound(clips(), 0, Condition("ambient", snr)) - tone(0) * 0 for snr in (20.0, 10.0)
    }
    quiet, loud = (mixed[snr] - tone(0) for snr in (20.0, 10.0))
    assert np.allclose(loud, quiet * 10**0.5, atol=1e-4)
    assert 10 * np.log10(active_power(tone(0)) / power(quiet)) == pytest.approx(20, abs=0.1)
    again = sound(clips(), 0, Condition("ambient", 20.0))
    assert np.array_equal(again, mixed[20.0])


def test_babble_is_of_other_clips_and_clean_is_clean() -> None:
    asked: Counter[int] = Counter()

    def other(number: int) -> Wave:
        asked[number] += 1
        return tone(number + 1)

    mixed = under(Condition("babble", 0.0), tone(0), "a", other, 3)
    assert sum(asked.values()) == 4 and set(asked) <= {0, 1, 2}
    assert not np.array_equal(mixed, tone(0))
    assert under(Condition("babble", 0.0), tone(0), "a", other, 0) is not None
    clean = tone(0)
    assert under(Condition(), clean, "a", other, 3) is clean
    assert len(under(Condition("ambient", 0.0), clean[:0], "a", other, 3)) == 0


def test_conditions_are_clean_and_both_kinds_at_each_level() -> None:
    keys = [c.key for c in conditions_of((20.0, 0.0))]
    assert keys == ["clean", "ambient:20", "ambient:0", "babble:20", "babble:0"]


# chain and measurement


def listen(waves: Sequence[Wave]) -> list[Heard]:
    """Hears which tone it is, unless there is too much else in the sound."""
    return [Heard(WORDS[number_of(w)] if noisiness(w) < 0.4 else "?", 0.9, 2) for w in waves]


def split_off_noise(wave: Wave) -> NDArray[np.float32]:
    clean = tone(number_of(wave))
    voice = (clean * (wave @ clean) / (clean @ clean)).astype(np.float32)
    return np.stack([wave - voice, voice])


def test_the_chain_hears_three_sounds_and_the_rule_takes_one() -> None:
    passage = pass_through(tone(2), listen, lambda w: np.stack([0 * w, w]))
    assert passage.texts == ("three", "one", "three") or passage.texts[2] == "three"
    assert chosen(("three", "x", "three"), 0.1) == 2
    assert chosen(("three", "three", "x"), 0.1) == 1
    assert chosen(("three", "three", "three"), 0.1) == 0
    assert chosen(("three", "x", "three"), 1.0) == 0


def test_errors_are_counted_over_all_characters() -> None:
    found = recognition(listen, clips(), (30.0,), 0)
    assert found["clean"] == {"errors": 0, "length": len("".join(WORDS))}

    def deaf(waves: Sequence[Wave]) -> list[Heard]:
        return [Heard("one", 0.9, 1) for _ in waves]

    assert recognition(deaf, clips(), (), 2)["clean"] == {"errors": 3, "length": 7}  # one, four


def test_clips_are_spread_over_the_split() -> None:
    assert chosen_clips(clips(), 2) == [0, 3]
    assert chosen_clips(clips(), 0) == chosen_clips(clips(), 9) == [0, 1, 2, 3]


# the study


@pytest.fixture
def study() -> HearingStudy:
    return replace(read_hearing(STUDY), snrs=(10.0,), clips=0, emotion_clips=0)


class Fake:
    """Tools whose recognisers fail in noise unless they were trained with it."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, str]] = []
        self.killed_at = ""

    def train(self, _recipe: object, _corpus: Path, run: Path, stage: str) -> dict[str, float]:
        if run.name == self.killed_at:
            raise KeyboardInterrupt
        self.trained.append((f"{run.parent.name}/{run.name}", stage))
        write_json(run / stage / "card.json", {"of": run.name})
        scores = {"separator": {"si_sdri": 3.25, "si_sdri_noise": 4.5, "si_sdr": 1.0}}
        return {**scores, "punctuator": {"f1": 0.5, "f1_comma": 0.25}}.get(stage, {"cer": 0.5})

    def self_train(self, _recipe: object, _corpus: Path, run: Path) -> dict[str, float]:
        self.trained.append((f"{run.parent.name}/{run.name}", "self-training"))
        started = read_json(run / "round-0" / "recognizer" / "card.json")
        assert started == {"of": "augmentation"}, "the row that differs in nothing else"
        return {"round 0": 0.5}

    def listen(self, run: Path, language: Path | None, beam: int) -> object:
        assert beam == (16 if language else 5)
        limit = 0.005 if run.name == "base" else 0.4

        def hear(waves: Sequence[Wave]) -> list[Heard]:
            found = [WORDS[number_of(w)] if noisiness(w) < limit else "zzzzz" for w in waves]
            return [Heard(text, 0.9, 2) for text in found]

        return hear

    def judge(self, _model: Path) -> object:
        return lambda _crops, _wave, text: WORDS.index(text) if text in WORDS else 5

    def tools(self) -> Tools:
        return Tools(
            self.train, self.self_train, self.listen, lambda _: split_off_noise,  # type: ignore[arg-type]
            lambda _: lambda text: text, self.judge, lambda *_: clips(),  # type: ignore[arg-type]
        )  # fmt: skip


def test_a_study_is_measured_once_resumes_and_becomes_a_page(
    study: HearingStudy, tmp_path: Path
) -> None:
    fake, model = Fake(), tmp_path / "model"
    write_json(model / "bundle.json", {"name": "one"})
    hearing = Hearing(study, tmp_path / "corpus", tmp_path / "out", model, fake.tools())
    fake.killed_at = "8-khz"
    with pytest.raises(KeyboardInterrupt):
        run_hearing(hearing, SEEDS, 1)
    assert ("seed-0/16-khz", "separator") in fake.trained
    partial = hearing_page(hearing, (0,), 6)
    assert "+ language model" in partial and "Not yet measured: 8 kHz;" in partial
    fake.killed_at = ""
    run_hearing(hearing, SEEDS, 1)
    done = Counter(fake.trained)
    assert set(done.values()) == {1}, "nothing is trained twice"
    assert len(done) == 3 * 7
    assert done[("seed-2/self-training", "language_model")] == 1, "where its recogniser is"
    run_hearing(hearing, SEEDS, 1)
    assert len(fake.trained) == len(done)

    page = hearing_page(hearing, SEEDS, 6)
    assert "| base | 0.0 ± 0.0 |" in page
    assert "+ augmentation, against base: better under every seed in" in page
    assert "+ self-training, against + augmentation: the seeds do not agree" in page
    assert "| 16 kHz | 3.2 ± 0.0 | 4.5 ± 0.0 |" in page
    assert "| f1_comma | 0.2 ± 0.0 |" in page
    assert page.count("chain, 8 kHz") == 3 and "Not yet measured" not in page
    assert "| 8 kHz | 0.3 |" in page
    fewer = hearing_page(replace(hearing, study=replace(study, thresholds=(0.1,))), SEEDS, 6)
    assert "| 8 kHz | 0.3 |" not in fewer, "thresholds need no new measurement"
    assert page.count("| 16 kHz, from ") == 5 and "| from 35 dB |" in page
    other = hearing_page(replace(hearing, study=replace(study, clean_from=(-5.0,))), SEEDS, 6)
    assert "| 8 kHz, from -5 dB |" in other and "Not yet measured" not in other


def test_another_model_or_study_is_measured_anew(study: HearingStudy, tmp_path: Path) -> None:
    fake, model = Fake(), tmp_path / "model"
    write_json(model / "bundle.json", {"name": "one"})
    hearing = Hearing(study, tmp_path / "corpus", tmp_path / "out", model, fake.tools())
    run_hearing(hearing, (0,), 1)
    name = "chain/16-khz-test_multi-clean"
    assert hearing.measured(name, 0) and hearing.measured("base", 0)
    write_json(model / "bundle.json", {"name": "two"})
    assert hearing.measured(name, 0) is None
    assert hearing.measured("base", 0), "a recogniser does not depend on the emotion model"
    other = replace(hearing, study=replace(study, clips=2))
    assert other.measured("base", 0) is None


def test_pages_of_nothing_name_what_is_missing(study: HearingStudy, tmp_path: Path) -> None:
    page = hearing_page(Hearing(study, tmp_path, tmp_path / "out"), (0,), 6)
    assert "Not yet measured: base; + augmentation" in page and "| base" not in page


# skipping separation


def cell(given: list[list[int]], texts: list[tuple[str, str, str]]) -> dict[str, Any]:
    return {"truth": [0, 1, 2, 3], "given": [0] * 4, "heard": given, "texts": texts}


def test_clean_sound_is_answered_for_as_it_was() -> None:
    """Each clip's first class is the original's; the rule takes the second source of all."""
    found = cell([[n, 4, n + 1] for n in range(4)], [("one", "x", "one")] * 4)
    levels = [None, 9.9, 10.0, 40.0]
    assert spared(found, levels, float("inf")) == [1, 2, 3, 4]
    assert spared(found, levels, 10.0) == [1, 2, 2, 3]
    assert spared(found, levels, -20.0) == [1, 1, 2, 3], "too little sound to tell is separated"


def test_estimates_are_of_the_chains_sounds_and_not_of_a_seed(
    study: HearingStudy, tmp_path: Path
) -> None:
    fake, model = Fake(), tmp_path / "model"
    write_json(model / "bundle.json", {"name": "one"})
    hearing = Hearing(study, tmp_path / "corpus", tmp_path / "out", model, fake.tools())
    run_hearing(hearing, (0,), 1)
    files = sorted(p.name for p in (tmp_path / "out" / study.name / "clean").iterdir())
    assert len(files) == 9 and files[0] == "test_multi-ambient-10.json"
    noisy, clean = (hearing.estimated("test_semi", key) for key in ("ambient:10", "clean"))
    assert noisy is not None and clean is not None and len(noisy) == len(clean) == 4
    assert noisy == [
        round(estimated_snr(sound(clips(), i, Condition("ambient", 10.0))) or 0, 3)
        for i in range(4)
    ]
    written = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/*/clean/*")}
    run_hearing(hearing, (1,), 1)
    assert written == {p: p.stat().st_mtime_ns for p in written}
    fewer = replace(hearing, study=replace(study, emotion_clips=2))
    assert fewer.estimated("test_semi", "clean") is None
    labelled = hearing_page(hearing, (0,), 6)
    assert "## Skipping separation" in labelled


def test_the_page_says_what_skipping_changes(study: HearingStudy, tmp_path: Path) -> None:
    """A chain that is always right by its second source, and an estimate that knows the noise."""
    model = tmp_path / "model"
    write_json(model / "bundle.json", {"name": "one"})
    only = replace(study, separators=study.separators[:1], clean_from=(15.0, 30.0))
    hearing = Hearing(only, tmp_path / "corpus", tmp_path / "out", model, Fake().tools())
    levels = {"clean": [31.0, 31.0, 31.0, None], "ambient:10": [9.0] * 4, "babble:10": [20.0] * 4}
    right = [[n if key == "clean" else 5, 4, n] for key in ("", "clean") for n in range(4)]
    for split in TESTS:
        for key, told in levels.items():
            hearing.estimate(split, key, lambda told=told: told)  # type: ignore[misc]
            given = right[4:] if key == "clean" else right[:4]
            for seed in SEEDS:
                made = cell(given, [("one", "x", "one")] * 4)
                hearing.measure(
                    chain_name(only.separators[0], split, key), seed, lambda made=made: made  # type: ignore[misc]
                )  # fmt: skip
    page = hearing_page(hearing, SEEDS, 6)
    assert "| from 15 dB | 75 | 0 | 100 |" in page
    assert "| from 30 dB | 75 | 0 | 0 |" in page
    perfect, wrong = "100.0 ± 0.0", "0.0 ± 0.0"
    assert f"| 16 kHz, never | {perfect} | {perfect} | {perfect} | {perfect} |  |" in page
    assert f"| 16 kHz, from 15 dB | {perfect} | {perfect} | {wrong} |" in page
    assert "| -33.3 ± 0.0 worse |" in page
    assert f"| 16 kHz, from 30 dB | {perfect} | {perfect} | {perfect} | {perfect} |  |" in page
    assert "| ambient | 31.0 ± 0.0 | 9.0 ± 0.0 | 1.00 |" in page


def test_ranks_are_correlated_as_scipy_does_it() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 5, 60), rng.integers(0, 9, 60).astype(float)
    second += first
    assert correlation(first, second) == pytest.approx(stats.spearmanr(first, second)[0])
    assert np.isnan(correlation(first, np.ones(60)))


def test_names_become_folders() -> None:
    assert [slug(n) for n in ("+ language model", "16 kHz", "..")] == [
        "language-model", "16-khz", "row",
    ]  # fmt: skip


def test_the_projects_study_reads_and_its_rows_differ() -> None:
    study = read_hearing(STUDY)
    recipes = {row.name: study.recipe_of(row, 1) for row in study.recognizers}
    assert recipes["base"].recognizer.augment == ""
    assert recipes["+ language model"].recognizer == recipes["+ self-training"].recognizer
    assert recipes["+ language model"].language_model.order == 3
    assert {r.run.seed for r in recipes.values()} == {1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (('like = "+ self-training"', 'like = "nobody"'), "like 'nobody'"),
        (('chain = "+ language model"', 'chain = "nobody"'), "the chain 'nobody'"),
        (('split = "test_multi"', 'split = "train"'), "the split 'train'"),
        (('name = "8 kHz"', 'name = "16 kHz"'), "rows "),
        (("sample_rate = 8000", "sample_rate = 44100"), "44100"),
        (("self_training = true", "self_training = 1"), "self_training"),
        (("clips = 300", 'clips = "all"'), "clips"),
        (("clean_from = [10,", "clean_from = [100,"), "clean_from"),
        (("[tables.recognizer]", "[tables.recogniser]"), "recogniser"),
    ],
)
def test_wrong_studies_are_refused(tmp_path: Path, change: tuple[str, str], told: str) -> None:
    text = STUDY.read_text("utf-8").replace(*change)
    text = text.replace("recipe.toml", str(STUDY.parent / "recipe.toml"))
    (tmp_path / "wrong.toml").write_text(text, "utf-8")
    with pytest.raises(InvalidInputError, match=told):
        read_hearing(tmp_path / "wrong.toml")
