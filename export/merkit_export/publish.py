"""How a bundle takes its place: whole, in one rename, and repaired where a build was killed.

Two folders beside the target bear its name and the building process's number: `.new` is being
made, `.old` is the former bundle between the two renames. A process that is killed leaves either;
whoever builds next puts things right.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, on the same file system; gone afterwards unless renamed."""
    folder = _named(out, os.getpid(), "new")
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(folder: Path, out: Path) -> None:
    """Puts `folder` in the place of `out`; if that fails, `out` is as before."""
    former = _named(out, os.getpid(), "old")
    if out.exists():
        out.rename(former)
    try:
        folder.rename(out)
    except OSError:
        if former.exists():
            former.rename(out)
        raise
    shutil.rmtree(former, ignore_errors=True)


def recover(out: Path) -> None:
    """Removes what killed builds of `out` left beside it; where `out` itself is gone, its former
    content comes back. Folders of processes that live stay."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(\d+)\.(new|old)")
    found = [pattern.fullmatch(path.name) for path in out.parent.glob(".*")]
    for match in sorted(filter(None, found), key=lambda m: (m[2], m[1])):
        left = out.parent / match[0]
        if not left.is_dir() or _lives(int(match[1])):
            continue
        if match[2] == "old" and not out.exists():
            left.rename(out)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _named(out: Path, process: int, state: str) -> Path:
    return out.parent / f".{out.name}.{process}.{state}"


def _lives(process: int) -> bool:
    """Whether another process of that number runs on this machine; our own has not built yet."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True
