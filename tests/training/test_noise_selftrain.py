"""Self-training adopts exactly what is sure, stops exactly where nothing is gained, and resumes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_corpus import write_tiny_corpus

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit_training.data.records import ClipRecord
from merkit_training.encoders.utterances import Utterances
from merkit_training.recipe import recipe_from
from merkit_training.speech.noise import rounds
from merkit_training.speech.noise.config import SelfTrainingConfig
from merkit_training.speech.noise.listen import Heard, in_batches
from merkit_training.speech.noise.pool import Pool, round_corpus
from merkit_training.speech.noise.selftrain import Outcome, self_train

NAMES = ("a", "b", "c", "d", "e")
CONFIG = SelfTrainingConfig(confidence=0.8, least_tokens=2, rounds=6, gain=0.01)


class Recogniser:
    """A recogniser whose confidences and scores are told, and which can be killed."""

    def __init__(
        self, sure: Sequence[Sequence[float]], scores: Sequence[float], tokens: int = 3
    ) -> None:
        self.sure, self.scores, self.tokens = sure, scores, tokens
        self.learnt: list[tuple[int, dict[str, str]]] = []
        self.asked: list[tuple[int, str]] = []
        self.dies_after = 10**9

    def learn(self, adopted: Mapping[str, str], number: int) -> float:
        self.learnt.append((number, dict(adopted)))
        return self.scores[number]

    def transcribe(self, number: int, names: Sequence[str]) -> Iterator[Heard]:
        for name in names:
            if len(self.asked) >= self.dies_after:
                raise KeyboardInterrupt
            self.asked.append((number, name))
            confidence = self.sure[number][NAMES.index(name)]
            yield Heard(f"{name} by {number}", confidence, self.tokens)

    def run(self, folder: Path, config: SelfTrainingConfig = CONFIG, mark: str = "") -> Outcome:
        return self_train(NAMES, self.learn, self.transcribe, config, folder, mark=mark)


def test_adopts_exactly_the_sure_ones_and_stops_where_nothing_is_gained(tmp_path: Path) -> None:
    fake = Recogniser(
        [(0.9, 0.8, 0.79, 0.1, 0.0), (0.9, 0.9, 0.9, 0.9, 0.0)], [0.5, 0.6, 0.605, 0.9]
    )
    outcome = fake.run(tmp_path)
    assert fake.learnt == [
        (0, {}),
        (1, {"a": "a by 0", "b": "b by 0"}),
        (2, {n: f"{n} by 1" for n in "abcd"}),
    ]
    assert outcome == Outcome(1, (0.5, 0.6, 0.605), (0, 2, 4), "round 2 gained less than 0.01")


def test_ends_when_nobody_is_sure_or_the_same_is_adopted_again(tmp_path: Path) -> None:
    unsure = Recogniser([(0.1,) * 5], [0.5]).run(tmp_path / "unsure")
    assert unsure == Outcome(0, (0.5,), (0,), "no transcript reached a confidence of 0.8")

    class Settled(Recogniser):
        def transcribe(self, number: int, names: Sequence[str]) -> Iterator[Heard]:
            return (Heard("the same", 0.9 + 0 * number, 2) for _ in names)

    settled = Settled([], [0.5, 0.6]).run(tmp_path / "settled")
    assert settled.best == 1 and settled.reason == "the same transcripts were adopted again"


def test_the_last_round_counts_if_it_gained(tmp_path: Path) -> None:
    sure = [(0.9, 0, 0, 0, 0), (0.9, 0.9, 0, 0, 0)]
    outcome = Recogniser(sure, [0.1, 0.2, 0.3]).run(tmp_path, replace(CONFIG, rounds=2))
    assert outcome.best == 2 and "2 rounds are the most" in outcome.reason


def test_single_tokens_and_empty_texts_are_not_adopted(tmp_path: Path) -> None:
    assert Recogniser([(1.0,) * 5], [0.5], tokens=1).run(tmp_path).adopted == (0,)


def test_a_kill_loses_no_transcript_and_changes_no_outcome(tmp_path: Path) -> None:
    def fresh() -> Recogniser:
        return Recogniser([(0.9, 0.9, 0, 0, 0), (0.9, 0.9, 0.9, 0, 0)], [0.5, 0.6, 0.5])

    undisturbed = fresh().run(tmp_path / "whole")
    killed = fresh()
    killed.dies_after = 7  # two into the second round
    with pytest.raises(KeyboardInterrupt):
        killed.run(tmp_path / "cut")
    with (tmp_path / "cut" / "round-2.heard.jsonl").open("a") as file:
        file.write('{"name": "c", "te')  # the line that a kill cut
    again = fresh()
    assert again.run(tmp_path / "cut") == undisturbed
    assert again.asked == [(1, "c"), (1, "d"), (1, "e")]
    assert [number for number, _ in again.learnt] == [2]
    finished = fresh()
    assert finished.run(tmp_path / "cut") == undisturbed
    assert finished.asked == finished.learnt == []


def test_a_journal_of_something_else_is_refused(tmp_path: Path) -> None:
    Recogniser([(0.1,) * 5], [0.5]).run(tmp_path, mark="one")
    with pytest.raises(InvalidInputError, match="another recipe"):
        Recogniser([(0.1,) * 5], [0.5]).run(tmp_path, mark="two")
    with pytest.raises(InvalidInputError, match="0 sounds"):
        self_train((), lambda *_: 0, lambda *_: iter(()), CONFIG, tmp_path / "none")


def test_the_journal_tells_how_wrong_the_adopted_are_where_that_is_known(tmp_path: Path) -> None:
    fake = Recogniser([(0.9, 0.9, 0, 0, 0)], [0.5, 0.4])
    truth = {"a": "a by 0", "b": "a by 0", "c": "xxxxxx"}
    self_train(NAMES, fake.learn, fake.transcribe, CONFIG, tmp_path, truth=truth)
    record = json.loads((tmp_path / "round-1.json").read_text())
    assert record["count"] == 2 and record["sounds"] == 5
    assert record["cer_adopted"] == pytest.approx(1 / 12)
    assert record["cer_all"] > record["cer_adopted"]


def test_batches_keep_the_order() -> None:
    sizes: list[int] = []

    def listen(waves: Sequence[np.ndarray]) -> list[Heard]:
        sizes.append(len(waves))
        return [Heard(str(len(w)), 1.0, 1) for w in waves]

    waves = (np.zeros(i, np.float32) for i in range(5))
    assert [h.text for h in in_batches(listen, waves, 2)] == ["0", "1", "2", "3", "4"]
    assert sizes == [2, 2, 1]


class _Sounds(Pool):
    def wave(self, name: str) -> np.ndarray:
        return np.full(4000 if name == "new" else 0, 0.5, np.float32)


@pytest.fixture
def pool() -> Pool:
    records = {name: ClipRecord(name) for name in ("new", "damaged")}
    return _Sounds(records, {}, replace(Preprocessing(), max_audio_seconds=1.5))


def test_a_rounds_corpus_has_the_adopted_in_training_and_the_same_validation(
    tmp_path: Path, pool: Pool
) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus", 6, 3)
    place = round_corpus(corpus, pool, {"new": "你好 there"}, tmp_path / "round")
    for split, more in (("train", 1), ("val", 0)):
        before, after = (Utterances.read(root, split) for root in (corpus, place))
        assert len(after) == len(before) + more
        assert after.texts[: len(before)] == before.texts
        for i in range(len(before)):
            assert np.array_equal(before.wave(i), after.wave(i))
    train = Utterances.read(place, "train")
    assert train.texts[-1] == "你好 there" and len(train.wave(len(train) - 1)) == 4000
    assert train.wave(len(train) - 1)[0] == pytest.approx(0.5, abs=1e-3)


def test_rounds_train_the_stage_and_publish_the_best(
    tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, out = write_tiny_corpus(tmp_path / "corpus", 6, 3), tmp_path / "out"
    scores, seen = iter([0.5, 0.7, 0.6]), []

    def stage(_recipe: object, corpus: Path, run: Path) -> dict[str, float]:
        seen.append(len(Utterances.read(corpus, "train")))
        (run / "recognizer").mkdir(parents=True, exist_ok=True)
        (run / "recognizer" / "weights").write_text(run.name)
        return {"accuracy": next(scores)}

    def listener(run: Path, _width: int) -> object:
        return lambda waves: [Heard(f"by {run.name}", 0.9 if len(w) else 0.0, 2) for w in waves]

    monkeypatch.setattr(rounds, "stage_function", lambda _: stage)
    monkeypatch.setattr(rounds, "listener", listener)
    monkeypatch.setattr(Pool, "of_corpus", staticmethod(lambda *_: pool))
    recipe = recipe_from({"recognizer": {"epochs": 1}})
    outcome = rounds.train_in_rounds(recipe, corpus, out)
    assert outcome.best == 1 and outcome.adopted == (0, 1, 1) and seen == [6, 7, 7]
    assert (out / "recognizer" / "weights").read_text() == "round-1"
    assert not list(out.glob("*/corpus")), "sounds of a finished round are not kept"
    assert rounds.train_in_rounds(recipe, corpus, out) == outcome
    with pytest.raises(InvalidInputError, match="trains no recogniser"):
        rounds.train_in_rounds(recipe_from({}), corpus, out)
