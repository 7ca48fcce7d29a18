"""A host's choices: every key of host.toml is read, and none is taken that was not meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from merkit.errors import InvalidInputError
from merkit.serving import ServeOptions, Server
from merkit.serving.deployment import (
    CustomCut,
    Deployment,
    QueuePolicy,
    StepDeployment,
    check_choices,
    read_deployment,
)
from merkit.serving.tritonserver import Installation

EVERYTHING = """
flavour = "tensorrt"
threads = 2
max_batch_size = 8
queue_delay_us = 500
response_cache = true
warm_up = true
warm_up_clips = ["clips/one.mp4"]
views = true
limit_parallel = true

[queue]
max_size = 100
timeout_ms = 2500.5
on_timeout = "delay"
priorities = 2
default_priority = 2

[steps.decode]
instances = 4
kind = "cpu"

[steps.face_encoder]
flavour = "python"
kind = "gpu"
gpus = [0, 1]
max_batch_size = 0
queue_delay_us = 0
response_cache = false
warm_up = false
precision = "fp32"
queue = {max_size = 5}

[ensembles.faces_only]
inputs = ["face_grid"]
outputs = ["face_features"]
"""


def read(tmp_path: Path, text: str) -> Deployment:
    path = tmp_path / "host.toml"
    path.write_text(text)
    return read_deployment(path)


def test_every_key_is_read(tmp_path: Path) -> None:
    assert read(tmp_path, EVERYTHING) == Deployment(
        flavour="tensorrt",
        threads=2,
        max_batch_size=8,
        queue_delay_us=500,
        queue=QueuePolicy(100, 2500.5, "delay", 2, 2),
        response_cache=True,
        warm_up=True,
        warm_up_clips=(tmp_path / "clips/one.mp4",),
        views=True,
        limit_parallel=True,
        ensembles={"faces_only": CustomCut(("face_grid",), ("face_features",))},
        steps={
            "decode": StepDeployment(instances=4, kind="cpu"),
            "face_encoder": StepDeployment(
                "python", 1, "gpu", (0, 1), 0, 0, QueuePolicy(5), False, False, "fp32"
            ),
        },
    )


def test_an_empty_file_chooses_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Deployment()


def test_a_step_has_the_general_choices_where_it_makes_none(tmp_path: Path) -> None:
    deployment = read(tmp_path, EVERYTHING)
    assert deployment.of("decode") == StepDeployment(
        "tensorrt", 4, "cpu", (), 8, 500, QueuePolicy(100, 2500.5, "delay", 2, 2), True, True
    )
    assert deployment.of("face_encoder") == deployment.steps["face_encoder"]
    assert Deployment().of("voting").max_batch_size == 16


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("flavor = 'python'", "'flavor'"),
        ("flavour = 'onnx'", "flavour is 'onnx'"),
        ("threads = -1", "threads is -1"),
        ("threads = '2'", "threads is '2'"),
        ("threads = true", "threads is True"),
        ("max_batch_size = -1", "max_batch_size is -1"),
        ("warm_up = 1", "warm_up is 1"),
        ("warm_up_clips = 'one.mp4'", "warm_up_clips is 'one.mp4'"),
        ("queue = 3", "queue is 3"),
        ("[queue]\ndefault_priority = 1", "queue.default_priority is 1"),
        ("[queue]\non_timeout = 'wait'", "queue.on_timeout is 'wait'"),
        ("[queue]\ntimeout_ms = nan", "queue.timeout_ms is nan"),
        ("[queue]\ntimeout_ms = inf", "queue.timeout_ms is inf"),
        ("threads = 99999999999", "threads is 99999999999"),
        ("[steps.fusion]\nkind = 'gpu'\ngpus = [99999999999]", "steps.fusion.gpus is"),
        ("steps = 3", "steps is 3"),
        ("[steps]\nfusion = 3", "steps.fusion is 3"),
        ("[steps.fusion]\ncopies = 3", "'steps.fusion.copies'"),
        ("[steps.fusion]\ninstances = 0", "steps.fusion.instances is 0"),
        ("[steps.fusion]\nkind = 'tpu'", "steps.fusion.kind is 'tpu'"),
        ("[steps.fusion]\ngpus = [0]", "steps.fusion.gpus is"),
        ("[steps.fusion]\nkind = 'gpu'\ngpus = [-1]", "steps.fusion.gpus is"),
        ("[steps.fusion]\nqueue = {size = 3}", "'steps.fusion.queue.size'"),
        ("[ensembles.mine]\ninputs = ['clip']", "ensembles.mine is"),
        ("[ensembles.mine]\ninputs = [3]\noutputs = ['label']", "ensembles.mine.inputs is"),
        ("flavour = ", "cannot be read"),
    ],
)
def test_what_is_not_meant_is_refused_by_name(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read(tmp_path, text)
    assert found in caught.value.found
    assert caught.value.expected
    assert caught.value.action


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"cannot be read"):
        read_deployment(tmp_path / "none.toml")


def test_choices_made_in_code_are_checked_too() -> None:
    with pytest.raises(InvalidInputError, match="instances is 0"):
        check_choices(Deployment(steps={"decode": StepDeployment(instances=0)}))


def test_a_server_of_one_backend_runs_everything_there(tmp_path: Path) -> None:
    """A host.toml for a GPU host also serves on a laptop with the wheel's server."""
    server = object.__new__(Server)
    steps = {"face_encoder": StepDeployment("tensorrt", 2, "gpu", (0,))}
    server.options = ServeOptions(deployment=Deployment("tensorrt", steps=steps))
    server.installation = Installation(tmp_path / "tritonserver", tmp_path)
    chosen = server._deployment().of("face_encoder")
    assert (chosen.flavour, chosen.instances, chosen.kind, chosen.gpus) == ("python", 2, "auto", ())
    (tmp_path / "onnxruntime").mkdir()
    kept = server._deployment().of("face_encoder")
    assert (kept.flavour, kept.kind, kept.gpus) == ("tensorrt", "gpu", (0,))
