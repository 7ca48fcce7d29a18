"""The contract: what a client and a pipeline must agree on, and how it is hashed.

If labels, tensors or preprocessing constants differed between the two sides of a wire, every
answer would still look like one. So they live in one frozen value, whose hash (`contract_id`)
stands in every model file, every rendered config and every response.

Only the standard library is imported here: a thin client reads a contract without numpy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from merkit.errors import BundleCorruptError

SCHEMA_VERSION = 1
CONTRACT_ID_BYTES = 16
MODALITIES = ("video", "audio", "text")
"""Order of the columns of `presence`. `video` means: a face to read was found."""

DType = Literal["uint8", "int32", "int64", "float32", "bool", "string"]
DTYPES: tuple[str, ...] = get_args(DType)


@dataclass(frozen=True)
class TensorSpec:
    """A named tensor. `shape` lists sizes; a string is a dynamic dimension's name, and the
    first dimension is always `batch`."""

    dtype: DType
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Ragged:
    """An input of a step whose graph takes the rows of a batch end to end; see `merkit.ragged`.

    On every wire it is [batch, n], padded; `length`, int64 [batch, 1], says how much is real.
    """

    values: str
    length: str


@dataclass(frozen=True)
class StepSpec:
    """A step of the pipeline: reads and writes tensors by name.

    `needs` lists the modalities of which at least one must be present for the step to be worth
    running; empty means always. An executor that knows none is present may write zeros instead:
    fusion masks what absent modalities produced. `ragged` names the inputs that the step's graph
    takes without padding.
    """

    name: str
    kind: Literal["python", "onnx"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    ragged: tuple[Ragged, ...] = ()


_COUNTS = (
    "sample_rate",
    "frames_per_clip",
    "max_frame_side",
    "face_size",
    "grid",
    "min_face_detections",
    "mel_bins",
    "max_text_tokens",
)
"""Constants of `Preprocessing` that are whole numbers of things, at least one."""


@dataclass(frozen=True)
class Preprocessing:
    """Constants that turn media into model inputs. All are part of the contract's hash."""

    sample_rate: int = 16_000  # Hz
    frames_per_clip: int = 8  # frames sampled evenly over the clip's duration
    max_frame_side: int = 640  # sampled frames are scaled down to this longer side, in pixels
    face_size: int = 64  # side of a face crop, in pixels
    face_margin: float = 0.0  # the crop's box is the detector's, grown by this share of its side
    grid: int = 2  # a face grid has grid x grid tiles, in time order, row by row
    face_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # RGB in 0..1
    face_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_face_detections: int = 2  # fewer detections in one track of a video are stray
    max_audio_seconds: float = 20.0  # of longer sound, the middle
    min_audio_seconds: float = 0.1  # shorter sound counts as absent
    silence_dbfs: float = -75.0  # quieter sound (RMS over the clip) counts as absent
    mel_bins: int = 80  # Whisper's log-mel: 25 ms Hann window, 10 ms hop
    joint_window_seconds: float = 4.0  # fixed window of the joint model's audio tower
    max_text_tokens: int = 64  # of longer text, the first
    prompt: str = "What emotion does the speaker feel?"  # precedes the transcript (seed 2.3)

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, not 1 or more")
        for name in ("max_audio_seconds", "joint_window_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not more than 0")
        for name in ("face_margin", "min_audio_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, not 0 or more")
        if not min(self.face_std) > 0:
            raise ValueError(f"face_std is {self.face_std}, not more than 0")


Heard = Literal["original", "cleaned"]


@dataclass(frozen=True)
class Hearing:
    """How the chain that hears through noise decides (seed 2.4), and who hears what it cleaned."""

    beam: int = 8  # transcripts that are considered for each sound
    language_weight: float = 0.0  # of the language model beside the sound, where there is one
    language_bonus: float = 0.0  # for each token
    threshold: float = 0.1  # by which similarities must differ for a source to be taken (2.4.2)
    measure: str = "cer"  # of `merkit.speech.select.MEASURES`
    clean_from_db: float | None = None  # sound estimated cleaner than this is not separated
    audio_hears: Heard = "original"  # what the audio encoder hears
    joint_hears: Heard = "original"  # and the joint one

    def __post_init__(self) -> None:
        if self.beam < 1:
            raise ValueError(f"beam is {self.beam}, not 1 or more")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}, not 0 to 1")
        for name in ("audio_hears", "joint_hears"):
            if getattr(self, name) not in get_args(Heard):
                raise ValueError(f"{name} is {getattr(self, name)!r}, none of {get_args(Heard)}")

    @property
    def cleans(self) -> bool:
        """Whether any encoder hears cleaned sound."""
        return "cleaned" in (self.audio_hears, self.joint_hears)


