"""The command merkit-export, as a shell meets it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from odd_media import movie, quadrants, tone

from merkit.bundle import Bundle, open_bundle
from merkit_export.cli import main


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of media in MER's layout: one clip with sound, one silent, one broken."""
    folder = tmp_path_factory.mktemp("clips") / "odd"
    (folder / "video").mkdir(parents=True)
    pictures = [quadrants()] * 10
    (folder / "video" / "sound.mp4").write_bytes(movie(pictures, sound=tone(1.0)))
    (folder / "video" / "words.mp4").write_bytes(movie(pictures))
    (folder / "video" / "broken.mp4").write_bytes(b"no media")
    (folder / "transcripts.csv").write_text("name,chinese,english\nwords,你好,\n", "utf-8")
    return folder


def test_verify_compares_steps_and_clips(
    exported: Bundle, random_run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    page, machine = tmp_path / "docs" / "parity.md", tmp_path / "parity.json"
    command = ["verify", str(exported.root), "--run", str(random_run), "--clips", str(clips)]
    assert main([*command, "--report", str(page), "--json", str(machine)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18  # 8 steps twice, made-up clips, real clips
    assert all(line.startswith("PASS") for line in lines)
    found = json.loads(machine.read_text())
    assert found["passed"]
    assert found["bundle_id"] == exported.bundle_id
    assert (found["clips"]["odd"]["clips"], found["clips"]["odd"]["refused"]) == (3, 1)
    text = page.read_text()
    assert "| odd | 3 | 1 | 0 |" in text
    assert all(f"| `{name}` |" in text for name in found["steps"])


def test_verify_refuses_other_weights(
    exported: Bundle, random_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    shutil.copytree(random_run, run)
    with (run / "audio_encoder" / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert main(["verify", str(exported.root), "--run", str(run)]) == 2
    assert "other weights of audio_encoder" in capsys.readouterr().err


def test_render_writes_a_repository(exported: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "repository"
    assert main(["render", str(exported.root), "--flavour", "python", "--out", str(out)]) == 0
    assert open_bundle(out).bundle_id == exported.bundle_id
    assert 'backend: "python"' in (out / "fusion" / "config.pbtxt").read_text()


@pytest.mark.parametrize(
    ("command", "word"),
    [
        (["build", "nowhere", "--out", "models"], "nowhere"),
        (["verify", "nowhere", "--run", "nowhere"], "nowhere"),
        (["verify", "nowhere", "--run", "nowhere", "--clips", "nowhere"], "no folder nowhere"),
        (["render", "nowhere"], "nowhere"),
        (["verify", "nowhere", "--run", "nowhere", "--limit", "-1"], "--limit"),
        (["verify", "b", "--run", "r", "--budget-agreement", "nan"], "--budget-agreement is nan"),
        (["verify", "b", "--run", "r", "--budget-waf", "-1"], "--budget-waf is -1"),
        (["build", "run"], "no --out"),
        (["build", "run", "--out", "b", "--corpus", "c"], "--corpus without --target"),
        (["build", "run", "--out", "b", "--table", "t.md"], "--table without --target"),
        (["build", "run", "--out", "b", "--target", "cpu", "--budget-waf", "nan"], "--budget-waf"),
        (["build", "nowhere", "--dry-run"], "nowhere"),
        (["preflight", "nowhere", "--json", "."], ". is a folder"),
        (["plan", "nowhere.toml", "--json", "."], "--json"),
        (["verify", "b", "--run", "r", "--html", "/dev/null/page.html"], "/dev/null takes no"),
        (["build", "r", "--out", "b", "--target", "cpu", "--table", "."], "--table"),
        (["build", "--untrained", "nowhere.toml", "--dry-run"], "nowhere.toml"),
    ],
)
def test_errors_are_one_line(
    command: list[str], word: str, tmp_path: Path, capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    error = capsys.readouterr().err
    assert error.startswith("merkit-export: ")
    assert error.count("\n") == 1
    assert word in error
    assert not list(tmp_path.iterdir())


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, merkit_export.cli as c\n"
        "try: c.main(['--help'])\n"
        "except SystemExit as e: assert e.code == 0\n"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "build" in done.stdout
