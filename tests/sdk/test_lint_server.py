"""Lint agrees with the real server: what it calls an error is refused, what it warns of loads.

One server in explicit mode is handed every broken model beside the others, which takes seconds;
lint saw each of them alone, in test_lint.py.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
import tritonclient.grpc as grpc
from lint_cases import CASE, CASES, SOUND, Case, write_case, write_relay
from tritonclient.utils import InferenceServerException

from merkit.bundle import Bundle
from merkit.errors import InvalidInputError
from merkit.lint import RULES
from merkit.serving.server import HOST, Server, free_ports
from merkit.serving.tritonserver import Installation, assemble
from merkit_export.cli import main as merkit_export

JUDGED = tuple(case for case in (*CASES, *SOUND) if not case.crashes)
LOG = "server.log"
LOAD_SECONDS, HANG_SECONDS = 60.0, 4.0


def name_of(case: Case) -> str:
    return f"case_{JUDGED.index(case):02d}" if case in JUDGED else CASE


@pytest.fixture(scope="module")
def verdicts(triton: Installation, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The server's message for each case by name; "" where the model loads."""
    root = tmp_path_factory.mktemp("judged")
    repository = root / "models"
    write_relay(repository)
    for case in JUDGED:
        write_case(repository, case, name_of(case))
    with served(triton, repository, root) as client:
        client.load_model("relay")
        return {case.name: verdict(client, case, root / LOG) for case in JUDGED}


class served:  # noqa: N801  (a context manager that reads like a word)
    """A server on a repository, nothing loaded, and a client of it."""

    def __init__(self, triton: Installation, repository: Path, root: Path) -> None:
        support = root / "support"
        support.mkdir()
        backends, environment = assemble(triton, support)
        ports = dict(zip(("grpc", "http", "metrics"), free_ports(HOST, (0, 0, 0)), strict=True))
        self.prefix = f"merkit-lint-{os.getpid()}"
        command = [
            str(triton.binary),
            f"--model-repository={repository}",
            f"--backend-directory={backends}",
            f"--backend-config=python,shm-region-prefix-name={self.prefix}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=2",
        ]
        for service, port in ports.items():
            command += [f"--{service}-address={HOST}", f"--{service}-port={port}"]
        self.log = (root / LOG).open("wb")
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=self.log, env=environment, cwd=root
        )
        self.client = grpc.InferenceServerClient(f"{HOST}:{ports['grpc']}")

    def __enter__(self) -> grpc.InferenceServerClient:
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.client.is_server_live():
                    return self.client
            except InferenceServerException:
                time.sleep(0.1)
        self.__exit__()
        raise AssertionError("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()
        for region in Path("/dev/shm").glob(f"{self.prefix}*"):
            region.unlink(missing_ok=True)


def verdict(client: grpc.InferenceServerClient, case: Case, log: Path) -> str:
    """What the server says of the model, the lines that it only logs included; "" if it loads."""
    before = log.stat().st_size
    try:
        client.load_model(
            name_of(case), client_timeout=HANG_SECONDS if case.hangs else LOAD_SECONDS
        )
    except InferenceServerException as error:
        logged = log.read_bytes()[before:].decode("utf-8", "replace")
        return f"{error}\n{logged}"
    return ""


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.crashes], ids=lambda case: case.name
)
def test_lint_agrees_with_the_server(case: Case, verdicts: dict[str, str]) -> None:
    rule, found = RULES[case.rule], verdicts[case.name]
    assert bool(found) == (rule.severity == "error"), found or "the server loads it"
    assert rule.verdict in found


@pytest.mark.parametrize("case", SOUND, ids=lambda case: case.name)
def test_the_server_loads_what_lint_finds_nothing_in(case: Case, verdicts: dict[str, str]) -> None:
    assert not verdicts[case.name]


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.crashes], ids=lambda case: case.name
)
def test_some_models_are_refused_or_end_the_server(
    case: Case, triton: Installation, tmp_path: Path
) -> None:
    """A warm-up of too many: refused twice, and the third time a segmentation fault."""
    write_case(tmp_path / "models", case)
    with served(triton, tmp_path / "models", tmp_path) as client:
        found = verdict(client, case, tmp_path / LOG)
    assert RULES[case.rule].verdict in found or "UNAVAILABLE" in found, found
    assert RULES[case.rule].severity == "error"


def break_it(_bundle: Bundle, out: Path, *_: object, **__: object) -> list[Path]:
    """Renders something that no server would load."""
    (out / "notes").mkdir(parents=True)
    return []


def test_serve_refuses_what_the_server_would(
    triton: Installation, toy_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("merkit.serving.server.render", break_it)
    with pytest.raises(InvalidInputError, match="stray-folder"):
        Server(toy_bundle, installation=triton)


def test_render_refuses_what_the_server_would(
    toy_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("merkit.serving.render.render", break_it)
    out = tmp_path / "models"
    assert merkit_export(["render", str(toy_bundle.root), "--out", str(out)]) != 0
    assert "stray-folder" in capsys.readouterr().err
