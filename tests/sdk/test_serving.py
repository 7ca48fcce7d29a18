"""Real Triton servers: started, killed, replaced under a client, and gone without a trace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from entries import decoded_entry
from toy import write_toy_bundle

from merkit.backends.triton import TritonBackend
from merkit.bundle import Bundle, open_bundle, write_manifest
from merkit.errors import (
    BundleNotFoundError,
    ContractMismatchError,
    DeadlineExceededError,
    InferenceError,
    InvalidInputError,
    MerkitError,
    ServerUnavailableError,
)
from merkit.opening import connect
from merkit.serving.scratch import ScratchFolder, remove_orphans
from merkit.serving.server import ServeOptions, Server, free_ports, telling_lines
from merkit.serving.tritonserver import INSTALL, Installation, find_installation

SHARED_MEMORY = Path("/dev/shm")


def group_of(leader: int) -> set[int]:
    """Processes of the group that `leader` leads; zombies left out."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == leader and state != "Z":
            found.add(int(folder.name))
    return found


def eventually(condition, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which servers of this test make theirs."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    monkeypatch.setattr("tempfile.tempdir", None)


class User:
    """Somebody who keeps calling, and remembers what came of it."""

    def __init__(self, backend: TritonBackend) -> None:
        self.backend, self.seen, self.done = backend, [], threading.Event()
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        entry = decoded_entry()
        while not self.done.wait(0.01):
            try:
                self.backend.infer(entry)
                self.seen.append("answer")
            except Exception as error:
                self.seen.append(type(error).__name__)

    def answered(self, times: int) -> bool:
        target = self.seen.count("answer") + times
        return eventually(lambda: self.seen.count("answer") >= target)

    def stop(self) -> None:
        self.done.set()
        self.thread.join()


def test_a_server_killed_restarted_and_replaced_under_its_clients(
    toy_bundle: Bundle, triton: Installation, tmp_path: Path, temporary: Path
) -> None:
    """One story, because each start costs seconds."""
    lines: list[str] = []
    server = Server(toy_bundle, installation=triton, progress=lines.append)
    assert len(group_of(server.pid)) > len(toy_bundle.contract.steps), "a stub for each step"
    assert all(line.startswith("waiting for Triton") for line in lines)
    assert server.folder.parent == temporary
    assert list(SHARED_MEMORY.glob(f"{server.folder.name}*"))
    same_port = ServeOptions(grpc_port=int(server.grpc.rpartition(":")[2]))
    user = User(TritonBackend(server.grpc, deadline=60))
    client, edge = (
        connect(server.grpc, deadline=60),
        connect(server.grpc, decode="client", deadline=60),
    )
    assert user.answered(5)

    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: "ServerUnavailableError" in user.seen)
    assert_gone(server, temporary)
    server = Server(toy_bundle, same_port, triton)
    assert user.answered(5), "the client did not recover"
    user.stop()
    user.backend.close()
    assert set(user.seen) <= {"answer", "ServerUnavailableError", "ServerNotReadyError"}
    assert client.predict(text="hello").label in toy_bundle.contract.labels
    assert_gone(server, temporary)

    other = write_toy_bundle(tmp_path / "other", labels=("calm", "angry"))
    server = Server(other, same_port, triton)
    expected, found = toy_bundle.contract.contract_id, other.contract.contract_id
    for late in (client, edge):
        with pytest.raises(ContractMismatchError) as caught:
            late.predict(text="hello")
        assert found in caught.value.found
        assert expected in caught.value.expected
        late.close()
    with pytest.raises(ContractMismatchError):
        connect(server.grpc, contract_id=expected, deadline=60)
    with connect(server.grpc, deadline=60) as fresh:
        assert fresh.predict(text="hello").label in ("calm", "angry")
    assert_gone(server, temporary)


def assert_gone(server: Server, temporary: Path) -> None:
    """Stops a server and looks for traces of it."""
    leader, folder = server.pid, server.folder
    server.stop()
    server.stop()
    assert not server.running()
    assert group_of(leader) == set()
    assert not list(temporary.iterdir())
    assert not list(SHARED_MEMORY.glob(f"{folder.name}*"))


