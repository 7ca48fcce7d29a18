"""The stage `recognizer`: Paraformer on a corpus' utterances, from random weights or a checkpoint.

The score is the character error rate on speakers and sentences that training has not met. Noise
(seed 2.4.1) is put behind each batch anew where the table asks for it; validation is as it is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from merkit.errors import BundleCorruptError
from merkit.speech.decode import Hypothesis, ctc_greedy, greedy
from merkit.speech.edits import character_error_rate
from merkit.speech.vocabulary import Vocabulary
from merkit_training import processes
from merkit_training.encoders.utterances import Utterances
from merkit_training.fit import FitConfig, clear_checkpoints, fit, step_rng
from merkit_training.recipe import Recipe
from merkit_training.runs import CONFIG, MODEL, load_step_files, save_step, stage_seed
from merkit_training.settings import from_table
from merkit_training.speech.funasr import TOKENS
from merkit_training.speech.noise.augment import Augment
from merkit_training.speech.recognition.checkpoint import load_folder
from merkit_training.speech.recognition.config import RecognizerConfig
from merkit_training.speech.recognition.data import Augmentation, SpokenTexts, corpus_vocabulary
from merkit_training.speech.recognition.frontend import Frontend
from merkit_training.speech.recognition.model import Recognizer

STEP = "recognizer"
MEASURED = 2000  # utterances whose inputs are normalised to zero mean and unit variance
LEAST_SPREAD = 1e-2  # of an input over these, for sound that is silent everywhere


def train(recipe: Recipe, corpus: Path, run: Path) -> dict[str, float]:
    """Trains and writes the step; returns `accuracy` (1 - CER) and `cer` of validation, and
    `ctc_cer` of the CTC head where there is one.

    Raises:
        InvalidInputError: no utterance with words in a split, or a checkpoint that does not fit.
    """
    seed, wanted, p = stage_seed(recipe, STEP), recipe.recognizer, recipe.preprocessing
    torch.set_num_threads(min(wanted.threads, torch.get_num_threads()))  # OMP_NUM_THREADS caps it
    torch.manual_seed(seed)
    most = round(p.max_audio_seconds * p.sample_rate)
    sounds, unheard = (Utterances.read(corpus, split, most) for split in ("train", "val"))
    recognizer, config, vocabulary = _start(wanted, corpus, sounds)
    data = SpokenTexts.of(sounds, vocabulary, "train")
    val = SpokenTexts.of(unheard, vocabulary, "val")
    if not config.checkpoint:
        normalise(recognizer.frontend, data, seed)
    folder = run / STEP
    if config.epochs:
        noise = augmentation(recipe, sounds)
        scores = learn(recognizer, config, data, val, vocabulary, seed, folder, noise)
    else:
        scores = evaluate(recognizer.eval(), val, vocabulary, config.batch_size)
    if processes.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary.save(folder / TOKENS)
    card = {"scores": scores, "data": "utterances", "tokens": len(vocabulary)}
    save_step(run, STEP, asdict(config), recognizer.state_dict(), card)
    clear_checkpoints(folder)
    return scores


def learn(
    recognizer: Recognizer,
    config: RecognizerConfig,
    data: SpokenTexts,
    val: SpokenTexts,
    vocabulary: Vocabulary,
    seed: int,
    folder: Path,
    augment: Augmentation | None = None,
) -> dict[str, float]:
    """Trains `recognizer` in place as `fit` does it, with the best epoch's scores on `val`."""
    together = processes.count()  # a batch of like lengths for each of them
    batches = data.batches(max(1, config.batch_size // together))

    def loss(_: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        places = np.concatenate([batches[i] for i in indices])
        waveform, lengths = data.waves(places, augment, step_rng())
        with torch.no_grad(), torch.autocast(waveform.device.type, enabled=False):
            speech, counts = recognizer.frontend(waveform, lengths)
        hidden = hide(speech, recognizer.frontend, config)
        return recognizer.model.loss(hidden, counts, data.tokens(places), config)

    def scores(_: nn.Module) -> dict[str, float]:
        return evaluate(recognizer, val, vocabulary, config.batch_size)

    schedule = FitConfig(config.epochs, together, config.lr, seed=seed, bf16=config.bf16)
    return fit(recognizer, loss, len(batches), schedule, folder, name=STEP, evaluate=scores)


def augmentation(recipe: Recipe, sounds: Utterances) -> Augmentation | None:
    """What the recipe puts behind training's speech; other utterances speak in the background."""
    if not recipe.recognizer.augment:
        return None

    return Augment(recipe.noise, lambda rng: sounds.wave(int(rng.integers(len(sounds)))))


def normalise(frontend: Frontend, data: SpokenTexts, seed: int) -> None:
    """Sets what the front end adds and multiplies with from the inputs of training utterances."""
    rng = np.random.default_rng([seed, 1])
    chosen = rng.permutation(len(data))[:MEASURED]
    total = torch.zeros(2, len(frontend.shift), dtype=torch.float64)
    count = 0
    for part in np.array_split(chosen, -(-len(chosen) // 32)):
        waveform, lengths = data.waves(part)
        with torch.no_grad():
            speech, counts = frontend(waveform, lengths)
        total += torch.stack((speech.double().sum((0, 1)), speech.double().square().sum((0, 1))))
        count += int(counts.sum())
    mean, square = total / count
    frontend.shift.copy_(-mean)
    frontend.scale.copy_(1 / (square - mean.square()).clamp(min=LEAST_SPREAD**2).sqrt())


def hide(speech: Tensor, frontend: Frontend, config: RecognizerConfig) -> Tensor:
    """Inputs with a random band of mels and a random stretch of time at their mean, as
    SpecAugment does it, for each sound anew."""
    batch, time, _ = speech.shape
    shown = torch.ones(batch, time, 1, frontend.mels)
    for axis, size, widest in ((3, frontend.mels, config.hide_mels), (1, time, config.hide_inputs)):
        start = (torch.rand(batch) * size).long()
        width = (torch.rand(batch) * (min(widest, size) + 1)).long()
        at = torch.arange(size)
        kept = ((at < start[:, None]) | (at >= (start + width)[:, None])).float()
        shown = shown * (kept[:, None, None] if axis == 3 else kept[:, :, None, None])
    stacks = speech.reshape(batch, time, frontend.stacked, frontend.mels)
    return (stacks * shown.to(speech.device)).reshape(speech.shape)


@torch.no_grad()
def transcribe(
    recognizer: Recognizer, data: SpokenTexts, vocabulary: Vocabulary, size: int
) -> tuple[list[Hypothesis], list[Hypothesis]]:
    """The most probable tokens of each utterance, by the decoder and by CTC (none without)."""
    device = recognizer.frontend.scale.device
    heard: list[Hypothesis] = []
    by_ctc: list[Hypothesis] = []
    marks = vocabulary.silent
    for places in data.batches(size):
        waveform, lengths = data.waves(places)
        sound = (waveform.to(device), lengths[:, None].to(device))
        outputs = [output.cpu().numpy() for output in recognizer(*sound)]
        for logs, count in zip(outputs[0], outputs[1], strict=True):
            heard.append(greedy(logs, int(count[0]), end=vocabulary.end, silent=marks))
        for logs, count in zip(*outputs[2:], strict=True) if len(outputs) > 2 else ():
            by_ctc.append(ctc_greedy(logs, int(count[0]), blank=vocabulary.blank))
    return heard, by_ctc


def evaluate(
    recognizer: Recognizer, data: SpokenTexts, vocabulary: Vocabulary, size: int
) -> dict[str, float]:
    """`accuracy` (1 - CER), `cer`, and `ctc_cer` where there is a CTC head."""
    heard, by_ctc = transcribe(recognizer, data, vocabulary, size)
    rates = [
        character_error_rate(
            (text, vocabulary.decode(found.ids))
            for text, found in zip(data.texts, hypotheses, strict=True)
        )
        for hypotheses in (heard, by_ctc)
        if hypotheses
    ]
    scores = {"accuracy": 1 - rates[0], "cer": rates[0]}
    return scores | ({"ctc_cer": rates[1]} if by_ctc else {})


def load(run: Path) -> tuple[Recognizer, RecognizerConfig, Vocabulary]:
    """The trained recogniser of a run, in eval mode, its sizes and its tokens.

    Raises:
        BundleNotFoundError: the run has no such step.
        BundleCorruptError: weights that are damaged or do not fit the configuration.
    """
    table, weights = load_step_files(run, STEP)
    config = from_table(RecognizerConfig, table, str(run / STEP / CONFIG))
    vocabulary = Vocabulary.load(run / STEP / TOKENS)
    recognizer = Recognizer(config, len(vocabulary))
    try:
        recognizer.load_state_dict(weights)
    except RuntimeError as error:
        raise BundleCorruptError(
            f"{run / STEP / MODEL} does not fit its configuration ({error})",
            f"weights of the shapes that {CONFIG} and {TOKENS} beside it state",
            f"remove {run / STEP} and train the step again",
        ) from None
    return recognizer.eval(), config, vocabulary


def _start(
    config: RecognizerConfig, corpus: Path, sounds: Utterances
) -> tuple[Recognizer, RecognizerConfig, Vocabulary]:
    """The recogniser before training, its true sizes and its tokens."""
    if config.checkpoint:
        recognizer, sized, vocabulary, _ = load_folder(Path(config.checkpoint).expanduser(), config)
        return recognizer, sized, vocabulary
    vocabulary = corpus_vocabulary(corpus, sounds, config.word_pieces)
    return Recognizer(config, len(vocabulary)), config, vocabulary
