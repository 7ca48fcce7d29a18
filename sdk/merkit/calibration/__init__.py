"""Calibration of a finished bundle on a user's own labelled clips, without training.

from merkit.calibration import calibrate
calibrate("bundle", "labels.csv", "my-bundle", prior="counts")
"""

from merkit.calibration.bundle import Outcome, calibrate
from merkit.calibration.fit import Calibration

__all__ = ["Calibration", "Outcome", "calibrate"]
