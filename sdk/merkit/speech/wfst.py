"""The best of all token sequences under sound and language, by weighted finite-state transducers.

A beam of the recogniser's own best may hold no reading that language likes. The language model as
a transducer, searched frame by frame with Kaldi's decoder, misses none (seed 2.4.1). The wheels
kaldilm, kaldifst and kaldi-decoder (the extra `lm`) hold Kaldi's code without Kaldi; without them
`merkit.speech.rescore` orders the beam in plain Python.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.errors import InvalidInputError, MissingExtraError
from merkit.speech.decode import Hypothesis, greedy
from merkit.speech.ngram import read_arpa
from merkit.speech.rescore import Scales
from merkit.speech.vocabulary import Vocabulary

IMPOSSIBLE = -1e10  # a log-likelihood that the decoder never follows; it takes no infinity
BACKING_OFF = "#0"


@dataclass(frozen=True)
class WfstDecoder:
    """Decodes what a recogniser such as Paraformer says: at each place one token.

    Attributes:
        arpa: a language model over the tokens.
        vocabulary: the recogniser's tokens.
        scales: how much language counts.
        beam: what is this much worse than the best so far is given up.
        width: tokens considered at each place, the most probable ones; 0 for all.
    """

    arpa: Path
    vocabulary: Vocabulary
    scales: Scales = field(default_factory=Scales)
    beam: float = 16.0
    width: int = 0
    _graph: Any = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.beam <= 0 or self.width < 0:
            raise InvalidInputError(
                f"the beam is {self.beam} and the width {self.width}",
                "a beam above 0 and a width of 0 or more",
            )
        object.__setattr__(self, "_graph", _graph(self.arpa, self.vocabulary, self.scales))

    def __call__(self, logs: NDArray[Any], count: int) -> Hypothesis:
        """The best sequence of as many tokens as the recogniser alone hears.

        Args:
            logs: float [places, vocabulary], log-probabilities.
            count: how many of the places are real.

        Returns:
            Its `total` is the recogniser's log-probability alone. Where no sequence survives,
            because the language model lacks the tokens, it is what the recogniser alone hears.

        Raises:
            InvalidInputError: not such an array.
        """
        alone = greedy(logs, count, end=self.vocabulary.end, silent=self.vocabulary.silent)
        rows = np.asarray(logs, np.float64)[: alone.places]
        best = rows.argmax(axis=1) if len(rows) else np.zeros(0, np.int64)
        spoken = ~np.isin(best, list(self.vocabulary.silent))
        found = self._search(rows[spoken])
        if found is None:
            return alone
        total = float(rows[spoken][np.arange(len(found)), found].sum())
        total += float(rows[~spoken].max(axis=1).sum()) if (~spoken).any() else 0.0
        return Hypothesis(tuple(found), total, alone.places)

    def _search(self, rows: NDArray[np.float64]) -> list[int] | None:
        """The best token for each row; None if there is no row, or no way through."""
        if not len(rows):
            return None
        kaldi, fst = _module("kaldi_decoder"), _module("kaldifst")
        seen = np.maximum(rows, IMPOSSIBLE)
        seen[:, sorted(self.vocabulary.silent)] = IMPOSSIBLE
        if 0 < self.width < seen.shape[1]:
            least = np.partition(seen, -self.width, axis=1)[:, -self.width, None]
            seen = np.where(seen >= least, seen, IMPOSSIBLE)
        options = kaldi.FasterDecoderOptions(beam=self.beam, max_active=2**31 - 1)
        decoder = kaldi.FasterDecoder(self._graph, options)
        decoder.decode(kaldi.DecodableCtc(seen.astype(np.float32)))
        if not decoder.reached_final():
            return None
        done, path = decoder.get_best_path()
        done, _, labels, _ = fst.get_linear_symbol_sequence(path) if done else (False, [], [], 0)
        tokens = [label - 1 for label in labels]  # 0 is the empty label
        possible = (
            len(tokens) == len(seen) and (seen[np.arange(len(seen)), tokens] > IMPOSSIBLE).all()
        )
        return tokens if done and possible else None


def _graph(arpa: Path, vocabulary: Vocabulary, scales: Scales) -> Any:
    """The language model as a transducer from token labels to token labels (ids + 1)."""
    read_arpa(arpa)  # Kaldi's reader ends the process on a file that it does not understand
    tokens = [*vocabulary.tokens, BACKING_OFF]
    table = ["<eps> 0", *(f"{token} {i}" for i, token in enumerate(tokens, 1))]
    with tempfile.TemporaryDirectory(prefix="wfst-") as folder:
        symbols = Path(folder) / "tokens.txt"
        symbols.write_text("\n".join(table) + "\n", "utf-8")
        text: str = _module("kaldilm").arpa2fst(
            str(arpa), disambig_symbol=BACKING_OFF, read_symbol_table=str(symbols)
        )
    lines = (_scaled(line.split(), scales, len(tokens)) for line in text.splitlines() if line)
    return _module("kaldifst").compile("\n".join(lines))


def _scaled(parts: list[str], scales: Scales, backing_off: int) -> str:
    """A line of the transducer under our scales; going to a shorter context takes no token."""
    full = len(parts) >= 4
    cost = float(parts[-1]) if len(parts) in (2, 5) else 0.0
    cost *= scales.weight
    if not full:
        return f"{parts[0]} {cost}"
    source, target, label, output = parts[:4]
    if int(label) == backing_off:
        label, output = "0", "0"
    elif int(label):
        cost -= scales.bonus
    return f"{source} {target} {label} {output} {cost}"


def _module(name: str) -> ModuleType:
    from importlib import import_module

    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise MissingExtraError.of(name, "lm") from None
