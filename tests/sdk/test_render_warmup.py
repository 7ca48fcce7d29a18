"""Warm-up samples: real tensors at the corners, beside the models that run them."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from merkit.bundle import Bundle, open_bundle
from merkit.errors import ClipNotFoundError, ClipUnreadableError
from merkit.presence import held
from merkit.serving.batching import WIRE_TYPES, can_batch
from merkit.serving.deployment import Deployment, StepDeployment
from merkit.serving.render import render
from merkit.serving.warmup import make_samples

SIZES = {"TYPE_UINT8": 1, "TYPE_INT64": 8, "TYPE_FP32": 4, "TYPE_BOOL": 1}
SAMPLE = Path(__file__).resolve().parents[2] / "docs" / "media" / "sample.mp4"


def config_of(folder: Path) -> model_config_pb2.ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_every_step_has_samples_of_its_own_inputs(toy_bundle: Bundle, tmp_path: Path) -> None:
    render(toy_bundle, tmp_path / "out", Deployment(warm_up=True))
    for step in toy_bundle.contract.steps:
        folder = tmp_path / "out" / step.name
        config = config_of(folder)
        shares = can_batch(toy_bundle.contract, step)  # others compute clip by clip anyway
        sizes = sorted({1, config.max_batch_size or 1}) if shares else [1]
        names = [entry.name for entry in config.model_warmup]
        assert names[: len(sizes)] == [f"{names[0].partition(' ')[0]} x{n}" for n in sizes]
        assert {entry.batch_size for entry in config.model_warmup} == set(sizes)
        used = set()
        for entry in config.model_warmup:
            assert set(entry.inputs) == set(step.inputs)
            for name, given in entry.inputs.items():
                spec = toy_bundle.contract.tensors[name]
                kind = model_config_pb2.DataType.Name(given.data_type)
                assert kind == WIRE_TYPES[spec.dtype]
                assert all(size > 0 for size in given.dims)
                assert len(given.dims) == len(spec.shape) - bool(config.max_batch_size)
                content = (folder / "warmup" / given.input_data_file).read_bytes()
                if spec.dtype == "string":
                    assert struct.unpack("<I", content[:4])[0] == len(content) - 4
                else:
                    assert len(content) == SIZES[kind] * np.prod(given.dims, dtype=int)
                used.add(given.input_data_file)
        assert {path.name for path in (folder / "warmup").iterdir()} == used


def test_the_corners_are_the_shortest_the_usual_and_the_longest(toy_bundle: Bundle) -> None:
    p, samples = toy_bundle.contract.preprocessing, make_samples(toy_bundle)
    assert set(samples) == {"shortest", "usual", "longest"}
    lengths = {corner: int(s["waveform_length"][0, 0]) for corner, s in samples.items()}
    least, most = (round(s * p.sample_rate) for s in (p.min_audio_seconds, p.max_audio_seconds))
    assert least <= lengths["shortest"] < lengths["usual"] < lengths["longest"] == most
    tokens = {corner: int(s["text_length"][0, 0]) for corner, s in samples.items()}
    assert 0 < tokens["shortest"] < tokens["usual"] < tokens["longest"] == p.max_text_tokens
    for sample in samples.values():
        assert len(held(sample, p)) == 3, "nothing is absent, else encoders would see no work"
        assert sample["presence"].all()


def test_samples_of_real_clips(toy_bundle: Bundle, tmp_path: Path) -> None:
    samples = make_samples(toy_bundle, (SAMPLE, SAMPLE))
    assert set(samples) == {"shortest", "usual", "usual_2", "longest"}
    assert bytes(samples["usual"]["clip"]) == SAMPLE.read_bytes()
    assert samples["usual"]["frames"].shape[1] > 1
    with pytest.raises(ClipNotFoundError):
        make_samples(toy_bundle, (tmp_path / "none.mp4",))
    (tmp_path / "text.mp4").write_text("no movie")
    with pytest.raises(ClipUnreadableError):
        make_samples(toy_bundle, (tmp_path / "text.mp4",))


def test_one_step_may_choose_otherwise(toy_bundle: Bundle, tmp_path: Path) -> None:
    one = {"face_encoder": StepDeployment(warm_up=True)}
    render(toy_bundle, tmp_path / "out", Deployment(steps=one))
    assert [p.parent.name for p in tmp_path.glob("out/*/warmup")] == ["face_encoder"]


def test_samples_are_no_content_and_go_when_no_longer_wanted(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    own = open_bundle(shutil.copytree(toy_bundle.root, tmp_path / "own"))
    render(own, own.root, Deployment(warm_up=True))
    assert open_bundle(own.root).manifest == own.manifest
    assert (own.root / "face_encoder" / "warmup").is_dir()
    render(own, own.root)
    assert not list(own.root.glob("*/warmup"))


def test_equal_input_gives_equal_samples(toy_bundle: Bundle, tmp_path: Path) -> None:
    trees = []
    for name in ("one", "two"):
        render(toy_bundle, tmp_path / name, Deployment(warm_up=True))
        files = sorted((tmp_path / name).glob("*/warmup/*"))
        trees.append({p.relative_to(tmp_path / name): p.read_bytes() for p in files})
    assert trees[0] == trees[1]
    assert trees[0]
