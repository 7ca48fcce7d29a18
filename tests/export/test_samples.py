"""The made-up clips reach the corners they are meant to reach."""

from __future__ import annotations

import numpy as np

from merkit.pipeline import DECODED_IN, GROUPS, standard_contract
from merkit_export import samples

CONTRACT = standard_contract(("a", "b"), dict.fromkeys(GROUPS, 8))
P = CONTRACT.preprocessing


def test_example_has_no_size_that_torch_takes_for_a_constant() -> None:
    batch = samples.example(CONTRACT)
    faces, length = batch["face_crops"].shape[1], batch["waveform"].shape[1]
    assert set(batch) == set(DECODED_IN)
    assert len({len(batch["text"]), faces, length}) == 3
    assert min(len(batch["text"]), faces) > 1
    assert length > P.min_audio_seconds * P.sample_rate


def test_patterns_are_all_eight() -> None:
    for clips in (samples.smallest(CONTRACT), samples.usual(CONTRACT)):
        found = {
            (c["face_count"].item() > 0, c["waveform_length"].item() > 0, c["text"].item() != "")
            for c in clips
        }
        assert len(found) == 8


def test_largest_reaches_the_contracts_limits() -> None:
    clip = samples.largest(CONTRACT)
    assert clip["face_crops"].shape[1] == P.frames_per_clip
    assert clip["waveform"].shape[1] == P.max_audio_seconds * P.sample_rate
    assert len(clip["text"].item().split()) == P.max_text_tokens


def test_collate_pads_on_the_right_with_zeros() -> None:
    clips = [samples.clip(P, 1, 0.2, 2), samples.clip(P, 3, 0.5, 0)]
    batch = samples.collate(clips)
    assert batch["face_crops"].shape[:2] == (2, 3)
    for row, clip in enumerate(clips):
        length = clip["waveform"].shape[1]
        assert np.array_equal(batch["waveform"][row, :length], clip["waveform"][0])
        assert not batch["waveform"][row, length:].any()
        assert not batch["face_crops"][row, clip["face_count"].item() :].any()
        assert batch["text"][row, 0] == clip["text"].item()
