"""The command line's options reach what they are meant for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from merkit.cli import main
from merkit.serving import ServeOptions


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServeOptions]:
    """What `merkit serve` would have been started with."""
    seen: list[ServeOptions] = []

    def serve(_bundles: object, options: ServeOptions, **_: object) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr("merkit.serving.serve", serve)
    return seen


def test_serve_passes_on_its_protections(served: list[ServeOptions], tmp_path: Path) -> None:
    names = ("tls-cert", "tls-key", "mutual-tls", "token-file", "admin-key-file")
    given = [part for name in names for part in (f"--{name}", str(tmp_path / name))]
    tracing = ["--trace-url", "http://collector:4318/v1/traces", "--trace-rate", "7"]
    host = tmp_path / "host.toml"
    host.write_text("[limits]\nmax_seconds = 2.5\n")
    assert main(["serve", "bundle", *given, *tracing, "--deploy", str(host)]) == 0
    (options,) = served
    found = options.protection
    files = (found.certificate, found.key, found.client_ca, found.token_file, found.admin_key_file)
    assert files == tuple(tmp_path / name for name in names)
    assert options.tracing is not None
    assert (options.tracing.url, options.tracing.rate) == (tracing[1], 7)
    assert options.deployment.limits.max_seconds == 2.5
    assert main(["serve", "bundle"]) == 0
    assert served[1].tracing is None
    assert served[1].protection == ServeOptions().protection


def test_predict_sends_certificates_and_the_token_as_the_file_has_it_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, Any] = {}

    class StopError(Exception):
        pass

    def connect(_url: str, **options: Any) -> None:
        seen.update(options)
        raise StopError

    monkeypatch.setattr("merkit.opening.connect", connect)
    token = tmp_path / "token"
    token.write_text("first\n")
    files = ["--ca", "ca.pem", "--cert", "c.pem", "--key", "k.pem", "--token-file", str(token)]
    with pytest.raises(StopError):
        main(["predict", "--url", "grpcs://host:1", "--text", "a", *files])
    security = seen["security"]
    assert [str(f) for f in (security.ca, security.certificate, security.key)] == files[1:6:2]
    assert security.headers()["authorization"] == "Bearer first"
    token.write_text("second\n")
    assert security.headers()["authorization"] == "Bearer second"


def test_certificates_for_a_bundle_run_here_are_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--ca", "ca.pem", "--text", "a"])
    assert caught.value.code == 2
    assert "--url" in capsys.readouterr().err
