"""Two processes, two actors or one: the same files, byte for byte, and the same errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import odd_media
import pytest
import tiny_published

from merkit_training import cli
from merkit_training.features.engine import CHUNK


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_published.write_wav2vec2(tmp_path_factory.mktemp("published") / "wav2vec2")


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips for three chunks, one of which cannot be read."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    for number in range(2 * CHUNK + 3):
        wave = odd_media.tone(rng.uniform(0.2, 0.4)) * rng.uniform(0.1, 0.9)
        data = odd_media.movie([], container="wav", sound_codec="pcm_s16le", sound=wave)
        (folder / f"s{number:02d}.wav").write_bytes(data)
    (folder / "s05.wav").write_bytes(b"no sound")
    return folder


@pytest.fixture(scope="module")
def alone(published: Path, sounds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes."""
    out = tmp_path_factory.mktemp("alone")
    assert cli.main(_arguments(published, sounds, out)) == 0
    return out


def _arguments(published: Path, sounds: Path, out: Path) -> list[str]:
    return ["features", str(published), "--clips", str(sounds), "--out", str(out), "--frames"]


def _files(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("*-*/*.npy"))}


@pytest.mark.parametrize(
    "spread", [["--processes", "2"], ["--ray", "2"]], ids=["accelerate", "ray"]
)
def test_spread_work_leaves_the_same_files(
    spread: list[str],
    published: Path,
    sounds: Path,
    alone: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if "--ray" in spread:
        pytest.importorskip("ray", reason="ray is not installed")
    assert cli.main([*_arguments(published, sounds, tmp_path), *spread]) == 0
    told = capfd.readouterr().out
    assert "67 clips, 16 wide; 66 computed, 1 none" in told and "s05: " in told
    assert len(_files(alone)) == 2 * 66 and _files(tmp_path) == _files(alone)


def test_accelerate_launch_shares_the_work(
    published: Path, sounds: Path, alone: Path, tmp_path: Path
) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", "0", "-m", "merkit_training.cli"]
    done = subprocess.run(
        launch + _arguments(published, sounds, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("66 computed") == 1
    assert _files(tmp_path) == _files(alone)


def test_an_error_in_a_process_is_the_users_one_line(
    sounds: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["features", "none:audio_encoder", "--clips", str(sounds), "--out", str(tmp_path)]
    assert cli.main([*arguments, "--processes", "2"]) == 2
    error = capfd.readouterr().err
    assert "merkit-train: 'none:audio_encoder' is no encoder" in error and "Traceback" not in error


def test_without_ray_the_extra_is_named(
    published: Path,
    sounds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main([*_arguments(published, sounds, tmp_path), "--ray", "2"]) == 2
    assert "pip install 'merkit[ray]'" in capsys.readouterr().err
