"""Fixtures that tests of several roots share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy import write_toy_bundle

from merkit.bundle import Bundle
from merkit.errors import ServerUnavailableError
from merkit.serving import Server
from merkit.serving.tritonserver import Installation, find_installation

REPOSITORY = Path(__file__).resolve().parents[1]
MEDIA = REPOSITORY.parent / "shared" / "media"


@pytest.fixture(scope="session")
def media() -> Path:
    """Real recordings, which lie beside the repository and are no part of it."""
    if not MEDIA.is_dir():
        pytest.skip(f"the real recordings are not at {MEDIA.name}/ beside the repository")
    return MEDIA


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of graphs of a few nodes; not to be changed."""
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="session")
def triton() -> Installation:
    """A Triton server that can be started here. MERKIT_TESTS_NEED_TRITON=1 forbids the skip."""
    try:
        return find_installation(REPOSITORY / "triton_repo")
    except ServerUnavailableError as error:
        if os.environ.get("MERKIT_TESTS_NEED_TRITON") == "1":
            raise
        pytest.skip(f"no Triton server can be started here: {error.found}")


@pytest.fixture(scope="session")
def toy_server(toy_bundle: Bundle, triton: Installation) -> Iterator[Server]:
    """A Triton on the toy bundle for all tests that leave it as they found it."""
    with Server(toy_bundle, installation=triton) as server:
        yield server


@pytest.fixture(scope="session")
def random_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run with random weights in the real architectures; not to be changed."""
    from random_run import write_random_run

    return write_random_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def exported(random_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that merkit-export makes of that run (half a minute); not to be changed."""
    from merkit_export.build import build

    return build(random_run, tmp_path_factory.mktemp("exported") / "bundle")
