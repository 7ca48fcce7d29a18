"""The container: its recipe, and the command that it becomes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import onnx
import pytest
from authority import Authority
from conftest import REPOSITORY

from merkit import __version__
from merkit.admission import TRUSTED_KEYS
from merkit.bundle import Bundle, open_bundle, write_manifest
from merkit.client import Client
from merkit.errors import (
    BundleCorruptError,
    InvalidInputError,
    ServerNotReadyError,
    ServerUnavailableError,
    SignerUnknownError,
    UnsignedBundleError,
)
from merkit.opening import connect
from merkit.serving import container
from merkit.serving.deployment import Deployment
from merkit.serving.guard import ADMINISTRATION, ANSWERS, Protection, Tracing
from merkit.serving.render import render
from merkit.serving.server import ServeOptions, free_ports
from merkit.serving.tritonserver import Installation, assemble
from merkit.signing import generate_keys, sign

DOCKERFILE = REPOSITORY / "triton_repo" / "Dockerfile"
LINES = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text("utf-8")).splitlines()
INSTRUCTIONS = [line.split(maxsplit=1) for line in LINES if line and line[0] not in "# "]
FINAL = INSTRUCTIONS[max(i for i, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM") :]
SECRET = "a-secret-of-some-length"
HERE = {"MERKIT_REPOSITORY": str(REPOSITORY / "triton_repo" / "models")}


def stated(name: str) -> list[str]:
    return [rest for instruction, rest in FINAL if instruction == name]


def test_the_linter_has_no_complaint() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_every_source_that_is_copied_exists_and_is_sent_to_the_build() -> None:
    sent = Path(f"{DOCKERFILE}.dockerignore").read_text("utf-8").splitlines()
    admitted = {line[1:] for line in sent if line.startswith("!")}
    copied = [rest.split()[:-1] for name, rest in INSTRUCTIONS if name == "COPY"]
    sources = {s for parts in copied if not parts[0].startswith("--from") for s in parts}
    assert sources == admitted
    assert all((REPOSITORY / source).exists() for source in sources)


def test_the_wheels_own_sources_are_among_them() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    copied = {rest.split()[0] for name, rest in INSTRUCTIONS if name == "COPY"}
    assert {package.split("/")[0] for package in packages} <= copied
    extras = re.search(r'"\.\[([\w,]+)\]"', DOCKERFILE.read_text("utf-8"))
    assert extras
    assert set(extras[1].split(",")) <= set(project["project"]["optional-dependencies"])


def test_it_runs_as_nobody_in_particular_and_says_how_it_is() -> None:
    (user,) = stated("USER")
    assert int(user.split(":")[0]) > 0
    assert stated("HEALTHCHECK")
    assert stated("STOPSIGNAL") == ["SIGTERM"]
    assert f"VERSION={__version__}" in stated("ARG")
    entry = json.loads(stated("ENTRYPOINT")[0])
    assert entry[-3:] == ["python3", "-m", container.__name__]
    variables = dict(part.split("=", 1) for part in stated("ENV")[0].split())
    assert variables["ORT_DISABLE_TELEMETRY"] == "1"
    assert variables["MERKIT_REPOSITORY"] == container.REPOSITORY
    assert f"triton_repo/models {container.REPOSITORY}" in stated("COPY")


def test_the_numpy_is_one_that_the_stub_understands() -> None:
    locked = (REPOSITORY / "triton_repo" / "requirements.txt").read_text("utf-8")
    assert re.search(r"^numpy==1\.", locked, re.MULTILINE)
    assert "--constraint triton_repo/requirements.txt" in DOCKERFILE.read_text("utf-8")


@pytest.fixture(scope="module")
def known(triton: Installation) -> set[str]:
    """The options of the real tritonserver."""
    done = subprocess.run(
        [triton.binary, "--help"], env=triton.environment, capture_output=True, text=True
    )
    return set(re.findall(r"^\s*(--[a-z-]+)", done.stdout + done.stderr, re.MULTILINE))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Every file that the environment can name."""
    authority = Authority(tmp_path, "authority")
    pair = dict(zip(("TLS_CERT", "TLS_KEY"), authority.issue("server"), strict=True))
    made = {name: str(path) for name, path in {**pair, "CLIENT_CA": authority.file}.items()}
    for name in ("TOKEN_FILE", "ADMIN_KEY_FILE"):
        path = tmp_path / name.lower()
        path.write_text(f"{SECRET}-{name}\n")
        made[name] = str(path)
    return HERE | {f"MERKIT_{name}": path for name, path in made.items()}


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    """Triton starts with it and says that it is ready: pods would go live that nobody reaches."""
    authority = Authority(tmp_path, "authority")
    certificate, key = authority.issue("server")
    _, other = authority.issue("other")
    environment = HERE | {"MERKIT_TLS_CERT": str(certificate), "MERKIT_TLS_KEY": str(key)}
    assert container.command(environment)
    with pytest.raises(InvalidInputError, match="cannot be used"):
        container.command(environment | {"MERKIT_TLS_KEY": str(other)})


