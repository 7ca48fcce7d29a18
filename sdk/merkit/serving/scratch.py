"""Temporary folders that are removed even when their owner was killed.

A server needs files for as long as it runs, and a process that is killed removes nothing. So each
folder is locked by its owner, and whoever makes the next one removes those that nobody holds.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

PREFIX = "merkit-serve-"
SHARED_MEMORY = Path("/dev/shm")
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
SETTLED_SECONDS = 60.0  # a folder this young may not be locked yet, or its server still be ending


class ScratchFolder:
    """A folder under the system's temporary one, and shared memory regions named after it."""

    def __init__(self) -> None:
        import fcntl  # not on every system, and this module is imported on all

        remove_orphans()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = (self.path / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Removes the folder and its shared memory. Safe to call twice."""
        _remove(self.path)
        self._lock.close()


def remove_orphans() -> None:
    """Removes the folders whose owners are gone; those of other users are left alone."""
    import fcntl

    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            found = folder.lstat()
            if not (stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()):
                continue  # anybody may put a link there, to lead us into a folder of ours
            if time.time() - found.st_mtime < SETTLED_SECONDS:
                continue
            with os.fdopen(os.open(folder / "lock", LOCK_FLAGS, 0o600)) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(folder)
        except OSError:
            continue  # held, or just removed


def _remove(folder: Path) -> None:
    for region in SHARED_MEMORY.glob(f"{folder.name}*"):
        region.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
