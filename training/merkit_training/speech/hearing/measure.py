"""What a recogniser, and the chain in front of an emotion model, come to in noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from merkit.speech.edits import edit_distance, normalised
from merkit.speech.snr import estimated_snr
from merkit_training.speech.hearing.chain import Punctuate, Separate, pass_through
from merkit_training.speech.hearing.conditions import Condition, conditions_of, under
from merkit_training.speech.hearing.tools import Judge
from merkit_training.speech.noise.levels import Wave
from merkit_training.speech.noise.listen import Listen, in_batches
from merkit_training.studies.inputs import Inputs


def chosen_clips(clips: Inputs, most: int) -> list[int]:
    """Numbers of the clips to measure on: with sound, spread over the split; 0: all of those."""
    audible = [i for i in range(len(clips)) if int(clips.arrays["waveform_length"][i, 0])]
    if not most or most >= len(audible):
        return audible
    return [audible[int(i)] for i in np.linspace(0, len(audible) - 1, most)]


def judged_clips(clips: Inputs, most: int) -> list[int]:
    """Of `chosen_clips` those with a label."""
    return [i for i in chosen_clips(clips, most) if int(clips.labels[i]) >= 0]


def recognition(
    listen: Listen, clips: Inputs, snrs: Sequence[float], most: int
) -> dict[str, dict[str, int]]:
    """Character errors and characters of reference by condition, over clips with words."""
    rows = [i for i in chosen_clips(clips, 0) if normalised(clips.texts[i])]
    rows = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(most or len(rows), len(rows)))]
    found = {}
    for condition in conditions_of(snrs):
        heard = in_batches(listen, (sound(clips, i, condition) for i in rows))
        errors = length = 0
        for i, h in zip(rows, heard, strict=True):
            truth = normalised(clips.texts[i])
            errors += edit_distance(truth, normalised(h.text))
            length += len(truth)
        found[condition.key] = {"errors": errors, "length": length}
    return found


def emotion(
    listen: Listen,
    separate: Separate,
    punctuate: Punctuate | None,
    judge: Judge,
    clips: Inputs,
    condition: Condition,
    most: int,
) -> dict[str, Any]:
    """Classes of a split's clips under a condition, whatever the rule would choose.

    Returns:
        truth [n]; given [n], the class from the noisy sound with the true words; heard [n][3], the
        classes from the noisy sound and from each source, with the words recognised in it; texts
        [n][3], those words.
    """
    marked = punctuate or (lambda text: text)
    rows = judged_clips(clips, most)
    out: dict[str, Any] = {"truth": [], "given": [], "heard": [], "texts": []}
    for i in rows:
        crops = clips.arrays["crops"][i, : int(clips.arrays["face_count"][i, 0])]
        wave = sound(clips, i, condition)
        passage = pass_through(wave, listen, separate)
        classes = [
            judge(crops, each, marked(text) if text else "")
            for each, text in zip(passage.sounds, passage.texts, strict=True)
        ]
        out["truth"].append(int(clips.labels[i]))
        out["given"].append(judge(crops, wave, clips.texts[i]))
        out["heard"].append(classes)
        out["texts"].append(list(passage.texts))
    return out


def cleanness(clips: Inputs, condition: Condition, most: int) -> list[float | None]:
    """How clean the sounds that `emotion` hears seem, in dB; None where there is too little."""
    found = [estimated_snr(sound(clips, i, condition)) for i in judged_clips(clips, most)]
    return [None if level is None else round(level, 3) for level in found]


def sound(clips: Inputs, index: int, condition: Condition) -> Wave:
    """A clip's sound under a condition; other clips of its split babble."""

    def wave(i: int) -> Wave:
        length = int(clips.arrays["waveform_length"][i, 0])
        return np.asarray(clips.arrays["waveform"][i, :length], np.float32)

    def other(number: int) -> Wave:
        return wave(number + (number >= index))

    return under(condition, wave(index), clips.names[index], other, len(clips) - 1)
