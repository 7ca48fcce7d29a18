"""The one clip that travels with the project: larger, clear, every modality in agreement.

A first-time user has no clip at hand whose answer is known. This one says "happy" with face,
voice and words, and its sentence lies beside it in a text file.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from merkit_training.labels import MER6
from merkit_training.synth.clips import film, write_mp4
from merkit_training.synth.faces import identity, random_view
from merkit_training.synth.model import FACES, PROSODY, TONES
from merkit_training.synth.performance import Performance
from merkit_training.synth.sentences import compose
from merkit_training.synth.speech import speak, voice

SIDE, FPS = 320, 20
POOL = "clips/test_multi"
LABEL = "happy"


def sample_clip(path: Path, seed: int = 11) -> str:
    """Writes a clip of about 3 s to `path` and its sentence to the .txt beside it; returns that."""
    rng = np.random.default_rng([seed, 0x5A])
    sentence = compose(rng, MER6.index(LABEL), "en", POOL)
    tone = np.array(TONES[LABEL]) * 0.8
    tone[PROSODY.index("rate")] = -0.5  # unhurried, for those who listen
    wave = speak(sentence.text, "en", voice(seed, seed), tone, rng)
    how = Performance(0.08, 0.2, 0.9, 1.05, False, (0.12, 0.72), (1.2, 0.6, 1.2), (0.0, 1.0, 2.0))
    view = replace(random_view(rng, SIDE, 2.15, 4), light=(1.0, 0.05, 0.0))
    frames = film(identity(seed, seed), how, np.array(FACES[LABEL]), view, wave, FPS, SIDE)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, frames, FPS, wave)
    path.with_suffix(".txt").write_text(sentence.text + "\n", "utf-8")
    return sentence.text
