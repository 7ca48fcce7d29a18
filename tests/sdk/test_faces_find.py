"""Whose face it is, what counts as none, and what a crop holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit.faces import Faces, HaarDetector, PrecomputedFaces, YuNetDetector, find_faces, no_faces
from merkit.faces.speaker import sharpness
from merkit.media import decode_clip

P = Preprocessing()
Box = tuple[float, float, float, float]


class Scripted:
    """A detector that reports what the test says, frame by frame."""

    def __init__(self, *frames: Sequence[Box]) -> None:
        self.frames = list(frames)

    def detect(self, _: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        boxes = np.array(self.frames.pop(0), np.float32).reshape(-1, 4)
        return boxes, np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)


def noise(count: int, height: int = 120, width: int = 200) -> NDArray[np.uint8]:
    random = np.random.default_rng(0)
    return random.integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def find(*script: Sequence[Box], p: Preprocessing = P) -> Faces:
    frames = noise(len(script))
    return find_faces(frames, np.arange(len(script), dtype=np.float32), p, Scripted(*script))


def in_pixels(faces: Faces) -> NDArray[np.float32]:
    return faces.boxes * np.array([200, 120, 200, 120], np.float32)


def test_a_stray_detection_is_no_face() -> None:
    faces = find([], [(50, 40, 30, 30)], [], [])
    assert len(faces) == 0
    assert faces.crops.shape == (0, 64, 64, 3)
    assert faces.boxes.shape == (0, 4)


def test_one_detection_left_of_two_is_a_stray() -> None:
    frames = noise(3)
    frames[1] = 128  # a smear
    box = (50.0, 40.0, 30.0, 30.0)
    times = np.arange(3, dtype=np.float32)
    assert len(find_faces(frames, times, P, Scripted([box], [box], []))) == 0
    assert len(find_faces(frames[:1], times[:1], P, Scripted([box]))) == 1


def test_detections_far_apart_are_two_strays() -> None:
    assert len(find([(0, 0, 30, 30)], [], [(150, 80, 30, 30)])) == 0


def test_one_detection_suffices_in_a_picture() -> None:
    faces = find([(50, 40, 30, 30)])
    assert faces.times.tolist() == [0.0]
    np.testing.assert_allclose(faces.boxes, [[0.25, 1 / 3, 0.15, 0.25]], rtol=1e-5)
    assert faces.confidence.tolist() == [pytest.approx(0.9)]


def test_the_speaker_is_in_the_longest_track() -> None:
    bystander, speaker = (150, 10, 60, 60), (20, 40, 30, 30)
    faces = find([bystander, speaker], [speaker, bystander], [speaker], [])
    np.testing.assert_allclose(in_pixels(faces), [speaker] * 3, rtol=1e-5)
    assert faces.times.tolist() == [0, 1, 2]


def test_of_equally_long_tracks_the_largest_then_the_most_central_is_the_speakers() -> None:
    small, large, central = (10, 10, 30, 30), (140, 60, 40, 40), (80, 40, 40, 40)
    assert in_pixels(find([small, large], [small, large]))[0].tolist() == pytest.approx(large)
    assert in_pixels(find([large, central], [large, central]))[0].tolist() == pytest.approx(central)


def test_a_moving_face_is_one_track() -> None:
    path = [(20.0 + 15 * k, 40.0, 30.0, 30.0) for k in range(5)]
    assert len(find(*[[box] for box in path])) == 5
    jump = [(20.0 + 40 * k, 40.0, 30.0, 30.0) for k in range(4)]
    assert len(find(*[[box] for box in jump])) == 0


def test_two_faces_side_by_side_keep_their_tracks() -> None:
    left, right = (60, 40, 30, 30), (85, 40, 31, 31)
    faces = find([left, right], [right, left], [left, right])
    np.testing.assert_allclose(in_pixels(faces), [right] * 3, rtol=1e-5)  # a little larger


def test_smears_and_cut_off_faces_are_left_out() -> None:
    frames = noise(3)
    frames[1] = 128
    box = (50.0, 40.0, 30.0, 30.0)
    times = np.arange(3, dtype=np.float32)
    faces = find_faces(frames, times, P, Scripted([box], [box], [box]))
    assert faces.times.tolist() == [0, 2]
    assert (faces.sharpness > 100).all()
    outside = find([(-20, 40, 30, 30)] * 1)
    assert len(outside) == 0
    half_in = find([(-10, 40, 30, 30)])
    assert half_in.cut_off.tolist() == [pytest.approx(1 / 3)]


def test_a_crop_is_the_square_around_the_box() -> None:
    frame = np.zeros((1, 120, 200, 3), np.uint8)
    frame[0, 20:100, 60:140] = (250, 120, 10)  # RGB
    frame[0, 56:64, 96:104] = 0
    exact = find_faces(frame, np.zeros(1, np.float32), P, Scripted([(70, 20, 60, 80)]))
    assert exact.crops.shape == (1, 64, 64, 3)
    assert exact.crops[0, 0, 0].tolist() == [250, 120, 10]
    assert exact.crops[0, 32, 32].tolist() == [0, 0, 0]
    wider = Preprocessing(face_margin=0.5)
    grown = find_faces(frame, np.zeros(1, np.float32), wider, Scripted([(70, 20, 60, 80)]))
    assert grown.crops[0, 2, 2].tolist() == [0, 0, 0]
    np.testing.assert_array_equal(grown.boxes, exact.boxes)


def test_no_frames_and_wrong_frames() -> None:
    none = find_faces(np.zeros((0, 1, 1, 3), np.uint8), np.zeros(0, np.float32), P)
    assert len(none) == 0
    times = np.zeros(1, np.float32)
    for bad in (np.zeros((1, 9, 9, 3), np.float32), np.zeros((9, 9, 3), np.uint8)):
        with pytest.raises(InvalidInputError):
            find_faces(bad, times, P)
    with pytest.raises(InvalidInputError):
        find_faces(noise(2), times, P)


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (500, 3), (24, 24)])
def test_haar_takes_any_size(shape: tuple[int, int]) -> None:
    boxes, confidence = HaarDetector().detect(np.full((*shape, 3), 99, np.uint8))
    assert boxes.shape == (0, 4)
    assert confidence.shape == (0,)
    assert (boxes.dtype, confidence.dtype) == (np.float32, np.float32)


def test_real_faces_and_none(media: Path) -> None:
    for name, count in (("single_face.mp4", 8), ("no_face.mp4", 0), ("single_face.jpg", 1)):
        decoded = decode_clip(media / name, P)
        faces = find_faces(decoded.frames, decoded.frame_times, P)
        assert len(faces) == count, name
        assert ((faces.confidence > 0.5) & (faces.confidence < 1)).all()
        assert ((faces.boxes > 0) & (faces.boxes < 1)).all()


def test_a_blurred_real_face_still_counts(media: Path) -> None:
    frame = decode_clip(media / "single_face.jpg", P).frames[0]
    blurred = cv2.pyrDown(cv2.pyrDown(frame))
    blurred = cv2.pyrUp(cv2.pyrUp(blurred))
    faces = find_faces(blurred[None], np.zeros(1, np.float32), P)
    assert len(faces) == 1
    assert faces.sharpness[0] < sharpness(find_faces(frame[None], faces.times, P).crops[0])


def test_no_face_at_every_of_many_frames(media: Path) -> None:
    decoded = decode_clip(media / "no_face.mp4", Preprocessing(frames_per_clip=48))
    assert len(decoded.frames) > 40
    assert len(find_faces(decoded.frames, decoded.frame_times, P)) == 0


def test_faces_cut_out_before(tmp_path: Path) -> None:
    array = np.zeros((20, 112, 112, 3), np.uint8)
    array[..., 0] = np.arange(20)[:, None, None]  # blue in MER's files
    path = tmp_path / "clip.npy"
    np.save(path, array)
    for source in (array, path, str(path)):
        faces = PrecomputedFaces(source, frame_rate=10).faces(P)
        assert faces.crops.shape == (8, 64, 64, 3)
        assert faces.crops[:, 0, 0, 2].tolist() == [1, 3, 6, 8, 11, 13, 16, 18]  # now RGB
        assert faces.crops[..., :2].max() == 0
        np.testing.assert_allclose(faces.times, faces.crops[:, 0, 0, 2] / 10)
        assert faces.boxes[0].tolist() == [0, 0, 1, 1]
    assert len(PrecomputedFaces(array[:3], bgr=False).faces(P)) == 3
    assert len(PrecomputedFaces(array[:0]).faces(P)) == len(no_faces(P)) == 0


def test_what_is_no_face_array_is_refused(tmp_path: Path) -> None:
    pickled, text = tmp_path / "pickled.npy", tmp_path / "text.npy"
    np.save(pickled, np.array([{"a": 1}]), allow_pickle=True)
    text.write_text("no array")
    wrong = (pickled, text, tmp_path / "missing.npy", np.zeros((2, 8, 8)), np.zeros(3, np.uint8))
    for source in wrong:
        with pytest.raises(InvalidInputError):
            PrecomputedFaces(source).faces(P)  # type: ignore[arg-type]


def test_yunet_reads_its_network_by_path(tmp_path: Path) -> None:
    path = tmp_path / "yunet.onnx"
    make_yunet(path, cell=5, score=0.81)
    detector = YuNetDetector(path)
    boxes, confidence = detector.detect(np.zeros((64, 64, 3), np.uint8))
    # cell 5 of the 4 x 4 grid of stride 16: column 1, row 1, and a box of one stride
    np.testing.assert_allclose(boxes, [[8, 8, 16, 16]])
    np.testing.assert_allclose(confidence, [0.9], rtol=1e-3)  # sqrt(0.81 * 1)
    assert YuNetDetector(path, threshold=0.95).detect(noise(1, 64, 64)[0])[0].shape == (0, 4)


def test_what_is_no_yunet_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no network")
    for path in (broken, tmp_path / "missing.onnx"):
        with pytest.raises(InvalidInputError):
            YuNetDetector(path)


def make_yunet(path: Path, cell: int, score: float) -> None:
    """A network of YuNet's form for 64 x 64 pixels that sees one face, in `cell` of stride 16."""
    onnx = pytest.importorskip("onnx", reason="making a YuNet file needs onnx")
    helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["mean_all"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["mean_all", "nil"], ["zero_flat"]),
        helper.make_node("Reshape", ["zero_flat", "shape"], ["zero"]),
    ]
    values = [
        to_tensor(np.zeros(1, np.float32), "nil"),
        to_tensor(np.ones(3, np.int64), "shape"),
    ]
    outputs = []
    for stride in (8, 16, 32):
        for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            name, cells = f"{kind}_{stride}", (64 // stride) ** 2
            value = np.zeros((1, cells, width), np.float32)
            if stride == 16 and width == 1:
                value[0, cell] = score if kind == "cls" else 1.0
            values.append(to_tensor(value, f"{name}_value"))
            nodes.append(helper.make_node("Add", ["zero", f"{name}_value"], [name]))
            shape = [1, cells, width]
            outputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    image = helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [1, 3, 64, 64])
    graph = helper.make_graph(nodes, "yunet", [image], outputs, values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=7)
    path.write_bytes(model.SerializeToString())
