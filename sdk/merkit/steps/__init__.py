"""Python steps: the ones that need codecs, detectors and tokenisers (design 3).

Each is one class, found here by the step's name; the embedded executor and a server's few
generic lines both call it so: `REGISTRY[name](contract, resources)(tensors)`.
"""

from __future__ import annotations

from collections.abc import Mapping

from merkit.steps.base import Step
from merkit.steps.decode import Decode, decoded_tensors
from merkit.steps.faces import FindFaces, face_tensors
from merkit.steps.listen import Listen
from merkit.steps.tokenize import Tokenize
from merkit.steps.transcribe import Transcribe

REGISTRY: Mapping[str, type[Step]] = {
    step.name: step for step in (Decode, FindFaces, Listen, Transcribe, Tokenize)
}
"""Step class by the step's name in the contract."""

__all__ = [
    "REGISTRY",
    "Decode",
    "FindFaces",
    "Listen",
    "Step",
    "Tokenize",
    "Transcribe",
    "decoded_tensors",
    "face_tensors",
]
