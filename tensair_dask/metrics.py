"""Metrics that a trainer can compute for every mini-batch.

Written against the methods that tensors have, so that this module imports no torch.
For anything beyond, give ``metrics`` a callable of your own or a torchmetrics object.
"""

from __future__ import annotations

from typing import Any

__all__ = ["accuracy", "binary_accuracy"]


def accuracy(prediction: Any, target: Any) -> Any:
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
        Scalar tensor in [0, 1].
    """
    return (prediction.argmax(1) == target).float().mean()


def binary_accuracy(prediction: Any, target: Any) -> Any:
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
        Scalar tensor in [0, 1].
    """
    return ((prediction.reshape(-1) > 0) == (target.reshape(-1) > 0)).float().mean()
