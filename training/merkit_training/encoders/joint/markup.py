"""Qwen-Audio's special tokens, which follow Qwen's own in its vocabulary.

Its vocabulary file lists ranks alone; the tokens for sound, tasks and languages are made up in the
code beside it, in an order that decides their ids. A prompt that uses them needs that order.
"""

from __future__ import annotations

LANGUAGES = ("en", "zh", "de", "es", "ko", "fr", "ja", "it", "zh_tr")
HUNDREDTHS = 3001  # time stamps of 0.00 to 30.00 s
MIDI = 128

QWEN_AUDIO_SPECIAL = (
    "[[[AUDIO:modality]]]",
    *(f"<|{name}|>" for name in (
        "startoftranscript", "startofanalysis", "translate", "transcribe", "caption", "keyword",
        "unknown", *LANGUAGES, "notimestamps", "sil", "timestamps",
        *(f"{i * 0.01:.2f}" for i in range(HUNDREDTHS)),
        "caption_audiocaps", "caption_clotho", "audioset_ontology", "caption_plain", "itn",
        "wo_itn", "startofentityvalue", "endofentityvalue", "startofentitytype",
        "endofentitytype", "named_entity_recognition", "audio_grounding", "startofword",
        "endofword", "delim", "emotion_recognition", "music_description", "note_analysis", "pitch",
        *(f"midi_pitch_{i}" for i in range(MIDI)), "velocity",
        *(f"midi_velocity_{i}" for i in range(MIDI)), "sonic", "instrument", "speaker_meta",
        "song_meta", "question", "answer", "choice", "scene", "event", "vocal_classification",
        "speech_understanding", "scenario", "action", "entities", "speech_edit",
    )),
    "<audio>",
    "</audio>",
)  # fmt: skip
"""In the order of their ids."""
