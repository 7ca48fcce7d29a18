"""Curves and costs of a fit: what TensorBoard shows and what the run card keeps.

A fit that was killed goes on from its checkpoint, a little before where it stopped. Its curves
must not show that stretch twice, so the journal tells TensorBoard from which step it begins anew.

    RUN/logs/<stage>/<fit>/events...   RUN/<stage>/fits.json
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from merkit_training import processes
from merkit_training.costs import device_name, keep_costs, peak_memory

POINTS = 2000  # of each curve, at most about


class Journal:
    """Curves of one fit and a watch on its steps; only the main process writes.

    Args:
        folder: the stage's, RUN/<stage>.
        name: of the fit.
        first: the step it begins or goes on with.
        total: its steps; a fit that has no step left gets no curves.
    """

    def __init__(self, folder: Path, name: str, first: int, total: int) -> None:
        self._every = max(1, total // POINTS)
        self._writer: SummaryWriter | None = None
        if processes.is_main() and first < total:
            logs = folder.parent / "logs" / folder.name / name
            self._writer = SummaryWriter(str(logs), purge_step=first)
        self._samples, self._seconds = 0, 0.0
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def step(self, step: int, samples: int, seconds: float, values: Mapping[str, float]) -> None:
        """Notes a finished step: its samples over all processes, its time, and curve values."""
        self._samples, self._seconds = self._samples + samples, self._seconds + seconds
        if step % self._every == 0:
            self._add(step, {**values, "samples_per_second": samples / seconds})

    def evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Notes an evaluation before `step`, which is the next one."""
        self._add(step - 1, {f"evaluation/{name}": value for name, value in scores.items()})

    def flush(self) -> None:
        """Makes sure that what was noted survives a kill; call it with each checkpoint."""
        if self._writer is not None:
            self._writer.flush()

    def close(self, folder: Path, name: str) -> None:
        """Ends the curves and writes what the steps since the last start took to `fits.json`."""
        if self._writer is None:
            return
        self._writer.close()
        costs = {
            "samples_per_second": round(self._samples / max(self._seconds, 1e-9), 2),
            "peak_memory_mb": round(peak_memory() / 2**20, 1),
            "processes": processes.count(),
            "device": device_name(),
        }
        keep_costs(folder, name, costs)

    def _add(self, step: int, values: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
