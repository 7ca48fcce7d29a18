"""Files that one run takes over from another as they are.

Mining, or other branches, change the fusion stage and nothing before it. Were encoders copied for
each such run, a disk would hold the paper's fifteen billion weights many times over.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path


def share_files(run: Path, out: Path, left: Collection[str]) -> None:
    """Hard links (or copies, on another disk) in `out` of all files of a run but what is below the
    top-level names `left`; what is there already stays."""
    for path in sorted(run.rglob("*")):
        place = path.relative_to(run)
        if place.parts[0] in left or not path.is_file():
            continue
        target = out / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            continue
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)
