"""The pipeline as data, and the one function that cuts entry points out of it.

Were each entry point (whole clip, decoded tensors, features) written by hand, they would drift
apart. So the pipeline is one DAG of steps (design 3), and every ensemble, client path and edge
split is a cut through it: name what comes in and what is wanted out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from merkit.contract import (
    CONTRACT_ID_BYTES,
    MODALITIES,
    Contract,
    Hearing,
    Preprocessing,
    Ragged,
    StepSpec,
    TensorSpec,
    Voter,
)
from merkit.errors import InvalidInputError

GROUPS = {
    "a": "audio_features",
    "t": "text_features",
    "v": "face_features",
    "j": "joint_features",
    "V": "face_features_large",
}
"""Feature groups by the seed's letters (2.1); `V` is InternViT's."""

GROUP_MODALITIES = {
    "a": ("audio",),
    "t": ("text",),
    "v": ("video",),
    "j": ("audio", "text"),
    "V": ("video",),
}
"""A group is present when any of its modalities is."""

SEED_VOTERS = (
    Voter("a+t+v", ("a", "t", "v")),  # eq. 1
    Voter("a+v+j", ("a", "v", "j")),  # eq. 2
    Voter("t+v+j", ("t", "v", "j")),  # eq. 3
    Voter("t+V+j", ("t", "V", "j")),  # the seed leaves its fourth branch open (eq. 7)
)

BYTES_IN = ("clip", "text")
DECODED_IN = ("face_crops", "face_count", "waveform", "waveform_length", "text")
OUTCOME = ("label", "scores", "contract_id", "branch_scores", "branch_contributions", "presence")
HEARD = ("words", "hearing")
"""What a pipeline that hears says beside its outcome: the text that was used, and JSON on how it
came about (`merkit.hearing.Heard`), which means something where there is sound."""
DETAIL = ("face_boxes", "face_times", "face_confidence", "media_info")
MODALITY_IN = {
    "audio": ("waveform", "waveform_length"),
    "text": ("text",),
    "video": ("face_crops", "face_count"),
}
"""The tensors of `DECODED_IN` by modality, in the order of the entry points' letters."""


OF_SOUND = (
    "speech", "speech_length", "mixture_length", "quality", "sources", "token_logs", "token_count",
    "cleaned",
)  # fmt: skip
"""Tensors of the chain that a clip without sound has nothing of."""
OF_WORDS = ("transcript", "word_ids", "word_count", "mark_scores")
"""Tensors of the chain where no words are wanted: the caller asks not to be listened to."""


@dataclass(frozen=True)
class Chain:
    """Which parts the chain in front of the encoders has (seed 2.4), and their sizes."""

    hearing: Hearing
    tokens: int  # of the recogniser's vocabulary
    separated: bool = False  # whether sounds are taken apart, and their sources recognised, too
    marks: int = 0  # classes of the punctuator; 0 without one