@dataclass(frozen=True)
class Voter:
    """A fusion branch: a named group of features that casts one vote (seed 2.1, 2.5)."""

    name: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Contract:
    """Labels in order, voters in rank order, preprocessing, tensors, steps.

    `steps` say how the pipeline computes and are not part of `contract_id`; the rest is.
    """

    labels: tuple[str, ...]
    voters: tuple[Voter, ...]
    groups: tuple[str, ...]
    preprocessing: Preprocessing
    tensors: Mapping[str, TensorSpec]
    steps: tuple[StepSpec, ...]
    hearing: Hearing | None = None  # of a pipeline that writes its own transcripts

    @property
    def contract_id(self) -> str:
        """32 hexadecimal digits: the identity that both sides of a wire compare."""
        agreed = self.to_json()
        del agreed["steps"]
        return hashlib.sha256(canonical(agreed)).hexdigest()[: 2 * CONTRACT_ID_BYTES]

    def step(self, name: str) -> StepSpec:
        """The step called `name`; KeyError if there is none."""
        return {step.name: step for step in self.steps}[name]

    def to_json(self) -> dict[str, Any]:
        """Plain values for `bundle.json` and for a server's parameters."""
        plain = asdict(self)
        plain["tensors"] = {name: asdict(spec) for name, spec in self.tensors.items()}
        if self.hearing is None:
            del plain["hearing"]  # so that bundles without it keep their identity
        loaded: dict[str, Any] = json.loads(json.dumps(plain))
        return loaded

    @staticmethod
    def from_json(value: object, where: str = "bundle.json") -> Contract:
        """Reads what `to_json` wrote; BundleCorruptError names the first thing that is wrong."""
        try:
            return _parse(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleCorruptError(
                f"the contract in {where} is malformed ({type(error).__name__}: {error})",
                f"a contract of schema {SCHEMA_VERSION}",
                "export the bundle again, or fetch an unchanged copy",
            ) from None


def canonical(value: object) -> bytes:
    """Bytes that are equal exactly when two plain values are: sorted keys, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return text.encode("ascii")


def _parse(value: Any) -> Contract:
    names = _strings(value["labels"])
    if len(names) < 2 or len(set(names)) != len(names):
        raise ValueError(f"labels are {names}")
    tensors = {str(name): _tensor(spec) for name, spec in value["tensors"].items()}
    steps = tuple(_step(s, tensors) for s in value["steps"])
    groups = _strings(value["groups"])
    voters = tuple(Voter(str(v["name"]), _strings(v["groups"])) for v in value["voters"])
    for voter in voters:
        if not voter.groups or not set(voter.groups) <= set(groups):
            raise ValueError(f"voter {voter.name!r} reads {voter.groups}, known are {groups}")
    return Contract(
        names, voters, groups, _preprocessing(value["preprocessing"]), tensors, steps,
        _hearing(value.get("hearing")),
    )  # fmt: skip


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise TypeError(f"{value!r} is not a list of strings")
    return tuple(value)


def _tensor(value: Any) -> TensorSpec:
    if value["dtype"] not in DTYPES:
        raise ValueError(f"dtype {value['dtype']!r} is none of {DTYPES}")
    shape = tuple(value["shape"])
    if not shape or shape[0] != "batch" or not all(isinstance(d, int | str) for d in shape):
        raise ValueError(f"shape {shape} does not start with 'batch'")
    return TensorSpec(value["dtype"], shape)


def _step(value: Any, tensors: Mapping[str, TensorSpec]) -> StepSpec:
    step = StepSpec(
        str(value["name"]),
        value["kind"],
        _strings(value["inputs"]),
        _strings(value["outputs"]),
        _strings(value["needs"]),
        tuple(Ragged(str(r["values"]), str(r["length"])) for r in value.get("ragged", ())),
    )
    if step.kind not in ("python", "onnx"):
        raise ValueError(f"step {step.name!r} has kind {step.kind!r}")
    if unknown := {*step.inputs, *step.outputs} - set(tensors):
        raise ValueError(f"step {step.name!r} names unknown tensors {sorted(unknown)}")
    if odd := {n for r in step.ragged for n in (r.values, r.length)} - set(step.inputs):
        raise ValueError(f"step {step.name!r} does not read its ragged {sorted(odd)}")
    if not set(step.needs) <= set(MODALITIES):
        raise ValueError(f"step {step.name!r} needs {step.needs}, known are {MODALITIES}")
    return step


def _preprocessing(value: Any) -> Preprocessing:
    return Preprocessing(**_constants(value, Preprocessing, "preprocessing"))


def _hearing(value: Any) -> Hearing | None:
    return None if value is None else Hearing(**_constants(value, Hearing, "hearing"))


def _constants(value: Any, kind: type[Any], where: str) -> dict[str, Any]:
    known = {f.name: f.default for f in fields(kind)}
    if set(value) != set(known):
        raise ValueError(f"{where} keys differ: {sorted(set(value) ^ set(known))}")
    for name, default in known.items():
        if not _alike(value[name], default):
            raise TypeError(f"{where}.{name} is {value[name]!r}")
    return {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}


def _alike(value: object, default: object) -> bool:
    """Whether a value read from JSON has the type of the constant's default."""
    if isinstance(default, tuple):
        if not isinstance(value, list) or len(value) != len(default):
            return False
        return all(map(_alike, value, default))
    if default is None and value is None:
        return True
    if isinstance(default, float | None):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)
