"""Self-training (seed 2.4.1): sound without text teaches, where the recogniser is sure of it.

Each round transcribes the whole pool with the best recogniser so far, adopts the transcripts whose
mean token probability by beam search reaches a threshold, and trains anew on the labelled speech
and these. A recogniser trained on its own mistakes gets worse, so a round counts only if speech of
known text is understood better, and the first that does not is the last.

    DIR/round-<n>.json  what was adopted, the score      DIR/round-<n>.heard.jsonl  all transcripts
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from merkit.errors import InvalidInputError
from merkit.speech.edits import character_error_rate
from merkit_training.runs import read_json, write_json
from merkit_training.speech.noise.config import SelfTrainingConfig
from merkit_training.speech.noise.listen import Heard

Learn = Callable[[Mapping[str, str], int], float]
"""Trains round n on the labelled speech and these texts by name of sound; the validation score,
larger is better. Round 0 adopts nothing."""
Transcribe = Callable[[int, Sequence[str]], Iterator[Heard]]
"""What round n's recogniser hears in the sounds of these names, one after the other."""


@dataclass(frozen=True)
class Outcome:
    """How self-training went."""

    best: int  # round whose recogniser is to be used
    scores: tuple[float, ...]  # of each round on validation
    adopted: tuple[int, ...]  # transcripts that each round trained on
    reason: str  # why there is no further round


def self_train(
    names: Sequence[str],
    learn: Learn,
    transcribe: Transcribe,
    config: SelfTrainingConfig,
    folder: Path,
    *,
    mark: str = "",
    truth: Mapping[str, str] | None = None,
) -> Outcome:
    """Rounds of transcribing and training until there is no gain; goes on where it was killed.

    Args:
        names: of the sounds without text, all different.
        learn, transcribe: the recogniser.
        config: threshold and end.
        folder: of the journal.
        mark: tells which data and recipe the journal is about.
        truth: texts by name where they are known, as of synthetic speech: for the journal alone.

    Raises:
        InvalidInputError: no sound, two of one name, or a journal of something else.
    """
    if not names or len(set(names)) < len(names):
        raise InvalidInputError(
            f"{len(names)} sounds with {len(set(names))} names", "some, each with its own name"
        )
    mark = json.dumps([mark, len(names), asdict(config)], sort_keys=True)
    rounds: list[dict[str, Any]] = []
    reason = f"{config.rounds} rounds are the most that were asked for"
    for number in range(config.rounds + 1):
        record = _recorded(folder, number, mark)
        if record is None:
            adopted: dict[str, str] = {}
            facts: dict[str, Any] = {}
            if number:
                heard = _heard(folder, number, names, transcribe)
                adopted = adopt(heard, config)
                facts = _facts(heard, adopted, truth or {})
                if not adopted:
                    reason = f"no transcript reached a confidence of {config.confidence:g}"
                    break
                if adopted == rounds[-1]["adopted"]:
                    reason = "the same transcripts were adopted again"
                    break
            score = learn(adopted, number)
            record = {"mark": mark, "round": number, "score": score, **facts, "adopted": adopted}
            write_json(_path(folder, number), record)
        rounds.append(record)
        if number and record["score"] < rounds[-2]["score"] + config.gain:
            reason = f"round {number} gained less than {config.gain:g}"
            break
    scores = tuple(float(r["score"]) for r in rounds)
    # every round but the last gained over the one before
    last = len(rounds) - 1
    best = last if last == 0 or scores[-1] >= scores[-2] + config.gain else last - 1
    return Outcome(best, scores, tuple(len(r["adopted"]) for r in rounds), reason)


def adopt(heard: Mapping[str, Heard], config: SelfTrainingConfig) -> dict[str, str]:
    """The transcripts to learn from, by name: sure enough, and long enough to say so."""
    return {
        name: h.text
        for name, h in heard.items()
        if h.confidence >= config.confidence and h.tokens >= config.least_tokens and h.text.strip()
    }


def _heard(
    folder: Path, number: int, names: Sequence[str], transcribe: Transcribe
) -> dict[str, Heard]:
    """What the round before hears in all sounds; each is written down as soon as it is heard."""
    path = folder / f"round-{number}.heard.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    found = _read_heard(path)
    left = [name for name in names if name not in found]
    if left:
        with path.open("a", encoding="utf-8") as file:
            for name, h in zip(left, transcribe(number - 1, left), strict=True):
                found[name] = h
                told = {"name": name, "text": h.text, "confidence": h.confidence, "n": h.tokens}
                file.write(json.dumps(told, ensure_ascii=False) + "\n")
                file.flush()
    return {name: found[name] for name in names}


def _read_heard(path: Path) -> dict[str, Heard]:
    """What was written before a kill; the line that it cut is removed from the file."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with path.open("r+b") as file:
            file.truncate(len(whole))
    lines = [json.loads(line) for line in whole.decode("utf-8").split("\n") if line]
    return {v["name"]: Heard(v["text"], float(v["confidence"]), int(v["n"])) for v in lines}


def _facts(
    heard: Mapping[str, Heard], adopted: Mapping[str, str], truth: Mapping[str, str]
) -> dict[str, Any]:
    """How much was heard and adopted, and how wrong it is where that is known."""
    facts: dict[str, Any] = {"sounds": len(heard), "count": len(adopted)}
    known = [name for name in heard if name in truth]
    if known:
        facts["cer_all"] = character_error_rate((truth[n], heard[n].text) for n in known)
        sure = [n for n in known if n in adopted]
        facts["cer_adopted"] = character_error_rate((truth[n], adopted[n]) for n in sure)
    return facts


def _path(folder: Path, number: int) -> Path:
    return folder / f"round-{number}.json"


def _recorded(folder: Path, number: int, mark: str) -> dict[str, Any] | None:
    path = _path(folder, number)
    if not path.exists():
        return None
    record = read_json(path)
    if record.get("mark") != mark:
        raise InvalidInputError(
            f"{path} is of other sounds, another recipe or another threshold",
            "a folder begun with these, or a new one",
            "choose another --out",
        )
    return record
