"""What a prediction holds, and how it is read out of a backend's tensors.

Backends answer in arrays; were each caller to index them, labels, voters and modalities would be
matched up in a dozen places. Here it happens once, for the embedded and the served pipeline alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merkit.contract import MODALITIES, Contract
from merkit.errors import ContractMismatchError, InferenceError, NoEvidenceError
from merkit.hearing import Heard
from merkit.media import MediaInfo
from merkit.pipeline import GROUP_MODALITIES

Array = NDArray[Any]


@dataclass(frozen=True)
class Vote:
    """What one branch said: its label, and its calibrated probability for each label."""

    label: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Face:
    """A face that was read: when (seconds), where (x, y, width, height in pixels of the source),
    and how sure the detector was (0 to 1)."""

    time: float
    box: tuple[float, float, float, float]
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """The answer for one clip.

    Attributes:
        source: the clip's path, or what stands for it.
        label: the emotion that won the vote.
        scores: for each label, the mean over the branches that voted for the winner; sums to 1.
        votes: for each branch in rank order its vote, or None where it cast none: it abstained,
            because nothing of what it reads was there, or it was not asked.
        modalities: what was used, in the order video, audio, text.
        contributions: for each used modality its share in the decision; sums to 1.
        transcript: the words that were used, if any: the caller's, or those that were recognised.
        hearing: how the words came about and what is wrong with the sound; None without sound, and
            where the bundle does not hear or was asked not to.
        faces: the faces that were read, in time order.
        timings_ms: milliseconds by step; `total` is the whole call.
        bundle: identities: `contract_id`, `bundle_id`, `backend` and the like.
        not_asked: with lazy voting, the branches whose votes could no longer change the label.
        warnings: what the caller should know about this clip.
        picture: width and height of the source's picture in pixels, None without one.
        frames: for reports, frames in which faces were found, uint8 [h, w, 3] RGB by time, not
            larger than the picture; empty unless decoded in this process and asked for.

    `picture` and `frames` are no part of `to_json`.
    """

    source: str
    label: str
    scores: Mapping[str, float]
    votes: Mapping[str, Vote | None]
    modalities: tuple[str, ...]
    contributions: Mapping[str, float]
    transcript: str | None
    faces: tuple[Face, ...]
    timings_ms: Mapping[str, float]
    bundle: Mapping[str, str]
    not_asked: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    hearing: Heard | None = None
    picture: tuple[int, int] | None = None
    frames: Mapping[float, Array] = field(default_factory=dict, repr=False, compare=False)

    @property
    def confident(self) -> bool | None:
        """Whether the winner's score reaches the bundle's threshold; None where it has none.

        The label stands either way: who would rather have no answer than a doubtful one asks.
        """
        least = self.bundle.get("confident_from")
        return None if least is None else self.scores[self.label] >= float(least)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for one line of JSON."""
        return {
            "source": self.source,
            "label": self.label,
            "confident": self.confident,
            "scores": dict(self.scores),
            "votes": {
                name: vote and {"label": vote.label, "scores": dict(vote.scores)}
                for name, vote in self.votes.items()
            },
            "modalities": list(self.modalities),
            "contributions": dict(self.contributions),
            "transcript": self.transcript,
            "hearing": self.hearing and self.hearing.to_json(),
            "faces": [
                {"time": f.time, "box": list(f.box), "confidence": f.confidence} for f in self.faces
            ],
            "timings_ms": {name: round(ms, 3) for name, ms in self.timings_ms.items()},
            "bundle": dict(self.bundle),
            "not_asked": list(self.not_asked),
            "warnings": list(self.warnings),
        }

    @staticmethod
    def from_outputs(
        outputs: Mapping[str, Array],
        contract: Contract,
        *,
        source: str,
        transcript: str | None = None,
        timings_ms: Mapping[str, float] | None = None,
        bundle: Mapping[str, str] | None = None,
        frames: Mapping[float, Array] | None = None,
    ) -> Prediction:
        """Reads the first row of `pipeline.OUTCOME`, and of `pipeline.DETAIL` and `pipeline.HEARD`
        what there is; `transcript` is the caller's, where nothing says which words were used.

        Raises:
            ContractMismatchError: the answer was computed under another contract.
            NoEvidenceError: nothing to judge was present.
            InferenceError: scores that are not finite, tensors of an unexpected shape, or a
                malformed `hearing`.
        """
        check_contract(outputs, contract)
        row = {name: value[0] for name, value in outputs.items() if len(value)}
        info = MediaInfo.from_json(row["media_info"][0]) if "media_info" in row else MediaInfo()
        present = [m for m, there in zip(MODALITIES, row["presence"], strict=True) if there]
        winner = int(row["label"])
        if present:  # first: a branch that failed is not one without evidence
            _check_scores(row, contract)
        if not present or winner < 0:
            raise no_evidence(source, info, transcript)
        hearing = (
            Heard.read(row["hearing"][0]) if {"audio", "hearing"} <= {*present, *row} else None
        )
        if "words" in row:
            transcript = str(row["words"][0])
        votes = {
            voter.name: _vote(scores, contract)
            for voter, scores in zip(contract.voters, row["branch_scores"], strict=True)
        }
        return Prediction(
            source=source,
            label=contract.labels[winner],
            scores=_by_label(row["scores"], contract),
            votes=votes,
            modalities=tuple(present),
            contributions=_contributions(row, contract, present),
            transcript=transcript if "text" in present else None,
            faces=_faces(row, info) if "video" in present else (),
            timings_ms=dict(timings_ms or {}),
            bundle=dict(bundle or {}),
            not_asked=tuple(_not_asked(votes, contract, present)),
            warnings=(
                *info.warnings,
                *_unused(info, present),
                *(hearing.notes() if hearing else ()),
            ),
            hearing=hearing,
            picture=(info.video.width, info.video.height) if info.video else None,
            frames=frames or {},
        )


