"""What may share a run, what the configs say for it, and that a real server does it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from entries import MIXES, decoded_entry, tritons_feed
from numpy.typing import NDArray

from merkit.backends.embedded import EmbeddedBackend
from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle, open_bundle
from merkit.contract import Preprocessing
from merkit.errors import InvalidInputError
from merkit.pipeline import GROUPS, standard_contract
from merkit.ragged import graph_feed
from merkit.serving.batching import batch_fields, can_batch, collecting, collects
from merkit.serving.deployment import Deployment, QueuePolicy, StepDeployment
from merkit.serving.server import ServeOptions, Server
from merkit.serving.tritonserver import Installation

ROOT = Path(__file__).parents[2]
CONTRACT = standard_contract(("calm", "tense"), dict.fromkeys(GROUPS, 8))
ENCODERS = ("face_encoder", "face_encoder_large", "audio_encoder", "text_encoder", "joint_encoder")
CHOICE = Deployment().of("audio_encoder")


def fields(step: str, backend: str = "onnxruntime", **choices: Any) -> dict[str, Any]:
    return batch_fields(CONTRACT, CONTRACT.step(step), replace(CHOICE, **choices), backend)


def test_steps_batch_whose_tensors_are_of_fixed_size_or_ragged() -> None:
    found = {step.name for step in CONTRACT.steps if can_batch(CONTRACT, step)}
    assert found == {*ENCODERS, "fusion", "voting"}
    bare = replace(CONTRACT.step("audio_encoder"), ragged=())
    assert not can_batch(CONTRACT, bare), "a bundle from before ragged inputs is served as it was"


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "python"])
@pytest.mark.parametrize("step", [s.name for s in CONTRACT.steps if s.kind == "onnx"])
def test_dims_leave_the_batch_axis_out_exactly_where_triton_adds_it(
    step: str, backend: str
) -> None:
    made = fields(step, backend)
    for tensor in (*made["input"], *made["output"]):
        shape = CONTRACT.tensors[tensor["name"]].shape
        axes = len(tensor.get("reshape", {"shape": tensor["dims"]}).get("shape", ()))
        assert axes == len(shape) - bool(made["max_batch_size"])
    batches = step != "preprocess" or backend == "python"
    assert bool(made["max_batch_size"]) == ("dynamic_batching" in made) == batches


def test_triton_tells_the_clips_of_a_ragged_batch_apart() -> None:
    made = fields("audio_encoder")
    values, length = made["input"]
    assert values["allow_ragged_batch"]
    assert "allow_ragged_batch" not in length
    assert [(b["kind"], b["target_name"], b["source_input"]) for b in made["batch_input"]] == [
        ("BATCH_ITEM_SHAPE", ["audio_values_widths"], ["audio_values"]),
        ("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", ["audio_values_span"], ["audio_values"]),
    ]
    assert "batch_input" not in fields("audio_encoder", "python"), "the runner makes its own"
    assert "batch_input" not in fields("face_encoder")


def test_switched_off() -> None:
    assert fields("fusion", max_batch_size=0)["max_batch_size"] == 0
    assert fields("fusion", max_batch_size=0)["input"][-1]["dims"] == [-1, 3]
    alone = fields("text_encoder", max_batch_size=0)
    assert alone["max_batch_size"] == 1, "its graph takes what only the batcher can give"
    assert "dynamic_batching" not in alone
    assert fields("text_encoder", "python", max_batch_size=0)["max_batch_size"] == 0


def test_queue_and_priorities() -> None:
    assert fields("fusion", queue_delay_us=70)["dynamic_batching"] == {
        "max_queue_delay_microseconds": 70
    }
    queue = QueuePolicy(32, 250.5, "delay", priorities=3, default_priority=2)
    assert fields("fusion", queue=queue)["dynamic_batching"] == {
        "max_queue_delay_microseconds": 1000,
        "default_queue_policy": {
            "max_queue_size": 32,
            "default_timeout_microseconds": 250_500,
            "timeout_action": "DELAY",
        },
        "priority_levels": 3,
        "default_priority_level": 2,
    }
    least = fields("fusion", queue=QueuePolicy(priorities=4))["dynamic_batching"]
    assert least["default_priority_level"] == 4
    assert "default_queue_policy" not in least


def test_a_timeout_that_no_lone_clip_could_meet_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="'fusion' wait 2000 us"):
        fields("fusion", queue_delay_us=2000, queue=QueuePolicy(timeout_ms=2))


def collected(step: str, general: Deployment, p: Preprocessing | None = None) -> dict[str, Any]:
    contract = CONTRACT if p is None else replace(CONTRACT, preprocessing=p)
    own = general.steps.get(step, StepDeployment())
    choice = collecting(contract, contract.step(step), general.of(step), own)
    return batch_fields(contract, contract.step(step), choice, "python")


def test_steps_that_run_clip_by_clip_take_all_that_waits_and_wait_for_nobody() -> None:
    python = {s.name for s in CONTRACT.steps if collects(CONTRACT, s, "python")}
    assert python == {"decode", "faces", "tokenize", "preprocess"}
    native = [s for s in CONTRACT.steps if collects(CONTRACT, s, "onnxruntime")]
    assert not native, "Triton's own backends would lay such tensors end to end"
    made = collected("preprocess", Deployment())
    assert made["max_batch_size"] == 16
    assert made["dynamic_batching"] == {"max_queue_delay_microseconds": 0}
    varying = {t["name"] for t in made["input"] if t.get("allow_ragged_batch")}
    assert varying == {"face_crops", "waveform"}
    assert collected("preprocess", Deployment(max_batch_size=0))["max_batch_size"] == 0
    own = StepDeployment(max_batch_size=5, queue_delay_us=70)
    chosen = collected("preprocess", Deployment(steps={"preprocess": own}))
    assert chosen["max_batch_size"] == 5
    assert chosen["dynamic_batching"] == {"max_queue_delay_microseconds": 70}


def test_pictures_of_one_call_stay_within_bounds() -> None:
    """They all lie in shared memory at once."""
    small, large = Preprocessing(max_frame_side=100), Preprocessing(max_frame_side=2000)
    assert [collected("faces", Deployment(), p)["max_batch_size"] for p in (small, large)] == [
        16,
        0,
    ]
    usual = [collected(step, Deployment())["max_batch_size"] for step in ("decode", "faces")]
    assert usual == [3, 6]
    own = Deployment(steps={"decode": StepDeployment(max_batch_size=9)})
    assert collected("decode", own)["max_batch_size"] == 9


def rows(step: str, lengths: list[int], seed: int = 0) -> list[dict[str, NDArray[Any]]]:
    """A request of one clip for each length; the joint one with a spectrum and presence."""
    rng = np.random.default_rng(seed)
    found = []
    for n in lengths:
        if step == "audio_encoder":
            values = np.zeros((1, max(n, 1600)), np.float32)
            values[:, :n] = rng.normal(size=n)
            found.append({"audio_values": values, "audio_length": np.array([[n]])})
        else:
            name = step.removesuffix("_encoder")
            ids = rng.integers(1, 200, (1, max(n, 1)))
            request = {f"{name}_ids": ids, f"{name}_length": np.array([[n]])}
            if name == "joint":
                request["log_mel"] = rng.normal(size=(1, 80, 400)).astype(np.float32)
                request["presence"] = np.array([[True, bool(n % 2), True]])
            found.append(request)
    return found


@pytest.mark.parametrize(
    ("step", "lengths"),
    [
        ("audio_encoder", [16_000, 0, 4321, 1600, 40_000]),
        ("text_encoder", [5, 0, 1, 30]),
        ("joint_encoder", [9, 12, 31, 10]),
    ],
)
def test_real_encoders_answer_a_ragged_batch_as_clip_by_clip(step: str, lengths: list[int]) -> None:
    """Fed as Triton's ONNX Runtime backend feeds them, which cannot run here."""
    bundle = open_bundle(ROOT / "triton_repo" / "models")
    spec = bundle.contract.step(step)
    graph = onnxruntime.InferenceSession(
        bundle.model_path(step), providers=["CPUExecutionProvider"]
    )
    requests, (ragged,) = rows(step, lengths), spec.ragged
    native = tritons_feed(requests, ragged.values, ragged.length)
    others = [n for n in spec.inputs if n not in (ragged.values, ragged.length)]
    native |= {name: np.concatenate([r[name] for r in requests]) for name in others}
    together = graph.run(None, native)[0]
    for row, request in zip(together, requests, strict=True):
        alone = graph.run(None, graph_feed(spec, [request]))[0][0]
        np.testing.assert_allclose(row, alone, rtol=0, atol=1e-5)
    if step != "joint_encoder":
        assert not together[lengths.index(0)].any()
    assert len(np.unique(together.round(4), axis=0)) == len(lengths)


