"""The launch files for many GPUs, as Accelerate itself reads them; none is run here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

LAUNCH = Path(__file__).resolve().parents[2] / "training" / "launch"
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed": DistributedType.DEEPSPEED,
}


def test_there_is_one_for_each_kind() -> None:
    assert {path.stem for path in LAUNCH.glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_understands_the_file(name: str) -> None:
    config = load_config_from_file(str(LAUNCH / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert config.distributed_type == KINDS[name]
    assert config.num_processes == 8 and not config.use_cpu


def test_fsdp_wraps_the_models_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(LAUNCH / "fsdp.yaml"), "-m", "merkit_training.cli"]
    )
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.use_fsdp and arguments.mixed_precision == "no"
    for key, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(key, value)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert plugin.transformer_cls_names_to_wrap is None  # so Callee._no_split_modules decides
    assert not plugin.cpu_ram_efficient_loading