def no_vote(voter: str, prediction: Prediction) -> str:
    """Why a branch cast no vote, for people to read."""
    if voter in prediction.not_asked:
        return "not asked: its vote could not change the label"
    return "abstained: nothing it reads was there"


def check_contract(outputs: Mapping[str, Array], contract: Contract) -> None:
    """Compares the contract_id that the voting graph emitted with the one agreed on at the start.

    A server behind a load balancer can change between two calls, so every response is checked.
    """
    try:
        found = np.asarray(outputs["contract_id"], np.uint8).reshape(-1, 16)[0].tobytes().hex()
    except (KeyError, ValueError, IndexError):
        found = "(none)"
    if found != contract.contract_id:
        raise ContractMismatchError(
            f"the answer was computed under the contract {found}",
            contract.contract_id,
            "the server may have changed: connect again, or load the bundle that it serves",
        )


def _unused(info: MediaInfo, present: Sequence[str]) -> Iterator[str]:
    """What was there to look at or listen to, and yet held no evidence."""
    if info.video and "video" not in present:
        yield "no face was found in the picture, so it was not used"
    if info.audio and "audio" not in present:
        yield "the sound is silent or too short, so it was not used"


def no_evidence(source: str, info: MediaInfo, transcript: str | None) -> NoEvidenceError:
    """Says for each modality what was looked for and what there was."""
    parts = [
        "video: no face in the frames looked at" if info.video else "video: no picture",
        "audio: only silence, or too little sound" if info.audio else "audio: no sound",
        "text: nothing but blanks" if transcript else "text: none given",
    ]
    return NoEvidenceError(
        f"{source} holds nothing to judge ({'; '.join(parts)})",
        "a face in several frames, audible sound, or words",
        "give another clip, or its transcript as text",
    )


def _check_scores(row: Mapping[str, Array], contract: Contract) -> None:
    classes, voters = len(contract.labels), len(contract.voters)
    shapes = {"scores": (classes,), "branch_scores": (voters, classes)}
    for name, shape in shapes.items():
        if row[name].shape != shape or not np.isfinite(row[name]).all():
            raise InferenceError(
                f"{name} has shape {list(row[name].shape)}"
                + ("" if np.isfinite(row[name]).all() else " and holds NaN or infinity"),
                f"finite numbers of shape {list(shape)}",
                "run merkit verify on the bundle",
            )


def _not_asked(
    votes: Mapping[str, Vote | None], contract: Contract, present: Sequence[str]
) -> Iterator[str]:
    """Branches without a vote although something that they read was there."""
    for voter in contract.voters:
        reads = {m for group in voter.groups for m in GROUP_MODALITIES[group]}
        if votes[voter.name] is None and reads.intersection(present):
            yield voter.name


def _by_label(scores: Array, contract: Contract) -> dict[str, float]:
    return {label: float(score) for label, score in zip(contract.labels, scores, strict=True)}


def _vote(scores: Array, contract: Contract) -> Vote | None:
    if not (scores != 0).any():
        return None
    return Vote(contract.labels[int(scores.argmax())], _by_label(scores, contract))


def _contributions(
    row: Mapping[str, Array], contract: Contract, present: list[str]
) -> dict[str, float]:
    """Mean over the branches that voted for the winner; a group's share is split evenly between
    those of its modalities that are present."""
    scores = row["branch_scores"]
    agree = (scores.argmax(axis=1) == int(row["label"])) & (scores != 0).any(axis=1)
    shares = row["branch_contributions"][agree].mean(axis=0, dtype=np.float64)
    totals = dict.fromkeys(present, 0.0)
    for group, share in zip(contract.groups, shares, strict=True):
        sources = [m for m in GROUP_MODALITIES[group] if m in present]
        for modality in sources:
            totals[modality] += float(share) / len(sources)
    whole = sum(totals.values())
    even = 1 / len(present)
    return {m: value / whole if whole > 0 else even for m, value in totals.items()}


def _faces(row: Mapping[str, Array], info: MediaInfo) -> tuple[Face, ...]:
    if "face_boxes" not in row:
        return ()
    boxes = info.in_pixels(row["face_boxes"]).round(1)
    return tuple(
        Face(float(time), (float(x), float(y), float(w), float(h)), float(confidence))
        for (x, y, w, h), time, confidence in zip(
            boxes, row["face_times"], row["face_confidence"], strict=True
        )
    )