def options(line: list[str]) -> set[str]:
    return {part.partition("=")[0] for part in line[1:]}


def test_every_option_is_one_that_triton_has(known: set[str], files: dict[str, str]) -> None:
    traced = {**files, "MERKIT_TRACE_URL": "http://collector:4318/v1/traces"}
    chart = (REPOSITORY / "triton_repo/helm/merkit/templates/deployment.yaml").read_text("utf-8")
    arguments = re.findall(r"^ +- (--[a-z-]+=\d+)$", chart, re.MULTILINE)
    assert arguments
    for environment in (HERE, files, traced):
        assert options(container.command(environment, arguments)) <= known


def test_nothing_is_open_that_was_not_opened(files: dict[str, str]) -> None:
    shut = container.command(HERE)
    for service in ("grpc-restricted-protocol", "http-restricted-api"):
        (one,) = [part for part in shut if part.startswith(f"--{service}=")]
        assert one.startswith(f"--{service}={ADMINISTRATION}:admin-key=")
    assert container.command(HERE) != shut, "nobody knows the key"
    full = container.command(files)
    token, admin = f"{SECRET}-TOKEN_FILE", f"{SECRET}-ADMIN_KEY_FILE"
    assert f"--grpc-restricted-protocol={ANSWERS}:merkit-token={token}" in full
    assert f"--grpc-restricted-protocol={ADMINISTRATION}:admin-key={admin}" in full
    everything = f"--http-restricted-api={ADMINISTRATION},{ANSWERS}:admin-key={admin}"
    assert everything in full, "HTTP has no TLS, so with TLS it answers health alone"
    assert "--grpc-use-ssl-mutual=true" in full
    plain = HERE | {"MERKIT_TOKEN_FILE": files["MERKIT_TOKEN_FILE"]}
    assert f"--http-restricted-api={ANSWERS}:merkit-token={token}" in container.command(plain)


