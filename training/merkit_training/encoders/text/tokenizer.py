"""The tokeniser: byte-level BPE, trained on the corpus and read by the SDK from one JSON file.

Bytes, so that no text is unknown, whatever its language. The special tokens stand in the
vocabulary only: a transcript that spells `<pad>` out is tokenised like any other text and can
never smuggle a special token in.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from merkit.errors import BundleCorruptError, BundleNotFoundError
from merkit.steps.prompt import Prompt
from merkit_training.corpus import read_sentences, read_table
from merkit_training.labels import MER6
from merkit_training.recipe import Recipe
from merkit_training.runs import write_json

STEP, FILE = "tokenizer", "tokenizer.json"
PAD = "<pad>"
LABEL_TOKENS = tuple(f"<{name}>" for name in MER6)
"""One token for each label word: what the joint encoder predicts after the transcript."""


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains the tokeniser on the training sentences and transcripts, prompt included."""
    rows = read_sentences(corpus, "train")
    rows += [r for r in read_table(corpus / "utterances" / "table.csv") if r["split"] == "train"]
    sentences = [row["text"] for row in rows]
    prompt = [recipe.preprocessing.prompt] * max(2, len(sentences) // 200)  # worth own tokens
    tokenizer = build((*sentences, *prompt), recipe.text_encoder.vocabulary)
    write_json(run / STEP / FILE, json.loads(tokenizer.to_str()))
    lengths = [len(e.ids) for e in tokenizer.encode_batch(sentences)]
    return {
        "vocabulary": float(tokenizer.get_vocab_size()),
        "tokens_mean": float(np.mean(lengths)),
        "tokens_max": float(max(lengths)),
    }


def build(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A tokeniser of at most `vocabulary` tokens; `<pad>` is 0, the label tokens follow."""
    special = [PAD, *LABEL_TOKENS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    table = json.loads(tokenizer.to_str())
    table["added_tokens"] = []  # they stay in the vocabulary, but text cannot reach them
    return Tokenizer.from_str(json.dumps(table))


def load(run: Path) -> Tokenizer:
    """The tokeniser of a run.

    Raises:
        BundleNotFoundError: the stage has not run.
        BundleCorruptError: the file is no tokeniser.
    """
    path = run / STEP / FILE
    if not path.exists():
        raise BundleNotFoundError(f"there is no {path}", "a tokeniser", "run the stage tokenizer")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise BundleCorruptError(
            f"{path} is no tokeniser ({error})", "JSON of tokenizers", f"remove {path.parent}"
        ) from None


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], limit: int, prompt: str = ""
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids of many texts, as the SDK's `tokenize` step makes them.

    Args:
        tokenizer: of `load`.
        texts: transcripts.
        limit: tokens kept of each transcript.
        prompt: put before each transcript or around it (seed 2.3, see merkit.steps.prompt), not
            counted in `limit`.

    Returns:
        ids int64 [n, tokens], right padded with `<pad>`, and lengths int64 [n, 1].
    """
    template = Prompt.of(prompt, tokenizer)
    # as the SDK cleans them: Python strips more characters than the tokeniser's normaliser does
    cleaned = [unicodedata.normalize("NFC", text).strip() for text in texts]
    rows = [template.around(e.ids[:limit]) for e in tokenizer.encode_batch(cleaned)]
    lengths = np.array([[len(row)] for row in rows], np.int64)
    ids = np.zeros((len(rows), max(1, int(lengths.max(initial=1)))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
