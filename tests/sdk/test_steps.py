"""Python steps: exactly the contract's tensors in and out, alone and in batches."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from odd_media import gray, movie, tone

from merkit.contract import Contract, Preprocessing, TensorSpec
from merkit.errors import BundleCorruptError, ClipUnreadableError, InvalidInputError
from merkit.faces import find_faces, no_faces
from merkit.media import MediaInfo, decode_clip, no_clip
from merkit.pipeline import DECODED_IN, DETAIL, GROUPS, standard_contract
from merkit.steps import REGISTRY, Decode, FindFaces, Tokenize, decoded_tensors

CONTRACT = standard_contract(("calm", "glad"), dict.fromkeys(GROUPS, 4))
P = CONTRACT.preprocessing
CLIP = movie([gray(k) for k in range(0, 200, 8)], sound=tone(2.5))


def clip_tensor(*clips: bytes) -> dict[str, NDArray[Any]]:
    return {"clip": np.stack([np.frombuffer(clip, np.uint8) for clip in clips])}


def texts(*values: Any) -> dict[str, NDArray[Any]]:
    return {"text": np.array([[value] for value in values], dtype=np.object_)}


def check(tensors: Mapping[str, NDArray[Any]], names: tuple[str, ...], contract: Contract) -> None:
    """Each tensor as its spec describes it."""
    assert set(tensors) == set(names)
    for name, array in tensors.items():
        spec: TensorSpec = contract.tensors[name]
        wanted = "object" if spec.dtype == "string" else spec.dtype
        assert str(array.dtype) == wanted, name
        assert array.ndim == len(spec.shape), name
        fixed = [(have, want) for have, want in zip(array.shape, spec.shape, strict=True)]
        assert all(have == want for have, want in fixed if isinstance(want, int)), name


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<pad>", "<unk>", "what", "emotion", "does", "the", "speaker", "feel", "?", "café"]
    model = tokenizers.models.WordLevel({w: k for k, w in enumerate(words)}, unk_token="<unk>")
    made = tokenizers.Tokenizer(model)
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.enable_padding(length=100)
    made.enable_truncation(max_length=2)
    folder = tmp_path_factory.mktemp("tokenize")
    made.save(str(folder / "tokenizer.json"))
    return folder


def test_the_registry_has_every_python_step() -> None:
    python = {step.name for step in CONTRACT.steps if step.kind == "python"}
    assert python <= set(REGISTRY)
    assert all(REGISTRY[name].name == name for name in REGISTRY)


def test_decode_gives_the_contracts_tensors() -> None:
    out = Decode(CONTRACT, None)(clip_tensor(CLIP))
    check(out, CONTRACT.step("decode").outputs, CONTRACT)
    direct = decode_clip(CLIP, P)
    assert np.array_equal(out["frames"][0], direct.frames)
    assert np.array_equal(out["waveform"][0], direct.waveform)
    assert out["waveform_length"].tolist() == [[len(direct.waveform)]]
    assert MediaInfo.from_json(out["media_info"][0, 0]) == direct.info


def test_no_clip_is_nothing_of_everything() -> None:
    out = Decode(CONTRACT, None)({"clip": np.zeros((1, 0), np.uint8)})
    check(out, CONTRACT.step("decode").outputs, CONTRACT)
    assert out["frames"].shape == (1, 0, 1, 1, 3)
    assert out["waveform"].shape == (1, 0)
    assert MediaInfo.from_json(out["media_info"][0, 0]) == MediaInfo()
    faces = FindFaces(CONTRACT, None)(out)
    check(faces, CONTRACT.step("faces").outputs, CONTRACT)
    assert faces["face_count"].tolist() == [[0]]
    assert faces["face_crops"].shape == (1, 0, P.face_size, P.face_size, 3)


def test_decode_takes_one_clip() -> None:
    with pytest.raises(InvalidInputError, match="batch of 2"):
        Decode(CONTRACT, None)(clip_tensor(CLIP, CLIP))
    with pytest.raises(ClipUnreadableError):
        Decode(CONTRACT, None)(clip_tensor(b"no clip at all"))


def test_decode_runs_in_many_threads() -> None:
    step = Decode(CONTRACT, None)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: step(clip_tensor(CLIP)), range(8)))
    assert all(np.array_equal(r["frames"], results[0]["frames"]) for r in results)


def test_faces_in_a_batch_are_padded(media: Path) -> None:
    talk = decode_clip(media / "single_face.mp4", P)
    frames = np.stack([talk.frames, np.zeros_like(talk.frames)])
    times = np.stack([talk.frame_times, talk.frame_times])
    out = FindFaces(CONTRACT, None)({"frames": frames, "frame_times": times})
    check(out, CONTRACT.step("faces").outputs, CONTRACT)
    assert out["face_count"].tolist() == [[8], [0]]
    assert out["face_crops"].shape[:2] == (2, 8)
    assert out["face_crops"][1].max() == 0
    alone = find_faces(talk.frames, talk.frame_times, P)
    assert np.array_equal(out["face_crops"][0], alone.crops)


def test_text_becomes_ids(tokenizer: Path) -> None:
    step = Tokenize(CONTRACT, tokenizer)
    out = step(texts("  The Speaker? ", "", " \u3000\n"))
    check(out, CONTRACT.step("tokenize").outputs, CONTRACT)
    assert out["text_ids"].tolist() == [[5, 6, 8], [0, 0, 0], [0, 0, 0]]
    assert out["text_length"].tolist() == [[3], [0], [0]]
    prompt = [2, 3, 4, 5, 6, 7, 8]
    assert out["joint_ids"].tolist() == [[*prompt, 5, 6, 8]] + [[*prompt, 0, 0, 0]] * 2
    assert out["joint_length"].tolist() == [[10], [7], [7]]


def test_words_alone_that_are_none_give_one_pad(tokenizer: Path) -> None:
    out = Tokenize(CONTRACT, tokenizer)(texts(""))
    assert out["text_ids"].tolist() == [[0]]
    assert out["text_length"].tolist() == [[0]]


def test_text_is_normalised_truncated_and_taken_as_bytes_too(tokenizer: Path) -> None:
    step = Tokenize(CONTRACT, tokenizer)
    composed = step(texts("caf\u00e9"))["text_ids"]
    assert composed.tolist() == [[9]]
    assert step(texts("cafe\u0301"))["text_ids"].tolist() == composed.tolist()
    assert step(texts("café".encode()))["text_ids"].tolist() == composed.tolist()
    long = step(texts("the " * 1_000_000))
    assert long["text_ids"].shape == (1, P.max_text_tokens)
    assert long["text_length"].tolist() == [[P.max_text_tokens]]


def test_what_is_no_text_is_refused(tokenizer: Path) -> None:
    step = Tokenize(CONTRACT, tokenizer)
    for bad in (texts(b"\xff\xfe\xfa"), texts("\ud800"), texts(3), texts(None)):
        with pytest.raises(InvalidInputError, match="no text"):
            step(bad)


def test_tensors_off_the_contract_are_refused(tokenizer: Path) -> None:
    decode, faces = Decode(CONTRACT, None), FindFaces(CONTRACT, None)
    tokenize = Tokenize(CONTRACT, tokenizer)
    frames = np.zeros((1, 2, 8, 8, 3), np.uint8)
    wrong: list[tuple[Any, dict[str, Any]]] = [
        (decode, {}),
        (decode, {"clip": np.zeros(3, np.uint8)}),
        (decode, {"clip": np.zeros((1, 3), np.int64)}),
        (decode, {"clip": np.zeros((0, 3), np.uint8)}),
        (faces, {"frames": frames, "frame_times": np.zeros((2, 2), np.float32)}),
        (faces, {"frames": frames[..., :1], "frame_times": np.zeros((1, 2), np.float32)}),
        (faces, {"frames": frames, "frame_times": np.zeros((1, 3), np.float32)}),
        (tokenize, {"text": np.array([["a"]])}),
    ]
    for step, tensors in wrong:
        with pytest.raises(InvalidInputError):
            step(tensors)


def test_a_tokenizer_that_cannot_be_read_is_the_bundles_fault(
    tmp_path: Path, tokenizer: Path
) -> None:
    with pytest.raises(BundleCorruptError):
        Tokenize(CONTRACT, tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleCorruptError):
        Tokenize(CONTRACT, tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    Tokenize(CONTRACT, tmp_path)
    (tmp_path / "joint.json").write_text("{}")
    with pytest.raises(BundleCorruptError, match=r"joint\.json"):
        Tokenize(CONTRACT, tmp_path)


def test_a_joint_model_may_have_a_vocabulary_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    text = (tokenizer / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    other = text.replace('"speaker": 6', '"speaker": 60')
    assert other != text
    (tmp_path / "joint.json").write_text(other, "utf-8")
    out = Tokenize(CONTRACT, tmp_path)(texts("the speaker"))
    assert out["text_ids"].tolist() == [[5, 6]]
    assert out["joint_ids"].tolist() == [[2, 3, 4, 5, 60, 7, 8, 5, 60]]


def test_text_cannot_smuggle_special_tokens_in(tmp_path: Path, tokenizer: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    made.add_special_tokens(["<|end|>"])
    assert made.encode("the <|end|>").ids[1] == 10  # plain use of the file would
    made.save(str(tmp_path / "tokenizer.json"))
    out = Tokenize(CONTRACT, tmp_path)(texts("the <|end|>"))
    assert 10 not in out["text_ids"]


def test_a_client_that_decodes_itself_sends_the_same_tensors(media: Path) -> None:
    data = (media / "single_face.mp4").read_bytes()
    served = Decode(CONTRACT, None)(clip_tensor(data))
    served |= FindFaces(CONTRACT, None)(served)
    decoded = decode_clip(data, P)
    own = decoded_tensors(decoded, find_faces(decoded.frames, decoded.frame_times, P), "hello")
    check(own, tuple(dict.fromkeys((*DECODED_IN, *DETAIL))), CONTRACT)
    for name in set(own) - {"text"}:
        assert np.array_equal(own[name], served[name]), name
    assert own["text"].tolist() == [["hello"]]


def test_words_alone_need_no_clip() -> None:
    own = decoded_tensors(no_clip(), no_faces(P), "hello")
    check(own, tuple(dict.fromkeys((*DECODED_IN, *DETAIL))), CONTRACT)
    assert own["face_count"].tolist() == [[0]]


def test_preprocessing_reaches_the_steps() -> None:
    p = Preprocessing(frames_per_clip=3, sample_rate=8_000, max_frame_side=48)
    contract = standard_contract(("calm", "glad"), dict.fromkeys(GROUPS, 4), p)
    out = Decode(contract, None)(clip_tensor(CLIP))
    assert out["frames"].shape == (1, 3, 32, 48, 3)
    assert out["waveform"].shape[1] == pytest.approx(2.5 * 8_000, rel=0.05)