@pytest.mark.parametrize(
    "wrong",
    [
        {"MERKIT_TLS_CERT": "TLS_CERT"},
        {"MERKIT_TLS_KEY": "TLS_KEY"},
        {"MERKIT_CLIENT_CA": "CLIENT_CA"},
        {"MERKIT_TOKEN_FILE": "/nowhere"},
        {"MERKIT_TOKEN_FILE": "short"},
        {"MERKIT_ADMIN_KEY_FILE": "colon"},
        {"MERKIT_TLS_CERT": "short", "MERKIT_TLS_KEY": "short"},
        {"MERKIT_TRACE_URL": "collector:4317"},
        {"MERKIT_TRACE_URL": "http://collector", "MERKIT_TRACE_RATE": "often"},
        {"MERKIT_TRACE_URL": "http://collector", "MERKIT_TRACE_RATE": "0"},
        {"MERKIT_REPOSITORY": "/nowhere"},
    ],
    ids=str,
)
def test_settings_that_would_not_protect_are_refused(
    wrong: dict[str, str], files: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("secret")
    (tmp_path / "colon").write_text("a:secret,with=all:that-splits")
    environment = HERE | {
        name: files.get(f"MERKIT_{value}", str(tmp_path / value) if "/" not in value else value)
        if "TRACE" not in name
        else value
        for name, value in wrong.items()
    }
    with pytest.raises(InvalidInputError) as caught:
        container.command(environment)
    assert caught.value.action
    assert SECRET not in str(caught.value)


def test_the_entry_becomes_the_server_and_a_refusal_is_one_line(
    tmp_path: Path, files: dict[str, str]
) -> None:
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.write_text('#!/bin/sh\necho "$$ $@"\n')
    server.chmod(0o755)
    environment = {**os.environ, **HERE, "PATH": f"{server.parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", container.__name__, "--log-verbose=1"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=60)
    pid, *arguments = out.split()
    assert int(pid) == process.pid, "signals must reach the server itself"
    assert arguments[0] == f"--model-repository={HERE['MERKIT_REPOSITORY']}"
    assert "--load-model=merkit" in arguments
    assert not [a for a in arguments if a == "--load-model=fusion"], (
        "entry points bring their steps"
    )
    assert arguments[-1] == "--log-verbose=1"
    lone = {**environment, "MERKIT_TLS_CERT": files["MERKIT_TLS_CERT"]}
    refused = subprocess.run(command, env=lone, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versioned"])
def test_only_what_a_trusted_key_signed_and_nobody_changed_is_served(
    toy_bundle: Bundle, tmp_path: Path, versioned: bool
) -> None:
    pytest.importorskip("cryptography")
    shutil.copytree(toy_bundle.root, tmp_path / "bundle")
    bundle, repository = open_bundle(tmp_path / "bundle"), tmp_path / "models"
    trusted, _ = generate_keys(tmp_path / "ours")
    stranger, _ = generate_keys(tmp_path / "theirs")
    render(bundle, repository, versioned=versioned, copy=True)
    open_to_all = {"MERKIT_REPOSITORY": str(repository)}
    asked = open_to_all | {TRUSTED_KEYS: str(trusted)}
    assert container.command(open_to_all)
    with pytest.raises(UnsignedBundleError, match=f"{repository}"):
        container.command(asked)
    shutil.rmtree(repository)
    sign(bundle, tmp_path / "ours")
    render(bundle, repository, versioned=versioned, copy=True)
    assert container.command(asked)[0] == "tritonserver"
    with pytest.raises(SignerUnknownError):
        container.command(open_to_all | {TRUSTED_KEYS: str(stranger)})
    (model,) = repository.glob("fusion*/1/model.onnx")
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    for environment in (open_to_all, asked):
        with pytest.raises(BundleCorruptError, match="fusion"):
            container.command(environment)
    for path in repository.glob("bundle*"):
        path.unlink()
    with pytest.raises(UnsignedBundleError, match=r"no bundle\.json"):
        container.command(asked)


def test_bundles_share_a_step_whatever_its_file_says_of_its_maker(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    """Two exports of one encoder differ in metadata alone, and lie in one folder."""
    shutil.copytree(toy_bundle.root, tmp_path / "other")
    first, other = toy_bundle, open_bundle(tmp_path / "other")
    model = onnx.load(other.model_path("fusion"))
    model.producer_version = "another"
    onnx.save(model, other.model_path("fusion"))
    digests = {**other.manifest["step_digests"], "voting": "0" * 64}  # another voter: another id
    kept = {k: v for k, v in other.manifest.items() if k in ("voters", "validation", "name")}
    other = write_manifest(other.root, other.contract, digests, kept)
    repository = tmp_path / "models"
    for bundle in (first, other):
        render(bundle, repository, versioned=True, copy=True)
    assert len(list(repository.glob("fusion-*"))) == 1
    assert container.command({"MERKIT_REPOSITORY": str(repository)})
    (model_file,) = repository.glob("fusion-*/1/model.onnx")
    model_file.unlink()
    with pytest.raises(BundleCorruptError, match="missing"):
        container.command({"MERKIT_REPOSITORY": str(repository)})


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"contract": 1, "content": {}}'])
def test_a_damaged_manifest_of_a_versioned_repository_is_refused(
    toy_bundle: Bundle, tmp_path: Path, content: str
) -> None:
    repository = tmp_path / "models"
    render(toy_bundle, repository, versioned=True, copy=True)
    (manifest,) = repository.glob("bundle-*.json")
    manifest.write_text(content)
    with pytest.raises(BundleCorruptError, match=manifest.name):
        container.command({"MERKIT_REPOSITORY": str(repository)})


def test_the_signatures_package_is_locked_as_elsewhere() -> None:
    (pin,) = re.findall(r"cryptography==[\d.]+", DOCKERFILE.read_text("utf-8"))
    assert pin in (REPOSITORY / "constraints.txt").read_text("utf-8").splitlines()


def test_an_object_store_cannot_be_looked_into() -> None:
    with pytest.raises(InvalidInputError, match="cannot be looked into"):
        container.command({"MERKIT_REPOSITORY": "s3://bucket/models", TRUSTED_KEYS: "key.pub"})
    assert "--load-model=*" in container.command({"MERKIT_REPOSITORY": "s3://bucket/models"})


def test_the_real_server_starts_on_it_and_ends_when_it_is_told(
    toy_bundle: Bundle, triton: Installation, tmp_path: Path
) -> None:
    repository, support = tmp_path / "models", tmp_path / "support"
    support.mkdir()
    render(toy_bundle, repository, Deployment(flavour=triton.flavour, threads=1))
    backends, environment = assemble(triton, support)
    grpc, http, metrics = free_ports("127.0.0.1", (0, 0, 0))
    line = container.command(
        {"MERKIT_REPOSITORY": str(repository)},
        [
            f"--backend-directory={backends}",
            "--backend-config=python,shm-region-prefix-name=merkit-container-test",
            *(f"--{name}-address=127.0.0.1" for name in ("grpc", "http", "metrics")),
            f"--grpc-port={grpc}",
            f"--http-port={http}",
            f"--metrics-port={metrics}",
        ],
    )
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [triton.binary, *line[1:]], env=environment, stdout=log, stderr=log, cwd=tmp_path
    )
    try:
        with eventually_connected(f"grpc://127.0.0.1:{grpc}") as client:
            assert client.predict(text="hello").label
        process.send_signal(signal.SIGTERM)
        assert process.wait(container.EXIT_SECONDS + 20) == 0
    finally:
        process.kill()
        process.wait()


def eventually_connected(url: str, seconds: float = 90) -> Client:
    end = time.monotonic() + seconds
    while True:
        try:
            return connect(url, deadline=30)
        except (ServerUnavailableError, ServerNotReadyError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def test_a_server_is_on_loopback_and_shut_unless_it_is_told_otherwise() -> None:
    assert ServeOptions().host == "127.0.0.1"
    assert ServeOptions().protection == Protection()
    assert any("restricted" in flag for flag in Protection().flags())
    assert not [flag for flag in Tracing("http://c:4318/v1/traces").flags() if "=OFF" in flag]