CLIENTS, CALLS = 16, 96
BATCH = 8


WAITS = {name: StepDeployment(queue_delay_us=400_000) for name in ENCODERS}
"""Encoders wait for a while, so that the size of a batch does not hang on how fast this machine
is; what comes after them does not wait."""


@pytest.mark.parametrize(
    ("deployment", "least"), [(Deployment(), 1.5), (Deployment(steps=WAITS), 3)]
)
def test_the_demonstration_bundle_shares_runs(
    triton: Installation, deployment: Deployment, least: float
) -> None:
    """As it stands, encoders find company, since the steps before them let go of all that they
    took at once. One by one, as those steps answered before, the first case gives 1.0."""
    bundle = open_bundle(ROOT / "triton_repo" / "models")
    entries = [mixed_entry(len(MIXES) * (i % 12)) for i in range(CALLS)]  # of sound, face and words
    near = EmbeddedBackend(bundle, threads=1)
    expected = [near.infer(entry) for entry in entries[:12]]
    near.close()
    with Server(bundle, ServeOptions(deployment=deployment), triton) as server:
        far = TritonBackend(server.grpc, deadline=300)
        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(far.infer, entries[:CLIENTS]))  # whatever is slow at first
            time.sleep(0.5)
            before = far.batch_statistics()
            found = list(pool.map(far.infer, entries))
        sizes = mean_sizes(far, before)
        far.close()
    for i, got in enumerate(found):
        assert expected[i % 12]["label"].tolist() == got["label"].tolist()
        for name in ("scores", "branch_scores", "branch_contributions"):
            np.testing.assert_allclose(got[name], expected[i % 12][name], rtol=0, atol=1e-5)
    assert all(sizes[name] > least for name in ENCODERS), sizes
    assert np.mean([sizes[name] for name in ENCODERS]) > 2, sizes


