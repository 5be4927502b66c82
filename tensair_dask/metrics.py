"""Metrics that a trainer can compute for every mini-batch.

Written against the methods that tensors have, so that this module imports no torch.
For anything beyond, give ``metrics`` a callable of your own or a torchmetrics object.
"""

from __future__ import annotations

from typing import Any

__all__ = ["accuracy", "binary_accuracy"]


def accuracy(prediction: Any, target: Any) -> float:
    """Share of samples whose highest score is at the target class.

    Parameters
    ----------
    prediction
        Scores or probabilities, (samples, classes) or (samples, classes, ...).
    target
        Class numbers, (samples,) or (samples, ...), integers.

    Returns
    -------
    accuracy
        In [0, 1].
    """
    return _share(prediction.argmax(1) == target)


def binary_accuracy(prediction: Any, target: Any) -> float:
    """Share of samples whose logit has the sign of the target.

    Parameters
    ----------
    prediction
        Logits, (samples,) or (samples, 1): positive means class 1.
    target
        0 or 1, of any dtype, with as many elements.

    Returns
    -------
    accuracy
        In [0, 1].
    """
    return _share((prediction.reshape(-1) > 0) == (target.reshape(-1) > 0))


def _share(right: Any) -> float:
    # Computed at every step: two thirds of what .float().mean() costs.
    return right.sum().item() / right.numel()
