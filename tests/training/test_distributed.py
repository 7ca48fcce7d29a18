"""Two processes learn what one does; killed, they go on; only one of them writes.

This file is also the program that the processes run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_corpus import write_tiny_corpus
from torch import Tensor, nn

from merkit.errors import InvalidInputError
from merkit_training import cli
from merkit_training.distributed import PlainModule
from merkit_training.fit import FitConfig, clear_checkpoints, fit

X = torch.randn(301, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] + X[:, 1] > 0).long()
CONFIG = FitConfig(epochs=3, batch_size=25, accumulate=2, lr=5e-2, checkpoint_seconds=0)
STEPS = 3 * (301 // 50)
TOLERANCE = 1e-6  # of the loss and the weights: sums of the same terms in another order


class Model(nn.Module):
    """With a part that some steps leave out, as encoders with several heads have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU())
        self.heads = nn.ModuleList([nn.Linear(16, 2), nn.Linear(16, 2), nn.Linear(16, 2)])

    def forward(self, values: Tensor, head: int) -> Tensor:
        scores: Tensor = self.heads[head](self.body(values))
        return scores


def _train(folder: Path, kill_at: int = -1, config: FitConfig = CONFIG) -> dict[str, float]:
    model, calls = Model(), 0

    def loss(model: nn.Module, indices: NDArray[np.int64]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == kill_at and os.environ.get("RANK") == "1":
            os._exit(9)
        scores = model(X[indices], 0) + model(X[indices], 1)
        return nn.functional.cross_entropy(scores, Y[indices])

    def evaluate(model: nn.Module) -> dict[str, float]:
        return {"accuracy": float((model(X, 0).argmax(1) == Y).float().mean())}

    scores = fit(model, loss, len(X), config, folder, name="a", evaluate=evaluate)
    torch.save(model.state_dict(), folder / f"weights-{os.environ.get('RANK', '0')}.pt")
    return scores


def _launch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"]
    command += [__file__, str(folder), *arguments]
    shared = str(Path(__file__).resolve().parents[1])  # where tiny_corpus is
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": shared}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def _curve(folder: Path, tag: str = "loss") -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.parent / "logs" / folder.name / "a"))
    events.Reload()
    return [(point.step, point.value) for point in events.Scalars(tag)]


def _weights(folder: Path, rank: int = 0) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(folder / f"weights-{rank}.pt", weights_only=True)
    return weights


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together") / "stage"
    ended = _launch(folder)
    assert ended.returncode == 0, ended.stderr
    return folder


def test_two_processes_follow_the_curve_of_one(tmp_path: Path, together: Path) -> None:
    alone = tmp_path / "stage"
    scores = _train(alone)
    one, two = _curve(alone), _curve(together)
    assert [step for step, _ in one] == [step for step, _ in two] == list(range(STEPS))
    assert np.allclose([v for _, v in one], [v for _, v in two], rtol=0, atol=TOLERANCE)
    assert one[-1][1] < 0.5 * one[0][1]
    assert json.loads((together / "scores.json").read_text())["accuracy"] == scores["accuracy"]
    for name, value in _weights(alone).items():
        assert torch.allclose(value, _weights(together)[name], rtol=0, atol=TOLERANCE), name


def test_both_processes_end_at_the_same_weights(together: Path) -> None:
    for name, value in _weights(together).items():
        assert torch.equal(value, _weights(together, 1)[name]), name


def test_only_one_process_writes(together: Path) -> None:
    assert len(list((together.parent / "logs").rglob("events*"))) == 1
    costs = json.loads((together / "fits.json").read_text())["a"]
    assert costs["processes"] == 2 and costs["samples_per_second"] > 0


def test_a_killed_pair_goes_on_to_the_same_end(tmp_path: Path, together: Path) -> None:
    folder = tmp_path / "stage"
    assert _launch(folder, "17").returncode != 0
    assert (folder / "a.checkpoint").exists() and not (folder / "scores.json").exists()
    ended = _launch(folder)
    assert ended.returncode == 0, ended.stderr
    for name, value in _weights(together).items():
        assert torch.equal(value, _weights(folder)[name]), name
    assert _curve(folder) == _curve(together)  # no step twice, none left out


def test_passes_add_up_to_one_batch(tmp_path: Path) -> None:
    _train(tmp_path / "two")
    _train(tmp_path / "one", config=FitConfig(3, 50, 5e-2, checkpoint_seconds=0))
    for name, value in _weights(tmp_path / "one").items():
        assert torch.allclose(value, _weights(tmp_path / "two")[name], rtol=0, atol=TOLERANCE), name


def test_a_step_too_small_to_share_is_refused(tmp_path: Path) -> None:
    config = FitConfig(epochs=1, batch_size=2, accumulate=400, lr=1e-3)
    with pytest.raises(InvalidInputError, match="301 samples for a step of 400"):
        _train(tmp_path, config=config)


def test_shards_follow_the_curve_of_one_process_killed_or_not(
    tmp_path: Path, together: Path
) -> None:
    folder = tmp_path / "stage"
    assert _launch(folder, "17", "fsdp").returncode != 0
    assert list(folder.glob("a.checkpoint-*/*")) and not (folder / "scores.json").exists()
    ended = _launch(folder, "-1", "fsdp")
    assert ended.returncode == 0, ended.stderr
    one, two = _curve(together), _curve(folder)
    assert [step for step, _ in one] == [step for step, _ in two]
    assert np.allclose([v for _, v in one], [v for _, v in two], rtol=0, atol=TOLERANCE)
    for rank in (0, 1):
        for name, value in _weights(together).items():
            assert torch.allclose(value, _weights(folder, rank)[name], rtol=0, atol=TOLERANCE), name
    assert len(list(folder.glob("a.checkpoint-*"))) == 1  # those of earlier steps are gone
    clear_checkpoints(folder)
    assert not list(folder.glob("*checkpoint*"))


RECIPE = """
[face_pretraining]
epochs = 1
batch_size = 16
[face_encoder]
hidden = 16
layers = 2
heads = 2
single_epochs = 1
grid_epochs = 1
grid_singles = 8
batch_size = 16
[text_encoder]
vocabulary = 330
hidden = 32
layers = 2
heads = 2
intermediate = 48
epochs = 1
batch_size = 16
tune = "lora"
[audio_encoder]
conv_channels = [24, 24]
conv_kernels = [200, 2]
conv_strides = [160, 2]
hidden = 32
layers = 2
heads = 2
intermediate = 48
position_groups = 4
front_epochs = 1
epochs = 1
batch_size = 16
[joint_encoder]
hidden = 32
layers = 1
heads = 2
intermediate = 48
tower_epochs = 1
epochs = 1
batch_size = 16
"""
STAGES = ("face_pretraining", "face_encoder", "text_encoder", "audio_encoder", "joint_encoder")


def _run(tmp_path: Path, corpus: Path, stage: str, processes: int) -> int:
    recipe = tmp_path / "r.toml"
    if not recipe.exists():  # one process would read what another is just writing
        recipe.write_text(RECIPE)
    command = ["run", str(recipe), "--corpus", str(corpus), "--stage", stage]
    return cli.main([*command, "--out", str(tmp_path / "run"), "--processes", str(processes)])


def test_stages_of_every_kind_train_in_two_processes(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus", train=64, val=16)
    assert _run(tmp_path, corpus, "tokenizer", 1) == 0
    assert _launch(tmp_path, str(corpus), "stages").returncode == 0
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    for name in STAGES:
        fits = stages[name]["fits"].values()
        assert fits and all(fit["processes"] == 2 for fit in fits), name
        assert (tmp_path / "run" / name / "model.safetensors").exists(), name
    left = [*(tmp_path / "run").rglob("*checkpoint*"), *(tmp_path / "run").rglob("*.tmp")]
    assert not left


def test_the_command_starts_its_processes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus", train=32, val=8)
    assert _run(tmp_path, corpus, "face_encoder", 2) == 0
    stage = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["face_encoder"]
    assert stage["fits"]["single"]["processes"] == 2
    capfd.readouterr()
    (corpus / "sequences" / "split.npy").unlink()
    (tmp_path / "run" / "face_encoder" / "card.json").unlink()
    with pytest.raises(SystemExit) as ended:
        _run(tmp_path, corpus, "face_encoder", 2)
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert "split.npy" in error and error.count("merkit-train:") == 1


def test_no_process_outlives_the_one_that_was_killed(tmp_path: Path) -> None:
    corpus = write_tiny_corpus(tmp_path / "corpus", train=32, val=8)
    (tmp_path / "r.toml").write_text(RECIPE.replace("single_epochs = 1", "single_epochs = 100000"))
    command = [sys.executable, "-m", "merkit_training.cli", "run", str(tmp_path / "r.toml")]
    command += ["--corpus", str(corpus), "--out", str(tmp_path / "run"), "--stage", "face_encoder"]
    starter = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.DEVNULL)
    events = tmp_path / "run" / "logs" / "face_encoder" / "single"
    deadline = time.monotonic() + 90
    while not events.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = psutil.Process(starter.pid).children()
    starter.kill()
    starter.wait()
    assert events.exists() and len(children) == 2
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert all(child.status() == psutil.STATUS_ZOMBIE for child in alive), (gone, alive)


def test_a_sharded_module_becomes_plain_again(tmp_path: Path) -> None:
    ended = _launch(tmp_path, "-1", "shard")
    assert ended.returncode == 0, ended.stderr


def _shard_and_restore() -> None:
    """FSDP on two processes, twice over the same module, with tied weights."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    from merkit_training import processes
    from merkit_training.distributed import _whole

    processes.join()
    model = Model()
    model.heads[1].weight = model.heads[0].weight
    model.body[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(X, 0)
    kinds = [type(module) for module in model.modules()]
    for _ in range(2):
        plain = PlainModule(model)
        fully_shard(model.body)
        fully_shard(model)
        assert any(isinstance(value, DTensor) for value in model.parameters())
        assert torch.allclose(model(X, 0), expected)
        plain.restore({name: _whole(value) for name, value in model.state_dict().items()})
        assert [type(module) for module in model.modules()] == kinds
        assert model.heads[1].weight is model.heads[0].weight
        assert not model.body[0].weight.requires_grad and model.body[0].bias.requires_grad
        assert torch.equal(model(X, 0), expected)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]) and not isinstance(value, DTensor)


def _pretend_fsdp() -> None:
    """Makes Accelerate shard on processors, which its launcher keeps for GPUs."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from merkit_training import processes

    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    processes.join()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _main(folder: str, kill_at: str = "-1", mode: str = "ddp") -> None:
    if mode == "stages":  # in one pair of processes, since each start costs seconds
        return sys.exit(max(_run(Path(folder), Path(kill_at), stage, 2) for stage in STAGES))
    if mode == "shard":
        return _shard_and_restore()
    if mode == "fsdp":
        _pretend_fsdp()
    scores = _train(Path(folder), int(kill_at))
    if os.environ["RANK"] == "0":
        (Path(folder) / "scores.json").write_text(json.dumps(scores))
    return None


if __name__ == "__main__":
    _main(*sys.argv[1:])