def mixed_entry(i: int) -> dict[str, NDArray[Any]]:
    """Each of another length, in all mixes of modalities in turn."""
    entry = decoded_entry(MIXES[i % len(MIXES)], seed=i)
    samples = 1600 + (i * 977) % 20_000
    if entry["waveform"].shape[1]:
        entry["waveform"] = np.ascontiguousarray(entry["waveform"][:, :samples])
        entry["waveform_length"] = np.array([[samples]], np.int64)
    if entry["text"][0, 0]:
        entry["text"][0, 0] += " word" * (i % 9)
    return entry


@pytest.fixture(scope="module")
def server(toy_bundle: Bundle, triton: Installation) -> Iterator[Server]:
    deployment = Deployment(max_batch_size=BATCH, steps=WAITS)
    with Server(toy_bundle, ServeOptions(deployment=deployment), triton) as running:
        yield running


@pytest.mark.parametrize("lazy", [False, True])
def test_clips_of_mixed_lengths_share_runs(toy_bundle: Bundle, server: Server, lazy: bool) -> None:
    entries = [mixed_entry(i) for i in range(CALLS)]
    near = EmbeddedBackend(toy_bundle, threads=1, lazy=lazy)
    expected = [near.infer(entry) for entry in entries]
    near.close()
    far = TritonBackend(server.grpc, deadline=120, lazy=lazy)
    try:
        before = far.batch_statistics()
        with ThreadPoolExecutor(CLIENTS) as pool:
            found = list(pool.map(far.infer, entries))
        sizes = mean_sizes(far, before)
    finally:
        far.close()
    for want, got in zip(expected, found, strict=True):
        assert want["label"].tolist() == got["label"].tolist()
        for name in ("scores", "branch_scores", "branch_contributions"):
            np.testing.assert_allclose(got[name], want[name], rtol=0, atol=1e-5)
    assert max(sizes.values()) <= BATCH
    if lazy:  # who is asked differs from clip to clip; the one nearly all need is shared
        assert sizes["joint_encoder"] > 3, sizes
    else:
        assert all(sizes[name] > 3 for name in ENCODERS), sizes


def mean_sizes(far: TritonBackend, before: dict[str, tuple[int, int]]) -> dict[str, float]:
    """Clips for each run of a step, by Triton's own count."""
    time.sleep(0.5)  # the server answers before it has counted the last step
    after = far.batch_statistics()
    counts = {name: np.subtract(after[name], before[name]) for name in after}
    return {name: clips / runs for name, (clips, runs) in counts.items() if runs}
