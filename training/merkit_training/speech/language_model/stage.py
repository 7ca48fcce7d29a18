"""The stage `language_model`: n-grams of a corpus' sentences over the recogniser's own tokens.

A model of other tokens could not rescore what the recogniser says. With a recogniser in the run
its beam is rescored too: the scales are found on one half of the validation utterances, and what
they save is told of the other half, which had no say in them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from merkit.errors import InvalidInputError
from merkit.speech.decode import Hypothesis, beam
from merkit.speech.edits import character_error_rate, normalised
from merkit.speech.ngram import read_arpa
from merkit.speech.rescore import Rescorer, Scales, tune
from merkit.speech.vocabulary import SPECIAL, Vocabulary
from merkit_training.corpus import read_sentences
from merkit_training.encoders.utterances import Utterances
from merkit_training.recipe import Recipe
from merkit_training.runs import CARD, CONFIG, read_json, write_json
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.language_model.arpa import perplexity, write_arpa
from merkit_training.speech.language_model.config import LanguageModelConfig
from merkit_training.speech.language_model.estimate import estimate
from merkit_training.speech.recognition import train as recognition
from merkit_training.speech.recognition.data import SpokenTexts
from merkit_training.speech.recognition.tokens import learn_vocabulary

STEP, MODEL = "language_model", "model.arpa"


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Estimates and writes the model; returns its perplexity on the validation sentences and,
    with a recogniser, the character error rate of its beam before and after.

    Raises:
        InvalidInputError: no text, or a file of `text` that cannot be read.
    """
    config, folder = recipe.language_model, run / STEP
    heard = (run / recognition.STEP / CARD).exists()
    if heard:
        vocabulary = Vocabulary.load(run / recognition.STEP / TOKENS)
    else:
        texts = _texts(corpus, "train", config.text)
        vocabulary = learn_vocabulary(texts, recipe.recognizer.word_pieces)
    words = [token for token in vocabulary.tokens if token not in SPECIAL]
    counted = tokenised(_texts(corpus, "train", config.text), vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    ngrams = estimate(counted, config.order, words=words, memory=config.memory)
    write_arpa(ngrams, folder / MODEL)
    vocabulary.save(folder / TOKENS)
    scores = perplexity(ngrams, tokenised(_texts(corpus, "val", ()), vocabulary))
    scores["ngrams"] = float(len(ngrams.logs))
    scales = Scales(config.weights[0], config.bonuses[0])
    if heard and config.tune_on:
        scales, rescored = tune_scales(recipe, corpus, run, Rescorer(ngrams, vocabulary))
        scores |= rescored
    write_json(folder / CONFIG, {"order": config.order, **asdict(scales)})
    write_json(folder / CARD, {"scores": scores, "data": "sentences"})
    return scores


def load(run: Path) -> Rescorer:
    """The language model of a run with its scales; BundleError if it has none."""
    table = read_json(run / STEP / CONFIG)
    scales = Scales(float(table["weight"]), float(table["bonus"]))
    vocabulary = Vocabulary.load(run / STEP / TOKENS)
    return Rescorer(read_arpa(run / STEP / MODEL), vocabulary, scales)


def tokenised(texts: Iterable[str], vocabulary: Vocabulary) -> Iterator[list[str]]:
    """Each text's tokens; texts without any are left out."""
    for text in texts:
        if ids := vocabulary.encode(text):
            yield [vocabulary.tokens[i] for i in ids]


def tune_scales(
    recipe: Recipe, corpus: Path, run: Path, rescorer: Rescorer
) -> tuple[Scales, dict[str, float]]:
    """The best scales on every second validation utterance, and `cer_before` and `cer_after` on
    the others."""
    config, p = recipe.language_model, recipe.preprocessing
    torch.set_num_threads(min(recipe.recognizer.threads, torch.get_num_threads()))
    most = round(p.max_audio_seconds * p.sample_rate)
    data = SpokenTexts.of(Utterances.read(corpus, "val", most), rescorer.vocabulary, "val")
    heard = _heard(run, data, config)
    mine, others = heard[::2], heard[1::2] or heard
    scales, _ = tune(rescorer, mine, config.weights, config.bonuses)
    after = Rescorer(rescorer.ngrams, rescorer.vocabulary, scales)
    return scales, {
        "cer_before": _errors(others, rescorer.vocabulary, None),
        "cer_after": _errors(others, rescorer.vocabulary, after),
        "weight": scales.weight,
        "bonus": scales.bonus,
    }


@torch.no_grad()
def _heard(
    run: Path, data: SpokenTexts, config: LanguageModelConfig
) -> list[tuple[str, list[Hypothesis]]]:
    """What was said and the recogniser's beam, of utterances spread evenly over all lengths."""
    recognizer, table, vocabulary = recognition.load(run)
    step = max(1, len(data) // config.tune_on)
    chosen = set(range(0, len(data), step)[: config.tune_on])
    found = []
    for places in data.batches(table.batch_size):
        kept = places[[int(i) in chosen for i in places]]
        if not len(kept):
            continue
        waveform, lengths = data.waves(kept)
        logs, counts = recognizer(waveform, lengths[:, None])[:2]
        for place, row, n in zip(kept, logs.numpy(), counts.numpy(), strict=True):
            hypotheses = beam(
                row, int(n[0]), config.beam, end=vocabulary.end, silent=vocabulary.silent
            )
            found.append((data.texts[int(place)], hypotheses))
    return found


def _errors(
    heard: list[tuple[str, list[Hypothesis]]], vocabulary: Vocabulary, rescorer: Rescorer | None
) -> float:
    pairs = []
    for said, found in heard:
        best = rescorer(found) if rescorer else found
        pairs.append((said, vocabulary.decode(best[0].ids) if best else ""))
    return character_error_rate(pairs)


def _texts(corpus: Path, split: str, files: Iterable[str]) -> Iterator[str]:
    """Sentences of a split, then lines of files, one at a time: files may be large."""
    for row in read_sentences(corpus, split):
        yield normalised(row["text"] or "")
    for file in files:
        try:
            with Path(file).expanduser().open(encoding="utf-8") as lines:
                yield from map(normalised, lines)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(
                f"{file} cannot be read ({error})", "text in UTF-8", "correct `text` in the recipe"
            ) from None
