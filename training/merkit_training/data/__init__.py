"""Own clips and MER's folders as training data: reading, saying what is wrong, preparing."""

from merkit_training.data.reading import read_dataset
from merkit_training.data.records import ClipRecord, Dataset, Problem

__all__ = ["ClipRecord", "Dataset", "Problem", "read_dataset"]
