"""Punctuation for transcripts: words in, sentences out, however long the text, however it comes.

Recognisers write none, and the joint model needs it (seed 2.3). A classifier says which mark
follows each word; all the rest is here, so that training, the embedded runtime and a server cut,
space and capitalise alike. The text is read in windows of `window` words, and what follows the last
finished sentence waits for the next one (FunASR's scheme, Gao et al. 2023, arXiv:2305.11013): a
text of any length costs bounded memory. How a stream is cut into pieces never shows in the result.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import BundleCorruptError, InvalidInputError
from merkit.speech.edits import WIDE

Classify = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]]
"""Ids int64 [1, words] and their number int64 [1] to scores float [1, words, marks]."""

UNKNOWN = "<unk>"
NOTHING, COMMA, STOP, QUESTION, PAUSE = "_", "，", "。", "？", "、"
WIDTHS = {COMMA: ",", STOP: ".", QUESTION: "?", PAUSE: ","}
"""Each mark of Chinese text, and what stands for it after a word in Latin letters."""
MARKS = (UNKNOWN, NOTHING, COMMA, STOP, QUESTION, PAUSE)
"""The classes as FunASR's models have them; the first stands for padding."""
ENDS = frozenset({STOP, QUESTION})

_READ = dict.fromkeys(",，;；:：", COMMA) | dict.fromkeys("、", PAUSE)
_READ |= dict.fromkeys(".。!！…", STOP) | dict.fromkeys("?？", QUESTION)
_WRITTEN = re.compile(r"[，；：、。！？…]+|[,;:.!?]+(?=\s|$|[^\x00-\x7f])")
_PARTS = re.compile(rf"(\s+|{_WRITTEN.pattern}|{WIDE.pattern})")
_PRONOUN = re.compile(r"i(?:'(?:m|ve|ll|d))?")


def role_of(mark: str) -> str:
    """The mark that another one stands for, such as "，" for ","; `_` for what is none."""
    return _READ.get(mark, NOTHING)


@dataclass(frozen=True)
class Word:
    """A Chinese character, or the letters between spaces."""

    text: str
    spaced: bool  # whether a space stood before it
    mark: str = NOTHING  # that followed it where the text was read

    @property
    def key(self) -> str:
        """As vocabularies have it."""
        return self.text.lower()

    @property
    def narrow(self) -> bool:
        """Whether it is followed by marks of half width."""
        return WIDE.match(self.text[-1]) is None


def split_words(text: str) -> list[Word]:
    """The words of a text in order, each with the mark that followed it.

    Marks inside a word in Latin letters ("3.5") belong to it, and other symbols count as words.
    """
    words: list[Word] = []
    spaced = False
    for part in _PARTS.split(text):
        if not part or part.isspace():
            spaced = spaced or bool(part)
            continue
        if not _WRITTEN.fullmatch(part):
            words.append(Word(part, spaced))
        elif words:
            marks = [_READ[c] for c in part]
            mark = next((m for m in marks if m in ENDS), marks[0])
            words[-1] = replace(words[-1], mark=mark)
        spaced = False
    return words


def is_punctuated(text: str) -> bool:
    """Whether any mark stands in the text."""
    return any(word.mark != NOTHING for word in split_words(text))


@dataclass(frozen=True)
class Punctuator:
    """A classifier of marks, and the vocabulary that it reads."""

    tokens: Sequence[str]  # in order of id; `<unk>` among them
    marks: Sequence[str]  # of the classes, as FunASR's `punc_list`; `_` is none
    classify: Classify
    window: int = 20  # words read at once
    limit: int = 200  # words after which a sentence is ended at a comma
    ids: dict[str, int] = field(init=False, repr=False)
    roles: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.window < 2 or self.limit < self.window:
            raise InvalidInputError(
                f"the window is {self.window} words and the limit {self.limit}",
                "a window of 2 or more, and a limit no smaller",
            )
        object.__setattr__(self, "ids", {token: i for i, token in enumerate(self.tokens)})
        if UNKNOWN not in self.ids or NOTHING not in self.marks:
            raise BundleCorruptError(
                "the punctuation model knows no unknown word, or no place without a mark",
                f"{UNKNOWN} among its tokens and {NOTHING} among its marks",
                "take both from the folder that the model came in",
            )
        roles = tuple(role_of(mark) for mark in self.marks)
        object.__setattr__(self, "roles", roles)

    def __call__(self, text: str, *, again: bool = False) -> str:
        """The text with marks and capitals.

        Args:
            text: a transcript. If any mark stands in it, it is returned as it is, since whoever
                set that mark knew more than this model.
            again: set all marks anew instead.
        """
        if not again and is_punctuated(text):
            return text
        stream = self.stream()
        return stream.feed(text) + stream.finish()

    def stream(self) -> PunctuationStream:
        """For a text that comes in pieces."""
        return PunctuationStream(self)

    def decide(self, words: Sequence[Word]) -> list[str]:
        """The mark after each word.

        Raises:
            InvalidInputError: the classifier's scores are not one row for each word.
        """
        if not words:
            return []
        unknown = self.ids[UNKNOWN]
        ids = np.array([[self.ids.get(word.key, unknown) for word in words]], np.int64)
        scores = np.asarray(self.classify(ids, np.array([len(words)], np.int64)))
        return self._roles(scores, (1, len(words), len(self.marks)))

    def scored(self, text: str, scores: NDArray[Any]) -> str:
        """As `__call__` in one window, of scores that were computed elsewhere.

        Args:
            text: a transcript.
            scores: float [words, marks] of its words, as `word_ids` numbers them.

        Raises:
            InvalidInputError: other scores than one row for each word.
        """
        words = split_words(text)
        marks = self._roles(scores[None], (1, len(words), len(self.marks)))
        return self.stream().write(words, marks)

    def word_ids(self, text: str) -> NDArray[np.int64]:
        """The ids of a text's words, int64 [words], for who runs the classifier elsewhere."""
        unknown = self.ids[UNKNOWN]
        ids = [self.ids.get(word.key, unknown) for word in split_words(text)]
        return np.array(ids, np.int64)

    def _roles(self, scores: NDArray[Any], shape: tuple[int, int, int]) -> list[str]:
        if scores.shape != shape:
            raise InvalidInputError(
                f"the scores of {shape[1]} words are {list(scores.shape)}",
                f"{list(shape)}",
                "check that tokens, marks and model belong together",
            )
        return [self.roles[i] for i in scores[0].argmax(axis=1)]


