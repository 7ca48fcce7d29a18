"""Language models as ARPA files, which every decoder reads, and how well one predicts a text."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from merkit.errors import InvalidInputError
from merkit.speech.ngram import TEN, Gram, Ngrams

IMPOSSIBLE = -99.0  # to base 10, as the format has it


def write_arpa(ngrams: Ngrams, path: Path) -> None:
    """Writes a model through a temporary name; n-grams in order, seven digits of each logarithm."""
    orders: list[list[Gram]] = [[] for _ in range(ngrams.order)]
    for gram in ngrams.logs:
        orders[len(gram) - 1].append(gram)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(grams)}\n" for n, grams in enumerate(orders, 1))
        for n, grams in enumerate(orders, 1):
            file.write(f"\n\\{n}-grams:\n")
            file.writelines(_line(ngrams, gram) for gram in sorted(grams))
        file.write("\n\\end\\\n")
    temporary.replace(path)


def perplexity(ngrams: Ngrams, sentences: Iterable[Sequence[str]]) -> dict[str, float]:
    """How well a model predicts a text.

    Returns:
        `perplexity` over all words and ends of sentences, unknown words counted as `<unk>`;
        `perplexity_known` over the known ones; `unknown`, the share of unknown words.

    Raises:
        InvalidInputError: no sentence, or words that a model without `<unk>` does not know.
    """
    known, all_logs, words = set(ngrams.words), [], 0
    known_logs = []
    for sentence in sentences:
        for word, log in zip((*sentence, None), ngrams.each(sentence), strict=True):
            words += word is not None
            all_logs.append(log)
            if word is None or word in known:
                known_logs.append(log)
    if not all_logs or -math.inf in all_logs:
        raise InvalidInputError(
            "the text has no sentence, or the model gives some word no probability",
            "text, a sentence a line, and a model with <unk>",
        )
    unknown = len(all_logs) - len(known_logs)
    return {
        "perplexity": math.exp(-sum(all_logs) / len(all_logs)),
        "perplexity_known": math.exp(-sum(known_logs) / len(known_logs)),
        "unknown": unknown / max(words, 1),
    }


def _line(ngrams: Ngrams, gram: Gram) -> str:
    backoff = f"\t{_ten(ngrams.backoffs[gram])}" if gram in ngrams.backoffs else ""
    return f"{_ten(ngrams.logs[gram])}\t{' '.join(gram)}{backoff}\n"


def _ten(log: float) -> str:
    return f"{log / TEN if log > -math.inf else IMPOSSIBLE:.7g}"
