"""What a pipeline that hears says about a sound beside its words.

A transcript alone looks the same whether somebody gave it, the recogniser was sure, or nobody spoke
at all. So where it came from, how sure it is and what is wrong with the sound travel with it, as
the JSON tensor `hearing`: one shape, written by the step `transcribe` and read by every client.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from merkit.errors import InferenceError

Origin = Literal["caller", "recognized", "none"]
Source = Literal["original", "source0", "source1"]


@dataclass(frozen=True)
class Heard:
    """How the words of a clip came about, and what was found in its sound.

    Attributes:
        origin: who wrote the words: the caller, the recogniser, or nobody, as there are none.
        confidence: of recognised words, the geometric mean of their tokens' probabilities.
        source: which sound was listened to: the original, or one of the voices taken from it.
        reason: why that one.
        similarities: of each voice's transcript to the original's, where it was taken apart.
        flags: of `merkit.speech.quality.FLAGS`.
        speech: first and last second of each stretch in which somebody speaks.
        level_dbfs: of the sound, in dB below full scale; None where there is no sound.
        warnings: what did not work, and what was taken in its place.
    """

    origin: Origin
    confidence: float | None = None
    source: Source = "original"
    reason: str = ""
    similarities: tuple[float, ...] | None = None
    flags: tuple[str, ...] = ()
    speech: tuple[tuple[float, float], ...] = ()
    level_dbfs: float | None = None
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {
            "similarities": None if self.similarities is None else list(self.similarities),
            "flags": list(self.flags),
            "speech": [list(span) for span in self.speech],
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """One line of JSON, without NaN; what `read` takes."""
        return json.dumps(self.to_json(), ensure_ascii=True, allow_nan=False)

    @staticmethod
    def read(text: str | bytes) -> Heard:
        """Reads what `text` wrote; InferenceError for anything else."""
        try:
            return _parse(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InferenceError(
                f"the tensor 'hearing' is malformed ({type(error).__name__}: {error})",
                "the JSON that the step 'transcribe' writes",
                "check that client and server run the same version of merkit",
            ) from None

    def notes(self) -> Iterator[str]:
        """Flags and warnings in words, for who asked for the clip."""
        unheard = "so no words were recognised"
        if "no_speech" in self.flags:
            without = self.origin == "caller"
            yield "nobody speaks in the sound" + ("" if without else f", {unheard}")
        elif "too_quiet" in self.flags:
            yield f"the sound is very quiet ({self.level_dbfs or 0:.0f} dBFS)" + (
                f", {unheard}" if self.origin == "none" else ""
            )
        elif self.origin == "none":
            yield "somebody seems to speak, but no words were recognised"
        if "clipped" in self.flags:
            yield "the sound is clipped: it was recorded too loud, and what it says is less sure"
        if "dc_offset" in self.flags:
            yield "the sound is not centred on zero (DC offset), so its level is misleading"
        if "not_finite" in self.flags:
            yield "the sound holds samples that are no numbers; they count as silence"
        yield from self.warnings


def _parse(value: Mapping[str, Any]) -> Heard:
    origin, source, similarities = value["origin"], value["source"], value["similarities"]
    if origin not in get_args(Origin) or source not in get_args(Source):
        raise ValueError(f"origin {origin!r} and source {source!r}")
    confidence = value["confidence"]
    if confidence is not None and not 0 <= confidence <= 1:
        raise ValueError(f"a confidence of {confidence!r}")
    return Heard(
        origin,
        None if confidence is None else float(confidence),
        source,
        _string(value["reason"]),
        None if similarities is None else tuple(map(_finite, similarities)),
        tuple(map(_string, value["flags"])),
        tuple((_finite(begin), _finite(end)) for begin, end in value["speech"]),
        None if value["level_dbfs"] is None else _finite(value["level_dbfs"]),
        tuple(map(_string, value["warnings"])),
    )


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _finite(value: Any) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return float(value)