class PunctuationStream:
    """A text under way: `feed` returns what is finished of it, `finish` the rest."""

    def __init__(self, punctuator: Punctuator) -> None:
        self._by = punctuator
        self._tail = ""  # letters whose word may go on
        self._waiting: list[Word] = []  # fed, and not yet read
        self._open: list[Word] = []  # read, of the sentence that has not ended
        self._starts = True  # whether the next word starts a sentence
        self._last: Word | None = None  # returned last, with its mark

    def feed(self, text: str) -> str:
        """Takes a piece, which may end inside a word; returns what is finished, if anything is.

        Marks in it are passed over: all are set anew.
        """
        whole = self._tail + text
        cut = _last_word(whole)
        self._tail = whole[cut:]
        return self._take(whole[:cut])

    def finish(self) -> str:
        """Ends the text: a comma at its end becomes a full stop, and a missing one is set."""
        out = self._take(self._tail)
        words = self._open + self._waiting
        marks = self._by.decide(words)
        self._tail, self._open, self._waiting = "", [], []
        return out + self.write(words, marks)

    def write(self, words: Sequence[Word], marks: Sequence[str]) -> str:
        """The end of a text, of words whose marks are decided; the last one ends a sentence."""
        last = [STOP] if marks and marks[-1] not in ENDS else list(marks[-1:])
        return self._write(words, [*marks[:-1], *last])

    def _take(self, text: str) -> str:
        """Reads full windows; one is kept back, since the last one is read by `finish`."""
        self._waiting += split_words(text)
        size, out = self._by.window, ""
        while len(self._waiting) > size:
            words, self._waiting = self._open + self._waiting[:size], self._waiting[size:]
            marks = self._by.decide(words)
            end = self._end(marks)
            out += self._write(words[:end], marks[:end])
            self._open = words[end:]
        return out

    def _end(self, marks: list[str]) -> int:
        """How many words are finished. A mark after the last word may yet change, and a sentence
        of one or two words is doubtful; what is too long ends at a comma, and if there is none
        where it is, without a mark."""
        inside = range(len(marks) - 2, 1, -1)
        if end := next((i + 1 for i in inside if marks[i] in ENDS), 0):
            return end
        if len(marks) > self._by.limit:
            if end := next((i + 1 for i in inside if marks[i] == COMMA), 0):
                marks[end - 1] = STOP
            elif len(marks) > 2 * self._by.limit:
                end = len(marks) - 1
        return end

    def _write(self, words: Sequence[Word], marks: Sequence[str]) -> str:
        out = []
        for word, mark in zip(words, marks, strict=True):
            out += [self._between(word), _cased(word, self._starts)]
            out.append("" if mark == NOTHING else WIDTHS[mark] if word.narrow else mark)
            self._last, self._starts = replace(word, mark=mark), mark in ENDS
        return "".join(out)

    def _between(self, word: Word) -> str:
        """What separates a word from the last one: a space after marks of half width, nothing
        after those of full width, and elsewhere what did before."""
        if self._last is None:
            return ""
        if self._last.mark != NOTHING:
            return " " if self._last.narrow else ""
        return " " if word.spaced or (word.narrow and self._last.narrow) else ""


def _cased(word: Word, starts: bool) -> str:
    """With a capital where English has one; only of letters that have one in both directions."""
    first = word.text[0].upper()
    if (starts or _PRONOUN.fullmatch(word.text)) and first.lower() == word.text[0]:
        return first + word.text[1:]
    return word.text


def _last_word(text: str) -> int:
    """Where the last word begins, with the space before it: what follows may change it."""
    place = len(text.rstrip())
    if place and WIDE.match(text[place - 1]):
        place -= 1
    else:
        while place and not text[place - 1].isspace() and not WIDE.match(text[place - 1]):
            place -= 1
    return len(text[:place].rstrip())
