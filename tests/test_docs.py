"""Documented commands are executed: a README whose commands fail is worse than none."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

BLOCK = re.compile(r"(?:<!-- not run in tests: ([^>]+) -->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(match[2], match[3], match[1], id=f"{page.name}-{number}")
    for page in PAGES
    for number, match in enumerate(BLOCK.finditer(page.read_text("utf-8")))
]


@pytest.mark.parametrize(("language", "code", "reason"), BLOCKS)
def test_documented_commands_run(language: str, code: str, reason: str, tmp_path: Path) -> None:
    if reason:
        pytest.skip(reason)
    if code.startswith("make "):
        targets = re.findall(r"^make (\w+)", code, re.MULTILINE)
        subprocess.run(["make", "-n", *targets], cwd=REPOSITORY, check=True, capture_output=True)
        return
    for name in ("docs", "triton_repo"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    command = ["bash", "-euc", code] if language == "sh" else [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr or done.stdout


def test_links_between_pages_lead_somewhere() -> None:
    link = re.compile(r"\]\((?!https?:|#)([^)#]+)")
    broken = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in link.findall(page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_the_modules_that_the_seeds_table_names_exist() -> None:
    """A row that leads nowhere would send a reviewer looking for what was renamed."""
    missing, found = [], 0
    for line in (REPOSITORY / "docs" / "seed-to-code.md").read_text("utf-8").splitlines():
        place: list[str] = []
        for name in re.findall(r"`(merkit\w*(?:\.\w+)*|(?:\.\w+)+)`", line):
            own = name.lstrip(".").split(".")
            bases = [place[:i] for i in range(len(place), 0, -1)] if name[0] == "." else [[]]
            at = next((base + own for base in bases if _is_there(base + own)), None)
            if at is None:
                missing.append(name)
            else:
                place, found = at, found + 1
    assert not missing
    assert found > 50


def _is_there(parts: list[str]) -> bool:
    """A package, a module, or a name that a module or package gives itself on a line of its own."""
    for root in ("sdk", "training", "export"):
        for i in range(len(parts), 0, -1):
            path = (REPOSITORY / root).joinpath(*parts[:i])
            file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path
            if file.is_dir() and i == len(parts):
                return True
            source = file / "__init__.py" if file.is_dir() else file
            if source.is_file():
                given = rf"^(?:def|class) {parts[-1]}\b|^{parts[-1]}\b.*="
                text = source.read_text("utf-8")
                if i == len(parts) or (
                    i == len(parts) - 1 and re.search(given, text, re.MULTILINE)
                ):
                    return True
                break
    return False
