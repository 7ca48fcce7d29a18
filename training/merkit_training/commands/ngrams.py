"""`merkit-train ngrams`: a language model of any text, and how well one predicts another."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from merkit.errors import InvalidInputError
from merkit_training.commands.common import check_counts

if TYPE_CHECKING:
    from merkit_training.commands import Commands


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = commands.add_parser(
        "ngrams",
        help="estimate a language model, or ask one for its perplexity",
        description="Estimate an n-gram language model of text files (modified Kneser-Ney, ARPA), "
        "and tell how well one predicts text that it has not seen.",
        epilog="Texts are normalised as recognisers write them. Without --tokens Chinese "
        "characters and other words are counted; with it the pieces of a recogniser.",
    )
    parser.add_argument("model", type=Path, metavar="MODEL.arpa", help="to write, or to ask")
    parser.add_argument(
        "--estimate", type=Path, nargs="+", metavar="TEXT", help="a line, a sentence"
    )
    parser.add_argument(
        "--perplexity", type=Path, nargs="+", metavar="TEXT", help="to be predicted"
    )
    parser.add_argument("--order", type=int, default=3, help="words of an n-gram (default: 3)")
    parser.add_argument("--tokens", type=Path, help="tokens.json of a recogniser")
    parser.add_argument(
        "--memory", type=int, default=5_000_000, help="n-grams counted at once (default: 5000000)"
    )
    parser.set_defaults(command=_ngrams)


def _ngrams(arguments: argparse.Namespace) -> None:
    from merkit.speech.ngram import read_arpa
    from merkit.speech.vocabulary import SPECIAL, Vocabulary
    from merkit_training.speech.language_model.arpa import perplexity, write_arpa
    from merkit_training.speech.language_model.estimate import estimate

    if not arguments.estimate and not arguments.perplexity:
        raise InvalidInputError("there is nothing to do", "--estimate or --perplexity, or both")
    check_counts(arguments, "memory")
    vocabulary = Vocabulary.load(arguments.tokens) if arguments.tokens else None
    if arguments.estimate:
        words = None
        if vocabulary:
            words = [token for token in vocabulary.tokens if token not in SPECIAL]
        text = _sentences(arguments.estimate, vocabulary)
        ngrams = estimate(text, arguments.order, words=words, memory=arguments.memory)
        write_arpa(ngrams, arguments.model)
        print(f"{arguments.model}: {len(ngrams.logs)} n-grams, {len(ngrams.words)} words")
    if arguments.perplexity:
        scores = perplexity(
            read_arpa(arguments.model), _sentences(arguments.perplexity, vocabulary)
        )
        print(f"perplexity {scores['perplexity']:.2f}, of known words "
              f"{scores['perplexity_known']:.2f}; unknown {scores['unknown']:.2%}")  # fmt: skip


def _sentences(files: list[Path], vocabulary: object) -> Iterator[list[str]]:
    from merkit.speech.edits import normalised
    from merkit.speech.punctuate import split_words
    from merkit.speech.vocabulary import Vocabulary

    for file in files:
        try:
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    if isinstance(vocabulary, Vocabulary):
                        words = [vocabulary.tokens[i] for i in vocabulary.encode(line)]
                    else:
                        words = [word.text for word in split_words(normalised(line))]
                    if words:
                        yield words
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{file} cannot be read ({error})", "text in UTF-8") from None