def test_a_frozen_server_costs_a_deadline_and_no_more(toy_server: Server) -> None:
    backend = TritonBackend(toy_server.grpc, deadline=60)
    backend.deadline = 0.5
    os.kill(toy_server.pid, signal.SIGSTOP)
    try:
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError):
            backend.infer(decoded_entry())
        assert time.monotonic() - start < 1.5
    finally:
        os.kill(toy_server.pid, signal.SIGCONT)
    backend.deadline = 60
    assert backend.infer(decoded_entry())["label"].shape == (1,)
    backend.close()


COMMAND = [sys.executable, "-u", "-m", "merkit.cli", "serve"]


@contextmanager
def started(bundle: Bundle) -> Iterator[tuple[subprocess.Popen[str], int, list[str]]]:
    """`merkit serve` in a process of its own, its server's process id, and what it printed."""
    process = subprocess.Popen(
        [*COMMAND, str(bundle.root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.strip())
            if "Ctrl-C" in line:
                break
        children = Path(f"/proc/{process.pid}/task").glob("*/children")
        (server,) = [int(pid) for file in children for pid in file.read_text().split()]
        yield process, server, lines
    finally:
        process.kill()  # and with it the server
        process.communicate()


@pytest.mark.usefixtures("triton")
def test_serve_stops_cleanly(toy_bundle: Bundle, temporary: Path) -> None:
    with started(toy_bundle) as (process, server, lines):
        (url,) = [line.split()[1] for line in lines if line.startswith("grpc")]
        with connect(url, deadline=60) as client:
            assert client.predict(text="hello").modalities == ("text",)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # an impatient second one must not leave half of it
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out.strip(), err) == (0, "stopped", "")
    assert group_of(server) == set()
    assert not list(temporary.iterdir())


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("stuck", [False, True])
def test_the_server_ends_with_a_killed_parent(
    toy_bundle: Bundle, temporary: Path, stuck: bool
) -> None:
    with started(toy_bundle) as (process, server, _):
        if stuck:
            os.kill(server, signal.SIGSTOP)
        process.kill()
        process.wait()
        assert eventually(lambda: not group_of(server))
    (left,) = temporary.iterdir()
    os.utime(left, (0, 0))
    remove_orphans()
    assert not left.exists(), "the next server removes what the killed one could not"


def test_orphans_are_removed_and_nothing_else(temporary: Path) -> None:
    held = ScratchFolder()
    os.utime(held.path, (0, 0))
    young = temporary / "merkit-serve-young"
    young.mkdir()
    remove_orphans()
    assert held.path.exists()
    assert young.exists()
    held.remove()
    assert not held.path.exists()


def test_no_orphan_is_sought_behind_a_link_or_in_a_folder_of_another_user(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim, other = tmp_path / "victim", temporary / "merkit-serve-other"
    victim.mkdir()
    (temporary / "merkit-serve-link").symlink_to(victim)
    linked = temporary / "merkit-serve-lock"
    linked.mkdir()
    (linked / "lock").symlink_to(victim / "file")
    for folder in (victim, linked):
        os.utime(folder, (0, 0))
    remove_orphans()
    assert victim.is_dir()
    assert not list(victim.iterdir())
    other.mkdir()
    os.utime(other, (0, 0))
    me = os.geteuid()
    monkeypatch.setattr("merkit.serving.scratch.os.geteuid", lambda: me + 1)
    remove_orphans()
    assert other.is_dir()
    assert not list(other.iterdir())


def test_a_model_that_does_not_load_is_named(
    triton: Installation, tmp_path: Path, temporary: Path
) -> None:
    broken = write_toy_bundle(tmp_path / "broken")
    (broken.root / "fusion" / "1" / "model.onnx").write_bytes(b"no graph")
    details = {"voters": broken.manifest["voters"]}
    bundle = write_manifest(broken.root, broken.contract, broken.manifest["step_digests"], details)
    with pytest.raises(InferenceError, match=r"fusion: .*(Protobuf|protobuf|INVALID)"):
        Server(bundle, installation=triton)
    assert not list(temporary.iterdir())


def test_a_model_of_another_contract_is_refused_by_the_server(
    triton: Installation, tmp_path: Path
) -> None:
    one, two = write_toy_bundle(tmp_path / "1"), write_toy_bundle(tmp_path / "2", ("a", "b"))
    voting = one.root / "voting" / "1" / "model.onnx"
    voting.write_bytes((two.root / "voting" / "1" / "model.onnx").read_bytes())
    mixed = write_manifest(one.root, one.contract, one.manifest["step_digests"], {"voters": []})
    with pytest.raises(ContractMismatchError) as caught:
        Server(mixed, installation=triton)
    assert two.contract.contract_id in caught.value.found
    assert caught.value.expected == one.contract.contract_id


def test_a_server_that_is_not_ready_in_time(toy_bundle: Bundle, triton: Installation) -> None:
    with pytest.raises(ServerUnavailableError, match="not ready after"):
        Server(toy_bundle, ServeOptions(start_seconds=0.1), triton)


def test_a_port_that_is_taken(toy_bundle: Bundle, toy_server: Server) -> None:
    port = int(toy_server.grpc.rpartition(":")[2])
    with pytest.raises(ServerUnavailableError, match=f"{port} cannot be bound"):
        Server(toy_bundle, ServeOptions(grpc_port=port), toy_server.installation)
    with pytest.raises(InvalidInputError):
        free_ports("127.0.0.1", [70_000])
    assert len(set(free_ports("127.0.0.1", [0, 0, 0]))) == 3


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError):
        Server(tmp_path)


def test_without_a_server_the_error_says_how_to_install_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("MERKIT_TRITON_ENV", raising=False)
    monkeypatch.delenv("MERKIT_TRITONSERVER", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ServerUnavailableError) as caught:
        find_installation(tmp_path)
    assert "make triton" in caught.value.action
    assert INSTALL in caught.value.action


def test_a_named_server_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "opt" / "bin" / "tritonserver"
    monkeypatch.setenv("MERKIT_TRITONSERVER", str(binary))
    with pytest.raises(ServerUnavailableError, match="not an executable file"):
        find_installation(tmp_path)
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    with pytest.raises(ServerUnavailableError, match="no python backend"):
        find_installation(tmp_path)
    (tmp_path / "opt" / "backends" / "python").mkdir(parents=True)
    assert find_installation(tmp_path).flavour == "python"
    (tmp_path / "opt" / "backends" / "onnxruntime").mkdir()
    assert find_installation(tmp_path).flavour == "onnxruntime"
    monkeypatch.delenv("MERKIT_TRITONSERVER")
    monkeypatch.setenv("MERKIT_TRITON_ENV", str(tmp_path))
    with pytest.raises(ServerUnavailableError, match="holds no nvidia-pytriton"):
        find_installation(tmp_path)


def test_a_server_that_dies_at_once_shows_its_log(
    toy_bundle: Bundle, tmp_path: Path, temporary: Path
) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho 'error: no such thing'\nexit 3\n")
    binary.chmod(0o755)
    (tmp_path / "backends" / "python").mkdir(parents=True)
    with pytest.raises(InferenceError, match="no such thing"):
        Server(toy_bundle, installation=Installation(binary, tmp_path / "backends"))
    assert not list(temporary.iterdir())


def test_the_log_lines_that_tell_why() -> None:
    failed = "E1 x] \"failed to load 'faces' version 1: Internal: ImportError: no cv2\\n\\nAt:\\n\""
    log = f"I1 hello\n{failed}\nerror: creating server"
    assert telling_lines(log) == "faces: Internal: ImportError: no cv2"
    assert telling_lines("I1 hello\nerror: port") == "error: port"
    assert telling_lines("I1 hello") == "I1 hello"


def test_a_served_bundle_is_only_read(toy_bundle: Bundle, toy_server: Server) -> None:
    assert toy_server.running()
    names = {path.name for path in toy_bundle.root.rglob("*")}
    assert not names & {"config.pbtxt", "model.py", "__pycache__"}
    assert open_bundle(toy_bundle.root).manifest == toy_bundle.manifest


def test_errors_of_the_server_are_merkits(toy_server: Server) -> None:
    with connect(toy_server.grpc, deadline=60) as client:
        for clip in (b"no movie at all", b"\0" * 5000):
            with pytest.raises(MerkitError) as caught:
                client.predict(clip)
            assert type(caught.value).__name__ == "ClipUnreadableError"


def test_a_hail_of_bad_clips_leaves_the_server_alive(toy_server: Server) -> None:
    """With two first steps in an ensemble, a few hundred of these used to end in a deadlock."""
    with connect(toy_server.grpc, deadline=60) as client:
        answers = list(client.predict_many([b"no movie"] * 300, workers=4))
        assert {type(answer).__name__ for answer in answers} == {"ClipUnreadableError"}
        assert client.predict(text="hello").label
