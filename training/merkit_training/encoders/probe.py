"""How good features are, told by the simplest classifier on top of them.

A stage's own head scores the head too. A logistic regression, fitted on the training features and
scored on validation, says what fusion can hope to find, and is the same for every encoder.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from merkit_training.metrics import accuracy, waf

MOST_SAMPLES = 6000  # of training: more changes the score by less than its error


def features_of(
    encode: Callable[[NDArray[np.int64]], Tensor], count: int, batch: int = 64
) -> NDArray[np.float32]:
    """float32 [count, width]: `encode(indices)` over all samples, without gradients."""
    with torch.no_grad():
        parts = [
            encode(np.arange(i, min(i + batch, count))).float().cpu().numpy()
            for i in range(0, count, batch)
        ]
    return np.concatenate(parts)


def linear_probe(
    train: NDArray[np.float32],
    train_labels: NDArray[np.int64],
    val: NDArray[np.float32],
    val_labels: NDArray[np.int64],
) -> dict[str, float]:
    """`probe_waf` and `probe_accuracy` on validation of a logistic regression."""
    reader = LogisticRegression(C=0.1, max_iter=300)
    one_class = len(np.unique(train_labels[:MOST_SAMPLES])) == 1  # which it refuses to fit
    fitted: Any = make_pipeline(StandardScaler(), DummyClassifier() if one_class else reader)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted.fit(train[:MOST_SAMPLES], train_labels[:MOST_SAMPLES])
    found = np.asarray(fitted.predict(val), np.int64)
    classes = 1 + int(max(val_labels.max(), found.max()))
    return {
        "probe_waf": waf(val_labels, found, classes),
        "probe_accuracy": accuracy(val_labels, found),
    }


def head_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """`waf` and `accuracy` of a stage's own head."""
    found = logits.argmax(1).cpu().numpy().astype(np.int64)
    truth = labels.cpu().numpy().astype(np.int64)
    return {"waf": waf(truth, found, logits.shape[1]), "accuracy": accuracy(truth, found)}
