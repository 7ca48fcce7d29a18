"""N-gram language models from ARPA files: how probable a next word is, in plain Python.

What recognition hears twice alike, only language tells apart (seed 2.4.1). ARPA is the format that
every tool writes, so the model may be ours (`merkit_training.speech.language_model`), KenLM's or
SRILM's. Dictionaries hold it: a few million n-grams, looked up some hundred times a second of
sound, are no work worth another dependency.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TextIO

from merkit.errors import BundleCorruptError, BundleNotFoundError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
NEVER = -math.inf
TEN = math.log(10)
ZERO = -90.0  # ARPA's logarithms to base 10 from there down mean "impossible"; -99 is usual

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Ngrams:
    """A back-off model.

    Attributes:
        logs: natural logarithm of the probability of each n-gram's last word after the others.
        backoffs: natural logarithm of the weight that shorter contexts get after an n-gram;
            what is left out is 0.
    """

    logs: Mapping[Gram, float]
    backoffs: Mapping[Gram, float]

    @cached_property
    def order(self) -> int:
        """Words of the longest n-gram."""
        return max(map(len, self.logs))

    @cached_property
    def words(self) -> tuple[str, ...]:
        """What can come next, the end included and the start not."""
        return tuple(g[0] for g in self.logs if len(g) == 1 and g[0] != START)

    def log(self, word: str, context: Sequence[str]) -> float:
        """Natural logarithm of the probability of `word` after `context`.

        A word that the model does not know counts as `<unk>`; minus infinity if it knows none.
        """
        return self._log(self._known(word), tuple(map(self._known, self._near(context))))

    def each(self, words: Iterable[str]) -> Iterator[float]:
        """As `log`, for each word of a sentence and its end."""
        context: Gram = (START,)
        for word in (*words, END):
            known = self._known(word)
            yield self._log(known, context)
            context = tuple(self._near((*context, known)))

    def total(self, words: Iterable[str]) -> float:
        """Natural logarithm of the probability of a whole sentence, its end included."""
        return sum(self.each(words))

    def _known(self, word: str) -> str:
        return word if (word,) in self.logs else UNKNOWN

    def _near(self, context: Sequence[str]) -> Sequence[str]:
        return context[max(0, len(context) - self.order + 1) :]

    def _log(self, word: str, context: Gram) -> float:
        weight = 0.0
        for start in range(len(context) + 1):
            found = self.logs.get((*context[start:], word))
            if found is not None:
                return weight + found
            weight += self.backoffs.get(context[start:], 0.0)
        return NEVER


def read_arpa(path: Path) -> Ngrams:
    """Reads a model.

    Raises:
        BundleNotFoundError: no such file.
        BundleCorruptError: no ARPA file, or a line of it is malformed or missing.
    """
    try:
        with path.open(encoding="utf-8") as file:
            return _Reader(path, file).read()
    except OSError as error:
        raise BundleNotFoundError(
            f"{path} cannot be read ({error.strerror})", "a language model in ARPA format"
        ) from None
    except UnicodeDecodeError as error:
        raise BundleCorruptError(f"{path} is not in UTF-8 ({error})", "an ARPA file") from None


class _Reader:
    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.lines, self.number = path, file, 0
        self.logs: dict[Gram, float] = {}
        self.backoffs: dict[Gram, float] = {}

    def read(self) -> Ngrams:
        for line in self._texts():
            if line == "\\data\\":
                break
        else:
            raise self._wrong("no \\data\\", "an ARPA file")
        counts: list[int] = []
        section = ""
        for section in self._texts():
            if not section.startswith("ngram "):
                break
            counts.append(self._count(section, len(counts) + 1))
        for order, count in enumerate(counts, 1):
            if section != f"\\{order}-grams:":
                raise self._wrong(repr(section), f"\\{order}-grams:")
            section = self._section(order, count)
        if not counts or section != "\\end\\":
            raise self._wrong(repr(section), "\\end\\ after the last n-gram")
        if (END,) not in self.logs:
            raise self._wrong(f"no {END} among the words", "a model of sentences")
        return Ngrams(self.logs, self.backoffs)

    def _texts(self) -> Iterator[str]:
        for self.number, line in enumerate(self.lines, self.number + 1):  # noqa: B020
            if text := line.strip():
                yield text

    def _count(self, line: str, order: int) -> int:
        name, _, count = line.removeprefix("ngram ").partition("=")
        if name.strip() != str(order) or not count.strip().isdigit():
            raise self._wrong(repr(line), f"ngram {order}=NUMBER")
        return int(count)

    def _section(self, order: int, count: int) -> str:
        """Reads the n-grams of an order; returns the first line behind them."""
        before = len(self.logs)
        for line in self._texts():
            if line.startswith("\\"):
                if len(self.logs) - before != count:
                    found = f"{len(self.logs) - before} different {order}-grams"
                    raise self._wrong(found, f"{count}, as stated above")
                return line
            parts = line.split()
            gram = tuple(parts[1 : order + 1])
            try:
                values = [float(x) for x in (parts[0], *parts[order + 1 :])]
            except ValueError:
                values = []
            if len(gram) != order or len(values) not in (1, 2) or not all(map(_sane, values)):
                raise self._wrong(repr(line), f"a logarithm, {order} words, perhaps another")
            self.logs[gram] = values[0] * TEN if values[0] > ZERO else NEVER
            if len(values) == 2 and values[1]:
                self.backoffs[gram] = values[1] * TEN if values[1] > ZERO else NEVER
        raise self._wrong("the end of the file", "\\end\\")

    def _wrong(self, found: str, expected: str) -> BundleCorruptError:
        return BundleCorruptError(
            f"{self.path}, line {self.number}: {found}", expected, "write the model again"
        )


def _sane(value: float) -> bool:
    return math.isfinite(value) and value < 20
