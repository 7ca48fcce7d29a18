"""What hears without torch gives the same under the server's numpy 1, to the last bit but one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import merkit
from merkit.serving.tritonserver import Installation

SCRIPT = """
import json
import numpy as np
from merkit.speech.quality import assess
from merkit.speech.select import MEASURES, select_source
from merkit.speech.separate import Chunks, separate_long
from merkit.speech.snr import estimated_snr

time = np.arange(56_789) / 16_000
loud = np.mod(time, 0.25) < 0.17
wave = sum(np.sin(2 * np.pi * 120 * n * time) / n for n in range(1, 12)) * loud * 0.2 + 0.05
wave = wave.astype(np.float32)
wave[500:600] = np.nan
quality = assess(wave)
wave = np.nan_to_num(wave)

def model(chunk):
    late = np.concatenate((np.zeros(1, np.float32), chunk[:-1]))
    return np.stack([chunk - late, 3 * (chunk + late)])

sources = separate_long(wave, model, Chunks(seconds=1.0, overlap=0.25))
chosen = [select_source("我们走吧 now", ["我们走 now", "no"], measure=m) for m in MEASURES]
print(json.dumps([
    np.__version__, str(sources.dtype), sources[:, ::997].astype(float).tolist(),
    [quality.level_dbfs, quality.peak, quality.clipped_share, quality.offset, *quality.speech[0]],
    quality.flags, estimated_snr(wave), [c.similarities for c in chosen],
]))
"""


def run(python: str, packages: Path) -> list[object]:
    done = subprocess.run(
        [python, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(packages)},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found: list[object] = json.loads(done.stdout)
    return found


def test_hearing_is_the_same_under_both_numpys(triton: Installation, tmp_path: Path) -> None:
    if triton.stub is None:
        pytest.skip("the server at hand is a container's, with the same Python for both")
    (tmp_path / "merkit").symlink_to(Path(merkit.__file__).parent)
    there = run(triton.environment["PATH"].split(":")[0] + "/python", tmp_path)
    here = run(sys.executable, tmp_path)
    assert str(there[0]).startswith("1.") and there[0] != here[0]
    assert there[1] == here[1] == "float32"
    for first, second in zip(there[2:4], here[2:4], strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-7)  # type: ignore[arg-type]
    assert there[4] == here[4] == ["not_finite", "dc_offset"]
    assert there[5] == pytest.approx(here[5], abs=1e-3)
    assert there[6] == here[6]
