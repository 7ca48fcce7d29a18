"""The step `transcribe`: from what the recogniser thinks of a sound to the words that are used.

Up to three sounds were recognised: the original and the two voices it was taken apart into. Here
each becomes a transcript (beam, and language model where there is one), the seed's rule picks one
of them (2.4.2), and the caller's own words win over all. A sound that went wrong anywhere costs
its words and a warning, never the clip: picture and sound are still there to judge.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np

from merkit.contract import Contract, Hearing
from merkit.errors import BundleCorruptError, InvalidInputError, MerkitError
from merkit.hearing import Heard, Source
from merkit.speech.decode import Hypothesis, beam
from merkit.speech.ngram import read_arpa
from merkit.speech.punctuate import Punctuator
from merkit.speech.rescore import Rescorer, Scales
from merkit.speech.select import MEASURES, Selection, select_source
from merkit.speech.vocabulary import Vocabulary
from merkit.steps.base import Array, as_text, column, padded, take

TOKENS_FILE, LANGUAGE_FILE, WORDS_FILE = "tokens.json", "language.arpa", "words.json"
PAD_WORD = 0
"""What fills word ids up; counts hide it."""


class Transcribe:
    """`text`, `token_logs`, `token_count`, `quality` -> `transcript`, `hearing`; for a punctuator
    `word_ids`, `word_count` (0 of what it is not to touch); from `waveform`, `sources`, where
    encoders hear it, `cleaned`: the chosen voice, else the sound as it was.

    Resources: `tokens.json`, `language.arpa` where there is a language model, `words.json` where
    there is a punctuator.
    """

    name: ClassVar[str] = "transcribe"

    def __init__(self, contract: Contract, resources: Path | None) -> None:
        folder, step = resources or Path(), contract.step(self.name)
        self.contract, self.hearing = contract, contract.hearing or Hearing()
        self.inputs, self.cleans = step.inputs, "cleaned" in step.outputs
        self.vocabulary = Vocabulary.load(folder / TOKENS_FILE)
        size = contract.tensors["token_logs"].shape[-1]
        if self.hearing.measure not in MEASURES:
            raise BundleCorruptError(
                f"the contract's measure of transcripts is {self.hearing.measure!r}",
                f"one of {', '.join(MEASURES)}",
                "export the bundle again with this version of merkit",
            )
        if len(self.vocabulary) != size:
            raise BundleCorruptError(
                f"{folder / TOKENS_FILE} has {len(self.vocabulary)} tokens",
                f"{size}, as the recogniser",
                "fetch an unchanged copy of the bundle, or export it again",
            )
        self.rescorer = self._rescorer(folder / LANGUAGE_FILE)
        marked = "word_ids" in step.outputs
        self.punctuator = read_punctuator(folder) if marked else None

    def __call__(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """See Step."""
        given = dict(zip(self.inputs, take(tensors, self.contract, *self.inputs), strict=True))
        rows = range(len(given["text"]))
        found = [self._row({name: value[i] for name, value in given.items()}) for i in rows]
        made: dict[str, Array] = {
            "transcript": np.array([[text] for text, _, _ in found], dtype=np.object_),
            "hearing": np.array([[heard.text()] for _, heard, _ in found], dtype=np.object_),
        }
        if self.punctuator is not None:
            spoken = [text if heard.origin == "recognized" else "" for text, heard, _ in found]
            ids = [self.punctuator.word_ids(text) for text in spoken]
            made["word_count"] = column([len(row) for row in ids])
            ids = [row if len(row) else np.array([PAD_WORD], np.int64) for row in ids]
            made["word_ids"] = padded(ids, PAD_WORD)
        if self.cleans:
            made["cleaned"] = np.stack([cleaned for _, _, cleaned in found])
        return made

    def _row(self, row: Mapping[str, Array]) -> tuple[str, Heard, Array]:
        """Of one clip the words, how they came about, and the sound that encoders hear."""
        caller = as_text(row["text"][0])
        told, warnings = _quality(as_text(row["quality"][0]))
        readings = self._readings(row, warnings)
        choice = self._choice(readings, warnings)
        chosen = 0 if choice.source is None else choice.source + 1
        best = readings[chosen]
        text = self.vocabulary.decode(best.ids).strip() if best else ""
        cleaned = self._cleaned(row, choice, warnings) if self.cleans else np.zeros(0, np.float32)
        heard = replace(
            told,
            origin="caller" if caller.strip() else "recognized" if text else "none",
            confidence=round(best.confidence, 4) if best and text and not caller.strip() else None,
            source=get_args(Source)[chosen],
            reason=choice.reason,
            similarities=tuple(round(s, 4) for s in choice.similarities) or None,
            warnings=tuple(warnings),
        )
        return (caller if caller.strip() else text), heard, cleaned

    def _readings(self, row: Mapping[str, Array], warnings: list[str]) -> list[Hypothesis | None]:
        """The best transcript of each sound; None of what was not recognised, or failed."""
        found: list[Hypothesis | None] = []
        end, silent = self.vocabulary.end, self.vocabulary.silent
        for number, count in enumerate(row["token_count"].tolist()):
            name = f"voice {number - 1}" if number else "the sound"
            best = None
            if count > 0:
                logs = row["token_logs"][number, :count]
                try:
                    heard = beam(logs, count, self.hearing.beam, end=end, silent=silent)
                    best = self._ordered(heard)[0] if heard else None
                except InvalidInputError:
                    warnings.append(f"the recogniser failed on {name}, so it was left out")
            found.append(best)
        return found

    def _ordered(self, heard: list[Hypothesis]) -> Sequence[Hypothesis]:
        return self.rescorer(heard) if self.rescorer else heard

    def _choice(self, readings: Sequence[Hypothesis | None], warnings: Sequence[str]) -> Selection:
        """The seed's rule, where the sound was taken apart and all of it could be read."""
        original, *sources = readings
        if not any(sources):
            reason = "no sound was recognised" if original is None else "there is no other sound"
            return Selection(None, (), reason)
        if warnings:
            return Selection(None, (), "a transcript to compare is missing")
        texts = [self.vocabulary.decode(one.ids) if one else "" for one in readings]
        return select_source(
            texts[0], texts[1:], threshold=self.hearing.threshold, measure=self.hearing.measure
        )

    def _cleaned(self, row: Mapping[str, Array], choice: Selection, warnings: list[str]) -> Array:
        """The chosen voice, as long as the waveform with its padding."""
        waveform = row["waveform"]
        if choice.source is None:
            return waveform
        voice = row["sources"][choice.source]
        if not np.isfinite(voice).all() or len(voice) > len(waveform):
            warnings.append("the separated voice cannot be used, so encoders hear the original")
            return waveform
        cleaned = np.zeros_like(waveform)
        cleaned[: len(voice)] = voice
        return cleaned

    def _rescorer(self, path: Path) -> Rescorer | None:
        scales = Scales(self.hearing.language_weight, self.hearing.language_bonus)
        if not path.exists() or scales == Scales(0.0, 0.0):
            return None
        return Rescorer(read_arpa(path), self.vocabulary, scales)


