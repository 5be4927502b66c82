from __future__ import annotations

import pytest
import torch

from tensair_dask import metrics


def test_accuracy_is_the_share_of_right_classes():
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert metrics.accuracy(scores, torch.tensor([1, 0, 0, 0])) == 0.75


def test_binary_accuracy_takes_logits_of_either_shape():
    logits = torch.tensor([2.0, -1.0, 0.5])
    target = torch.tensor([1.0, 0.0, 0.0])
    assert metrics.binary_accuracy(logits, target) == pytest.approx(2 / 3)
    assert metrics.binary_accuracy(logits[:, None], target.bool()) == (
        metrics.binary_accuracy(logits, target)
    )
