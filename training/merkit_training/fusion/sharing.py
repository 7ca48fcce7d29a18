"""Files that one run takes over from another as they are.

Mining, or other branches, change the fusion stage and nothing before it; adopting changes one
encoder. Were the others copied for each such run, a disk would hold the paper's fifteen billion
weights many times over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path

SEARCHES = "tuning"
"""The trials of `merkit-train tune`: a database, which is written in place. Linked, two runs would
go on with each other's."""


def share_files(run: Path, out: Path, left: Collection[str]) -> None:
    """Hard links (or copies, on another disk) in `out` of all files of a run but SEARCHES and what
    is below the top-level names `left`; what is there already stays."""
    for path in sorted(run.rglob("*")):
        place = path.relative_to(run)
        if place.parts[0] in (*left, SEARCHES) or not path.is_file():
            continue
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)