def read_punctuator(folder: Path) -> Punctuator:
    """Tokens and marks of the step `punctuate` out of `words.json`, for who has its scores.

    Raises:
        BundleCorruptError: no such file, or not what it should hold.
    """
    path = folder / WORDS_FILE
    try:
        stated = json.loads(path.read_text("utf-8"))
        tokens, marks = (list(map(str, stated[key])) for key in ("tokens", "marks"))
        return Punctuator(tokens, marks, _not_here)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleCorruptError(
            f"{path} cannot be read ({type(error).__name__})",
            "tokens and marks of the punctuator",
            "fetch an unchanged copy of the bundle, or export it again",
        ) from None


def _not_here(*_: Any) -> Any:
    raise AssertionError("the classifier runs as a step of its own")


def _quality(text: str) -> tuple[Heard, list[str]]:
    """What `listen` says of the sound; nothing where there is none, and a warning where it is
    malformed."""
    if not text:
        return Heard("none"), []
    try:
        stated = json.loads(text)
        facts = {key: stated[key] for key in ("flags", "speech", "level_dbfs")}
        level = None if "empty" in facts["flags"] else round(facts["level_dbfs"], 1)
        facts["level_dbfs"] = level
        return Heard.read(json.dumps(Heard("none").to_json() | facts)), []
    except (ValueError, KeyError, TypeError, MerkitError):
        return Heard("none"), ["what is known of the sound's quality is malformed"]
