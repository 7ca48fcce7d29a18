"""The tokeniser: a checkpoint's own, or byte-level BPE trained on the corpus.

The SDK reads it from one JSON file. Its own kind cuts into bytes, so that no text is unknown,
whatever its language. No transcript can smuggle a special token in: one that spells `<pad>` out
is tokenised like any other text. A joint model with a language model of its own has a second
file.
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
from merkit.steps.prompt import Prompt, split
from merkit.steps.tokenize import JOINT_FILE, TEXT_FILE
from merkit_training.checkpoints import open_checkpoint
from merkit_training.corpus import read_sentences, read_table
from merkit_training.encoders.text.vocabularies import read_vocabulary
from merkit_training.labels import classes_of
from merkit_training.recipe import Recipe
from merkit_training.runs import write_json

STEP, FILE = "tokenizer", TEXT_FILE
PAD = "<pad>"


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Takes the checkpoints' own tokenisers, or trains one on the corpus.

    Raises:
        BundleNotFoundError: a checkpoint without a tokeniser, and the recipe names none.
        InvalidInputError: a tokeniser's file of another kind than its name says.
    """
    rows, spoken = read_sentences(corpus, "train"), corpus / "utterances" / "table.csv"
    if spoken.exists():
        rows += [row for row in read_table(spoken) if row["split"] == "train"]
    sentences = [row.get("text") or "" for row in rows]
    source, joint = _published(recipe)
    if source is not None:
        tokenizer = read_vocabulary(source)
    else:
        parts = [part for part in split(recipe.preprocessing.prompt) if part]
        prompt = parts * max(2, len(sentences) // 200)  # worth own tokens
        classes, size = classes_of(corpus), recipe.text_encoder.vocabulary
        tokenizer = build((*sentences, *prompt), size, classes)
    write_json(run / STEP / FILE, json.loads(tokenizer.to_str()))
    if joint is not None:
        write_json(run / STEP / JOINT_FILE, json.loads(read_vocabulary(joint).to_str()))
    encoded = tokenizer.encode_batch(sentences, add_special_tokens=False)
    lengths = [len(e.ids) for e in encoded] or [0]
    return {
        "vocabulary": float(tokenizer.get_vocab_size()),
        "tokens_mean": float(np.mean(lengths)),
        "tokens_max": float(max(lengths)),
    }


def _published(recipe: Recipe) -> tuple[Path | None, Path | None]:
    """Where the text encoder's tokeniser and the joint encoder's own lie; None: there is none."""
    text, joint, hub = recipe.text_encoder, recipe.joint_encoder, recipe.run.hub
    source = Path(text.tokenizer).expanduser() if text.tokenizer else None
    if source is None and text.checkpoint:
        source = open_checkpoint(text.checkpoint, hub=hub).folder
    llm = joint.checkpoint or joint.llm_checkpoint
    return source, open_checkpoint(llm, hub=hub).folder if llm else None


def build(texts: Iterable[str], vocabulary: int, classes: Sequence[str]) -> Tokenizer:
    """A tokeniser of at most `vocabulary` tokens; `<pad>` is 0, a token of each class follows
    (`<happy>`), which the joint encoder can predict after the transcript."""
    special = [PAD, *(f"<{name}>" for name in classes)]
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


def load(run: Path, *, joint: bool = False) -> Tokenizer:
    """The tokeniser of a run: the text encoder's, or the joint encoder's where it has its own.

    Raises:
        BundleNotFoundError: the stage has not run.
        BundleCorruptError: the file is no tokeniser.
    """
    path = run / STEP / FILE
    if joint and (run / STEP / JOINT_FILE).exists():
        path = run / STEP / JOINT_FILE
    if not path.exists():
        raise BundleNotFoundError(f"there is no {path}", "a tokeniser", "run the stage tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise BundleCorruptError(
            f"{path} is no tokeniser ({error})", "JSON of tokenizers", f"remove {path.parent}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True  # as any text: see above
    return tokenizer


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
        ids int64 [n, tokens], right padded with 0, and lengths int64 [n, 1].
    """
    template = Prompt.of(prompt, tokenizer)
    # as the SDK cleans them: Python strips more characters than the tokeniser's normaliser does
    cleaned = [unicodedata.normalize("NFC", text).strip() for text in texts]
    encoded = tokenizer.encode_batch(cleaned, add_special_tokens=False)
    rows = [template.around(e.ids[:limit]) for e in encoded]
    lengths = np.array([[len(row)] for row in rows], np.int64)
    ids = np.zeros((len(rows), max(1, int(lengths.max(initial=1)))), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return ids, lengths
