"""Fixtures that tests of several roots share."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MEDIA = REPOSITORY.parent / "shared" / "media"


@pytest.fixture(scope="session")
def media() -> Path:
    """Real recordings, which lie beside the repository and are no part of it."""
    if not MEDIA.is_dir():
        pytest.skip(f"the real recordings are not at {MEDIA.name}/ beside the repository")
    return MEDIA