@dataclass(frozen=True)
class EntryPoint:
    """A way into the pipeline: what comes in, what is wanted out, and what no clip has there.

    Tensors of the `absent` modalities, and features of groups of which no modality is left, are
    constants: what would have made them is pruned.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cut:
    """What lies between an entry point's ends: steps in an order in which they can run, and the
    constants that they read."""

    steps: tuple[StepSpec, ...]
    constants: tuple[str, ...]


def standard_contract(
    labels: Sequence[str],
    widths: Mapping[str, int],
    preprocessing: Preprocessing | None = None,
    voters: Sequence[Voter] = SEED_VOTERS,
    chain: Chain | None = None,
) -> Contract:
    """The seed's pipeline.

    Args:
        labels: class names in the order of every score axis.
        widths: feature width of each group in `GROUPS`.
        preprocessing: constants; the defaults are the tiny profile's.
        voters: branches in rank order, best first.
        chain: what hears through noise and writes the transcript; without it the caller does.
    """
    p = preprocessing or Preprocessing()
    size, side = p.face_size, p.face_size * p.grid
    mel_frames = round(p.joint_window_seconds * 100)
    classes, votes, groups = len(labels), len(voters), len(GROUPS)

    def tensor(dtype: str, *shape: int | str) -> TensorSpec:
        return TensorSpec(dtype, ("batch", *shape))  # type: ignore[arg-type]

    tensors = {
        "clip": tensor("uint8", "bytes"),
        "text": tensor("string", 1),
        "frames": tensor("uint8", "frames", "height", "width", 3),
        "frame_times": tensor("float32", "frames"),
        "waveform": tensor("float32", "samples"),
        "waveform_length": tensor("int64", 1),
        "media_info": tensor("string", 1),
        "face_crops": tensor("uint8", "faces", size, size, 3),
        "face_count": tensor("int64", 1),
        "face_boxes": tensor("float32", "faces", 4),
        "face_times": tensor("float32", "faces"),
        "face_confidence": tensor("float32", "faces"),
        "text_ids": tensor("int64", "tokens"),
        "text_length": tensor("int64", 1),
        "joint_ids": tensor("int64", "joint_tokens"),
        "joint_length": tensor("int64", 1),
        "face_grid": tensor("float32", 3, side, side),
        "audio_values": tensor("float32", "audio_samples"),
        "audio_length": tensor("int64", 1),
        "log_mel": tensor("float32", p.mel_bins, mel_frames),
        "presence": tensor("bool", len(MODALITIES)),
        **{GROUPS[g]: tensor("float32", widths[g]) for g in GROUPS},
        "branch_scores": tensor("float32", votes, classes),
        "branch_contributions": tensor("float32", votes, groups),
        "label": tensor("int64"),
        "scores": tensor("float32", classes),
        "contract_id": tensor("uint8", CONTRACT_ID_BYTES),
    }
    audio = ("waveform", "waveform_length")
    faces = ("face_crops", "face_count", "face_boxes", "face_times", "face_confidence")
    ids = ("text_ids", "text_length", "joint_ids", "joint_length")
    made = ("face_grid", "audio_values", "audio_length", "log_mel", "presence")
    sound_or_words = ("log_mel", "joint_ids", "joint_length", "presence")
    features = (*(GROUPS[g] for g in GROUPS), "presence")
    sounds, texts, both = ((Ragged(*pair),) for pair in (made[1:3], ids[:2], ids[2:]))
    hears, heard = chain_steps(chain, audio, ids) if chain else ((), {})
    words = hears or (StepSpec("tokenize", "python", ("text",), ids),)
    cleaned = ("cleaned",) if chain and chain.hearing.cleans else ()
    steps = (
        StepSpec("decode", "python", ("clip",), ("frames", "frame_times", *audio, "media_info")),
        StepSpec("faces", "python", ("frames", "frame_times"), faces),
        *words,
        StepSpec("preprocess", "onnx", (*faces[:2], *audio, "text_length", *cleaned), made),
        StepSpec("face_encoder", "onnx", ("face_grid",), ("face_features",), ("video",)),
        StepSpec("face_encoder_large", "onnx", ("face_grid",), (GROUPS["V"],), ("video",)),
        StepSpec("audio_encoder", "onnx", made[1:3], ("audio_features",), ("audio",), sounds),
        StepSpec("text_encoder", "onnx", ids[:2], ("text_features",), ("text",), texts),
        StepSpec("joint_encoder", "onnx", sound_or_words, (GROUPS["j"],), ("audio", "text"), both),
        StepSpec("fusion", "onnx", features, ("branch_scores", "branch_contributions")),
        StepSpec("voting", "onnx", ("branch_scores",), ("label", "scores", "contract_id")),
    )
    hearing = chain.hearing if chain else None
    tensors |= heard
    return Contract(tuple(labels), tuple(voters), tuple(GROUPS), p, tensors, steps, hearing)


def chain_steps(
    chain: Chain, audio: tuple[str, ...], ids: tuple[str, ...]
) -> tuple[tuple[StepSpec, ...], dict[str, TensorSpec]]:
    """The steps from sound and the caller's text to token ids (seed 2.4, 2.3), and their tensors.

    `listen` gives the chain no sound where it has nothing to find out: the caller gave the words,
    nobody speaks, or the sound is clean; its graphs then run over nothing, or not at all
    (`merkit.presence.nothing`).
    """
    sounds = 3 if chain.separated else 1  # the original first, then its sources
    speech = ("speech", "speech_length")
    mixture = ("mixture_length",) if chain.separated else ()
    sources = ("sources",) if chain.separated else ()
    marked = ("word_ids", "word_count") if chain.marks else ()
    scores = ("mark_scores", "word_count") if chain.marks else ()
    cleaned = ("cleaned",) if chain.hearing.cleans else ()
    tokens = ("token_logs", "token_count")
    if cleaned and not sources:
        raise ValueError("encoders hear cleaned sound, and there is no separator to clean it")
    said = ("text", *tokens, "quality", *(("waveform", *sources) if cleaned else ()))
    steps = [
        StepSpec("listen", "python", (*audio, "text"), (*speech, *mixture, "quality")),
        StepSpec("recognize", "onnx", (*speech, *sources, *mixture), tokens),
        StepSpec("transcribe", "python", said, ("transcript", "hearing", *marked, *cleaned)),
        StepSpec("tokenize", "python", ("transcript", *scores), (*ids, "words")),
    ]
    if chain.marks:
        steps.insert(3, StepSpec("punctuate", "onnx", marked, ("mark_scores",)))
    if chain.separated:
        steps.insert(1, StepSpec("separate", "onnx", ("speech", *mixture), sources))
    known = {
        "speech": TensorSpec("float32", ("batch", "speech_samples")),
        "speech_length": TensorSpec("int64", ("batch", 1)),
        "mixture_length": TensorSpec("int64", ("batch", 1)),
        "quality": TensorSpec("string", ("batch", 1)),
        "sources": TensorSpec("float32", ("batch", 2, "speech_samples")),
        "token_logs": TensorSpec("float32", ("batch", sounds, "said", chain.tokens)),
        "token_count": TensorSpec("int64", ("batch", sounds)),
        "transcript": TensorSpec("string", ("batch", 1)),
        "hearing": TensorSpec("string", ("batch", 1)),
        "word_ids": TensorSpec("int64", ("batch", "words_said")),
        "word_count": TensorSpec("int64", ("batch", 1)),
        "mark_scores": TensorSpec("float32", ("batch", "words_said", chain.marks)),
        "cleaned": TensorSpec("float32", ("batch", "samples")),
        "words": TensorSpec("string", ("batch", 1)),
    }
    named = {name for step in steps for name in (*step.inputs, *step.outputs)}
    return tuple(steps), {name: spec for name, spec in known.items() if name in named}


def cut(
    steps: Sequence[StepSpec], inputs: Collection[str], outputs: Collection[str]
) -> tuple[StepSpec, ...]:
    """The steps that lie between `inputs` and `outputs`, in an order in which they can run.

    A step is kept when something wanted depends on it and is not given. Raises
    InvalidInputError when an output cannot be reached from the inputs.
    """
    makers = {name: step for step in steps for name in step.outputs}
    kept: list[StepSpec] = []
    open_names: set[str] = set()

    def need(name: str) -> None:
        if name in inputs or makers.get(name) in kept:
            return
        step = makers.get(name)
        if step is None or name in open_names:
            raise InvalidInputError(
                f"the tensor {name!r} is neither given nor made by a step",
                f"inputs from which {sorted(outputs)} can be computed",
                f"give {name!r}, or a tensor before it, beside {sorted(inputs)}",
            )
        open_names.add(name)
        for wanted in step.inputs:
            need(wanted)
        open_names.discard(name)
        kept.append(step)

    for name in outputs:
        need(name)
    return tuple(kept)


def prune(contract: Contract, entry: EntryPoint) -> Cut:
    """The one function that cuts every entry point; errors as `cut`."""
    absent = absent_tensors(contract, entry.absent) - set(entry.inputs)
    steps = cut(contract.steps, absent | set(entry.inputs), entry.outputs)
    read = {name for step in steps for name in step.inputs}
    return Cut(steps, tuple(name for name in contract.tensors if name in absent & read))


def absent_tensors(contract: Contract, modalities: Collection[str]) -> set[str]:
    """Tensors that hold nothing of a clip without `modalities`."""
    found = {name for modality in modalities for name in MODALITY_IN[modality]}
    if "text" in modalities:
        found |= {"text_length", *(contract.tensors.keys() & OF_WORDS)}
    if "audio" in modalities:
        found |= contract.tensors.keys() & OF_SOUND
    groups = [g for g in contract.groups if set(GROUP_MODALITIES[g]) <= set(modalities)]
    return found | {GROUPS[group] for group in groups}


def subset_name(modalities: Collection[str]) -> str:
    """The entry point for decoded clips with just these modalities: `merkit_at`, say."""
    return "merkit_" + "".join(m[0] for m in MODALITY_IN if m in modalities)


def entry_points(contract: Contract) -> dict[str, EntryPoint]:
    """The ways into the pipeline that every repository offers, by name.

    Bytes; decoded tensors of each subset of the modalities; all features; and features of the
    face beside sound and words, for a device that keeps faces to itself.
    """
    (fusion,) = (step for step in contract.steps if "branch_scores" in step.outputs)
    made = tuple(name for name in OUTCOME if name != "presence")
    said = HEARD if contract.hearing else ()
    of_face = [GROUPS[g] for g in contract.groups if GROUP_MODALITIES[g] == ("video",)]
    heard = (*MODALITY_IN["audio"], *MODALITY_IN["text"])
    found = [EntryPoint("merkit", BYTES_IN, OUTCOME + DETAIL + said)]
    for count in (1, 2, 3):
        for present in combinations(MODALITY_IN, count):
            inputs = {name for modality in present for name in MODALITY_IN[modality]}
            ordered = tuple(name for name in DECODED_IN if name in inputs)
            absent = tuple(m for m in MODALITY_IN if m not in present)
            outputs = OUTCOME + (said if "text" in present else ())
            found.append(EntryPoint(subset_name(present), ordered, outputs, absent))
    found.append(EntryPoint("merkit_features", fusion.inputs, made))
    edge = (*of_face, "presence", *heard)
    found.append(EntryPoint("merkit_edge", edge, made + said, ("video",)))
    return {entry.name: entry for entry in found}


def views(contract: Contract) -> dict[str, EntryPoint]:
    """Single modalities, decoded, to their features: `merkit_view_a`, `_t` and `_v`."""
    found = {}
    for modality, inputs in MODALITY_IN.items():
        groups = [g for g in contract.groups if GROUP_MODALITIES[g] == (modality,)]
        absent = tuple(m for m in MODALITY_IN if m != modality)
        outputs = (*(GROUPS[g] for g in groups), "presence")
        name = f"merkit_view_{modality[0]}"
        found[name] = EntryPoint(name, inputs, outputs, absent)
    return found
