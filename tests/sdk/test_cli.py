"""The command line as a shell sees it: what is printed where, and the exit status."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from odd_media import gray, movie, tone

import merkit
from merkit.bundle import MANIFEST, Bundle
from merkit.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `merkit ARGUMENTS` in this process; status, stdout, stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "tone.mp4"
    path.write_bytes(movie([gray(90)] * 10, sound=tone(1.0)))
    return path


def test_a_clip_as_a_table(run: Run, toy_bundle: Bundle, clip: Path) -> None:
    status, out, err = run("predict", clip, "--bundle", toy_bundle.root, "--text", "well, well")
    assert (status, err) == (0, "")
    assert out.startswith(str(clip))
    for label in toy_bundle.contract.labels:
        assert label in out
    for said in ("t+V+j", "audio", "text", "(without video)", "well, well", "ms in all", "no face"):
        assert said in out
    assert "█" in out


def test_json_lines_for_several_clips_of_which_one_is_bad(
    run: Run, toy_bundle: Bundle, clip: Path
) -> None:
    status, out, err = run(
        "predict", clip, "missing.mp4", clip, "--bundle", toy_bundle.root, "--json"
    )
    assert (status, err) == (1, "")
    good, bad, again = map(json.loads, out.splitlines())
    assert good["source"] == str(clip)
    assert good["label"] == again["label"] == max(good["scores"], key=good["scores"].get)
    assert bad["source"] == "missing.mp4"
    assert bad["error"]["kind"] == "ClipNotFoundError"
    assert {"message", "found", "expected", "action"} <= set(bad["error"])


def test_a_bad_clip_goes_to_stderr_and_the_others_to_stdout(
    run: Run, toy_bundle: Bundle, clip: Path
) -> None:
    status, out, err = run("predict", "missing.mp4", clip, "--bundle", toy_bundle.root)
    assert status == 1
    assert out.strip().startswith(str(clip))
    assert err.count("\n") == 1
    assert "missing.mp4" in err
    assert "ClipNotFoundError" in err


def test_words_alone_and_words_for_each_clip(run: Run, toy_bundle: Bundle, clip: Path) -> None:
    where = ("--bundle", toy_bundle.root, "--json")
    status, out, _ = run("predict", "--text", "one", "--text", "two", *where)
    assert status == 0
    assert [json.loads(line)["transcript"] for line in out.splitlines()] == ["one", "two"]
    status, out, _ = run("predict", clip, clip, "--text", "one", "--text", "", *where)
    assert [json.loads(line)["transcript"] for line in out.splitlines()] == ["one", None]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predict"],
        ["predict", "a", "b", "--text", "one"],
        ["predict", "a", "--bundle", "x", "--url", "y"],
        ["predict", "a", "--deadline", "3"],
        ["predict", "a", "--url", "u", "--deadline", "0"],
        ["predict", "a", "--url", "u", "--yunet", "y"],
        ["predict", "a", "--decode", "client"],
        ["frobnicate"],
        ["inspect"],
    ],
    ids=" ".join,
)
def test_a_wrong_command_line_is_status_2(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert "usage: merkit" in err


def test_the_bundle_comes_from_the_option_the_environment_or_the_folder(
    run: Run, toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MERKIT_BUNDLE", raising=False)
    status, _, err = run("predict", "--text", "words")
    assert status == 1
    assert "--bundle DIR" in err
    monkeypatch.setenv("MERKIT_BUNDLE", str(toy_bundle.root))
    assert run("predict", "--text", "words")[0] == 0
    monkeypatch.delenv("MERKIT_BUNDLE")
    shutil.copytree(toy_bundle.root, tmp_path / "triton_repo" / "models")
    assert run("predict", "--text", "words")[0] == 0
    status, _, err = run("predict", "--text", "words", "--bundle", tmp_path / "nowhere")
    assert status == 1
    assert "BundleNotFoundError" in err


def test_a_report_is_written_whole_or_not_at_all(
    run: Run, toy_bundle: Bundle, clip: Path, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    where = ("--bundle", toy_bundle.root)
    status, _, err = run("predict", clip, "missing.mp4", *where, "--report", report)
    assert status == 1
    assert str(report) in err
    assert "missing.mp4" in report.read_text("utf-8")
    status, out, err = run("predict", clip, *where, "--report", tmp_path / "no" / "report.html")
    assert (status, out) == (1, "")
    assert "existing folder" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html"]


def test_no_server(run: Run) -> None:
    status, out, err = run("predict", "--text", "x", "--url", "grpc://127.0.0.1:9", "--deadline", 1)
    assert (status, out) == (1, "")
    assert "nothing answers" in err
    status, _, err = run("predict", "--text", "words", "--url", "ftp://somewhere")
    assert status == 1
    assert "InvalidInputError" in err


def test_inspect(run: Run, toy_bundle: Bundle) -> None:
    status, out, _ = run("inspect", toy_bundle.root)
    assert status == 0
    for said in (toy_bundle.bundle_id, toy_bundle.contract.contract_id, "face_encoder", "a+t+v"):
        assert said in out
    status, out, _ = run("inspect", toy_bundle.root, "--json")
    plain = json.loads(out)
    assert [step["name"] for step in plain["steps"]] == [s.name for s in toy_bundle.contract.steps]
    assert plain["bytes"] == sum(step["bytes"] for step in plain["steps"])


def test_verify_passes_on_a_sound_bundle_and_fails_on_a_changed_byte(
    run: Run, toy_bundle: Bundle, tmp_path: Path
) -> None:
    status, out, _ = run("verify", toy_bundle.root)
    assert status == 0
    assert "FAIL" not in out
    assert out.count("PASS") == 12  # content, admission, configs, graphs, eight mixes
    copy = tmp_path / "copy"
    shutil.copytree(toy_bundle.root, copy)
    model = copy / "fusion" / "1" / "model.onnx"
    model.write_bytes(model.read_bytes()[::-1])
    status, out, _ = run("verify", copy)
    assert status == 1
    assert "FAIL  content" in out
    assert "fusion" in out
    (copy / MANIFEST).unlink()
    assert run("verify", copy)[0] == 1


def test_a_file_name_cannot_move_the_cursor(run: Run, toy_bundle: Bundle) -> None:
    _, _, err = run("predict", "\x1b[2Jgone.mp4", "x.mp4", "--bundle", toy_bundle.root)
    assert "\x1b" not in err
    assert "\\x1b[2Jgone.mp4" in err


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"merkit {merkit.__version__}\n", "")


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "merkit.cli", *map(str, arguments)]


def test_a_reader_that_goes_away_is_no_traceback(toy_bundle: Bundle) -> None:
    words = [part for k in range(200) for part in ("--text", f"number {k}")]
    process = subprocess.Popen(
        command("predict", *words, "--bundle", toy_bundle.root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no /dev/full")
def test_a_full_disk_is_no_traceback(toy_bundle: Bundle) -> None:
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(
            command("predict", "--text", "words", "--bundle", toy_bundle.root),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert found.returncode == 1
    assert found.stderr.count("\n") == 1
    assert "cannot be written" in found.stderr


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "/tmp/x"), BrokenPipeError(32, "Broken pipe")]
)
def test_an_error_of_the_machine_is_not_taken_for_one_of_the_output(
    run: Run, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("merkit.serving.serve", fails)
    status, out, err = run("serve", toy_bundle.root)
    assert (status, out) == (1, "")
    assert err == f"merkit: {error} [{type(error).__name__}]\n"


def test_ctrl_c_is_no_traceback(toy_bundle: Bundle) -> None:
    words = [part for k in range(5000) for part in ("--text", f"number {k}")]
    process = subprocess.Popen(
        command("predict", *words, "--bundle", toy_bundle.root),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job ignores SIGINT, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    lines = [line for line in err.splitlines() if "epoll_ctl" not in line]  # gRPC's, of our fork
    assert lines == ["interrupted"]
    assert process.returncode == 130


def test_a_terminal_without_unicode_gets_plain_bars(toy_bundle: Bundle) -> None:
    found = subprocess.run(
        command("predict", "--text", "真没想到", "--bundle", toy_bundle.root),
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"####" in found.stdout
    assert found.stdout.isascii()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_json_stays_json_whatever_stdout_can_encode(toy_bundle: Bundle, encoding: str) -> None:
    words = "é 😀 太"
    done = _shell(toy_bundle, "--json", words=words, PYTHONIOENCODING=encoding)
    assert json.loads(done.stdout.decode(encoding))["transcript"] == words


def test_with_stdout_or_stderr_closed_nothing_goes_astray(toy_bundle: Bundle) -> None:
    assert _shell(toy_bundle, redirect=">&-").stderr == b""
    failed = _shell(toy_bundle, "missing.mp4", redirect="2>&-")
    assert (failed.returncode, failed.stdout) == (1, b"")


def _shell(
    bundle: Bundle, *more: str, words: str = "hi", redirect: str = "", **variables: str
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "merkit.cli", "predict", "--text", words, *more]
    command += ["--bundle", str(bundle.root)]
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirect}', "sh", *command],
        capture_output=True,
        env=os.environ | variables,
        timeout=60,
        check=False,
    )


def test_a_report_name_that_no_file_can_have(run: Run, toy_bundle: Bundle) -> None:
    status, out, err = run(
        "predict", "--text", "x", "--bundle", toy_bundle.root, "--report", "a" * 300
    )
    assert (status, out) == (1, "")
    assert "InvalidInputError" in err
