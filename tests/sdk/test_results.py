"""Reading a prediction out of tensors: names, votes, shares, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import compress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from merkit.errors import ContractMismatchError, InferenceError, NoEvidenceError
from merkit.hearing import Heard
from merkit.media import AudioInfo, MediaInfo, VideoInfo
from merkit.pipeline import GROUPS, standard_contract
from merkit.results import Prediction
from merkit.voting import ranked_mode

CONTRACT = standard_contract(("calm", "tense", "glad"), dict.fromkeys(GROUPS, 4))
VIDEO = VideoInfo("h264", 640, 360, 25.0, 0)
AUDIO = AudioInfo("aac", 48_000, 2, "stereo")
KEYS = {
    "source", "label", "scores", "votes", "modalities", "contributions", "transcript", "faces",
    "timings_ms", "bundle", "not_asked", "warnings", "confident", "hearing",
}  # fmt: skip


def outcome(
    branch_scores: Any, presence: Any = (True, True, True), shares: Any = None, **others: Any
) -> dict[str, np.ndarray]:
    """An outcome as the voting and fusion graphs would give it."""
    table = np.array([branch_scores], np.float32)
    label, scores = ranked_mode(table)
    identity = np.frombuffer(bytes.fromhex(CONTRACT.contract_id), np.uint8)
    default = np.full((1, 4, 5), 0.2)
    return {
        "label": label,
        "scores": scores,
        "contract_id": identity[None],
        "branch_scores": table,
        "branch_contributions": default if shares is None else np.array([shares], np.float32),
        "presence": np.array([presence]),
        **others,
    }


def read(outputs: Mapping[str, Any], **options: Any) -> Prediction:
    return Prediction.from_outputs(outputs, CONTRACT, source="x.mp4", **options)


CALM, TENSE = [0.8, 0.1, 0.1], [0.2, 0.7, 0.1]
SILENT = [0.0, 0.0, 0.0]


def test_votes_scores_and_abstentions_have_their_names() -> None:
    found = read(outcome([CALM, TENSE, SILENT, TENSE]), transcript="words")
    assert found.label == "tense"
    assert list(found.scores) == ["calm", "tense", "glad"]
    assert found.scores["tense"] == pytest.approx(0.7)
    assert list(found.votes) == ["a+t+v", "a+v+j", "t+v+j", "t+V+j"]
    assert found.votes["t+v+j"] is None
    vote = found.votes["a+t+v"]
    assert vote is not None
    assert (vote.label, vote.scores["calm"]) == ("calm", pytest.approx(0.8))
    assert found.transcript == "words"


def test_contributions_average_the_winning_branches_and_split_the_joint_groups_share() -> None:
    # groups a, t, v, j, V; the first branch loses the vote and does not count
    shares = [[1, 0, 0, 0, 0], [0.5, 0, 0.3, 0.2, 0], [0, 0.4, 0.2, 0.4, 0], [0, 0, 0, 0, 0]]
    found = read(outcome([CALM, TENSE, TENSE, SILENT], shares=shares)).contributions
    assert found == pytest.approx({"video": 0.25, "audio": 0.4, "text": 0.35})
    alone = read(outcome([CALM, TENSE, TENSE, SILENT], (True, True, False), shares)).contributions
    assert alone == pytest.approx({"video": 0.25 / 0.8, "audio": 0.55 / 0.8})


@given(
    st.lists(st.lists(st.floats(0, 1, width=32), min_size=5, max_size=5), min_size=4, max_size=4),
    st.lists(st.booleans(), min_size=3, max_size=3).filter(any),
)
def test_contributions_always_sum_to_one(shares: list[list[float]], presence: list[bool]) -> None:
    found = read(outcome([CALM, CALM, TENSE, CALM], presence, shares)).contributions
    assert sum(found.values()) == pytest.approx(1)
    assert all(value >= 0 for value in found.values())
    assert list(found) == list(compress(("video", "audio", "text"), presence))


def test_json_has_exactly_the_documented_keys_and_survives_a_round_trip() -> None:
    plain = read(outcome([CALM, SILENT, CALM, CALM]), bundle={"backend": "x"}).to_json()
    assert set(plain) == KEYS
    assert json.loads(json.dumps(plain)) == plain
    assert plain["votes"]["a+v+j"] is None


def test_faces_come_in_pixels_of_the_source() -> None:
    info = MediaInfo(1.0, "mp4", VIDEO, AUDIO, ("the clip ends early",))
    detail = {
        "face_boxes": np.array([[[0.25, 0.5, 0.1, 0.2]]], np.float32),
        "face_times": np.array([[0.5]], np.float32),
        "face_confidence": np.array([[0.9]], np.float32),
        "media_info": np.array([[info.to_json()]], object),
    }
    found = read(outcome([CALM] * 4, **detail))
    (face,) = found.faces
    assert face.box == pytest.approx((160, 180, 64, 72))
    assert (face.time, face.confidence) == (0.5, pytest.approx(0.9))
    assert found.picture == (640, 360)
    assert found.warnings == ("the clip ends early",)


def test_what_was_there_but_not_used_is_said() -> None:
    info = np.array([[MediaInfo(1.0, "mp4", VIDEO, AUDIO).to_json()]], object)
    words = read(outcome([CALM] * 4, (False, False, True), media_info=info))
    assert any("no face" in w for w in words.warnings)
    assert any("silent" in w for w in words.warnings)
    assert not read(outcome([CALM] * 4, media_info=info)).warnings


@pytest.mark.parametrize(
    ("info", "text", "said"),
    [
        (MediaInfo(), None, "video: no picture; audio: no sound; text: none given"),
        (
            MediaInfo(1, "mp4", VIDEO),
            " ",
            "video: no face in the frames looked at; audio: no sound",
        ),
        (
            MediaInfo(1, "wav", None, AUDIO),
            " ",
            "audio: only silence, or too little sound; text: no",
        ),
    ],
)
def test_no_evidence_says_what_was_looked_for(info: MediaInfo, text: str, said: str) -> None:
    nothing = outcome([SILENT] * 4, (False,) * 3, media_info=np.array([[info.to_json()]], object))
    with pytest.raises(NoEvidenceError) as caught:
        read(nothing, transcript=text)
    assert said in str(caught.value)


def test_a_label_of_nobody_is_no_evidence_whatever_presence_says() -> None:
    with pytest.raises(NoEvidenceError):
        read(outcome([SILENT] * 4))


@pytest.mark.parametrize("identity", [None, np.zeros((1, 16), np.uint8), np.zeros((0, 16))])
def test_an_answer_under_another_contract_is_refused(identity: Any) -> None:
    outputs = {**outcome([CALM] * 4), "contract_id": identity}
    if identity is None:
        del outputs["contract_id"]
    with pytest.raises(ContractMismatchError) as caught:
        read(outputs)
    assert caught.value.expected == CONTRACT.contract_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scores", np.array([[np.nan, 0, 1]])),
        ("scores", np.ones((1, 2))),
        ("branch_scores", np.ones((1, 3, 3))),
        ("branch_scores", np.full((1, 4, 3), np.inf)),
    ],
)
def test_unsound_scores_are_refused(name: str, value: Any) -> None:
    with pytest.raises(InferenceError, match=name):
        read({**outcome([CALM] * 4), name: value})


def test_branches_that_all_failed_are_no_lack_of_evidence() -> None:
    nobody = outcome([SILENT] * 4)
    with pytest.raises(InferenceError, match=r"branch_scores .* NaN"):
        read({**nobody, "branch_scores": np.full((1, 4, 3), np.nan)})


def test_what_was_heard_is_read_where_there_is_sound() -> None:
    heard = Heard("recognized", 0.7, flags=("clipped",), level_dbfs=-3.0)
    said = {"words": np.array([["Oh no."]], object), "hearing": np.array([[heard.text()]], object)}
    found = read(outcome([CALM] * 4, **said))
    assert (found.transcript, found.hearing) == ("Oh no.", heard)
    assert any("clipped" in warning for warning in found.warnings)
    assert json.loads(json.dumps(found.to_json()))["hearing"]["confidence"] == 0.7
    silent = read(outcome([CALM] * 4, (True, False, True), **said))
    assert (silent.transcript, silent.hearing, silent.warnings) == ("Oh no.", None, ())
    wordless = read(outcome([CALM] * 4, (True, True, False), **said))
    assert (wordless.transcript, wordless.hearing) == (None, heard)
    with pytest.raises(InferenceError, match="'hearing' is malformed"):
        read(outcome([CALM] * 4, **(said | {"hearing": np.array([["{"]], object)})))
