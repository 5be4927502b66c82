from __future__ import annotations

import math

import pytest
import torch

from tensair_dask import metrics
from tensair_dask.errors import ShapeError


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
    with pytest.raises(ShapeError, match="Reshape the target"):
        metrics.accuracy(scores, classes[:3])


@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.bfloat16])
def test_logits_of_any_form_are_compared(form):
    logits = form(torch.tensor([2.0, -1.0, 0.5, 3.0]))
    assert metrics.binary_accuracy(logits, torch.tensor([1, 0, 0, 1])) == 0.75


SCORES = torch.tensor([[0.1, 0.9, 0.0], [0.8, 0.2, 0.1], [0.3, 0.7, 0.0]])
CLASSES = torch.tensor([1, 0, 2])


@pytest.mark.parametrize(
    "target",
    [
        CLASSES,
        CLASSES[:, None],
        CLASSES.float()[:, None],
        torch.nn.functional.one_hot(CLASSES),
        torch.nn.functional.one_hot(CLASSES).float(),
        torch.nn.functional.one_hot(CLASSES) * 0.9 + 0.1 / 3,  # smoothed labels
    ],
    ids=["(n,)", "(n, 1)", "floats", "one-hot", "one-hot floats", "smoothed"],
)
@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.bfloat16])
def test_the_class_of_a_target_of_any_shape_is_compared(target, form):
    assert metrics.accuracy(form(SCORES), target) == pytest.approx(2 / 3)


def test_pixels_may_have_an_axis_of_length_1_for_the_class_or_one_hot_classes():
    scores = SCORES[..., None].expand(-1, -1, 3)
    classes = CLASSES[:, None].expand(-1, 3)
    assert metrics.accuracy(scores, classes[:, None]) == pytest.approx(2 / 3)
    hot = torch.nn.functional.one_hot(classes).movedim(-1, 1)
    assert metrics.accuracy(scores, hot) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("scores", "target", "said"),
    [
        (SCORES, CLASSES[:2], r"\(3, 3\).*\(2,\)"),
        (SCORES, CLASSES[None], "Reshape"),
        (SCORES, torch.tensor(1), "Reshape"),
        (SCORES, torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0]]), "several labels"),
        (SCORES[:, :1], CLASSES, "score for each class"),
        (SCORES[:, 0], torch.zeros(4), "one number for each target"),
    ],
)
def test_shapes_that_would_broadcast_are_refused(scores, target, said):
    with pytest.raises(ShapeError, match=said):
        metrics.accuracy(scores, target)


@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.bfloat16])
def test_one_number_for_each_sample_is_a_logit_or_a_probability(column, form):
    target = torch.tensor([0, 1]).repeat(20)
    logits = target * 4.0 - 2.0
    logits[:10] *= -1  # wrong
    probabilities = torch.sigmoid(logits)
    for given in (logits, probabilities):
        given = form(given[:, None] if column else given)
        for metric in (metrics.accuracy, metrics.binary_accuracy):
            assert metric(given, target) == 0.75
            assert metric(given, target[:, None]) == 0.75
            assert metric(given, target.bool()) == 0.75


def test_a_few_numbers_from_0_to_1_need_a_threshold():
    few, target = torch.tensor([0.2, 0.7]), torch.tensor([1, 1])
    with pytest.raises(ShapeError, match="threshold="):
        metrics.binary_accuracy(few, target)
    assert metrics.binary_accuracy(few, target, threshold=0.5) == 0.5
    assert metrics.binary_accuracy(few, target, threshold=0) == 1


def test_several_labels_of_each_sample_are_compared_one_by_one():
    logits = torch.tensor([[2.0, -1.0], [3.0, 1.0]])
    target = torch.tensor([[1, 0], [0, 1]])
    assert metrics.binary_accuracy(logits, target) == 0.75
    for other in (target.flatten(), target[:, :1], target[:1]):
        with pytest.raises(ShapeError):
            metrics.binary_accuracy(logits, other)


@pytest.mark.parametrize("form", [torch.Tensor.clone, torch.Tensor.bfloat16])
def test_targets_that_the_loss_leaves_out_do_not_count(form):
    assert metrics.accuracy(form(SCORES), torch.tensor([1, -100, 2])) == 0.5
    assert metrics.accuracy(form(SCORES), torch.tensor([1, -1, -100])) == 1
    pixels = SCORES[..., None].expand(-1, -1, 2)
    target = torch.tensor([[1, -100], [0, 0], [-100, -100]])
    assert metrics.accuracy(form(pixels), target) == 1
    assert math.isnan(metrics.accuracy(form(SCORES), torch.full((3,), -100)))
