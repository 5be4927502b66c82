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


@pytest.mark.parametrize(
    "form",
    [
        torch.Tensor.clone,
        torch.Tensor.bfloat16,
        lambda scores: scores.requires_grad_(True),
        lambda scores: scores[..., None].expand(-1, -1, 3),
    ],
    ids=["float32", "bfloat16", "with a gradient", "per pixel"],
)
def test_scores_of_any_form_are_compared(form):
    scores = form(torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]]))
    classes = torch.tensor([1, 0, 0, 0])
    if scores.ndim == 3:
        classes = classes[:, None].expand(-1, 3)
    assert metrics.accuracy(scores, classes) == 0.75
    with pytest.raises((RuntimeError, ValueError)):
        metrics.accuracy(scores, classes[:3])


@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.bfloat16])
def test_logits_of_any_form_are_compared(form):
    logits = form(torch.tensor([2.0, -1.0, 0.5, 3.0]))
    assert metrics.binary_accuracy(logits, torch.tensor([1, 0, 0, 1])) == 0.75
