"""Functions of users are compared by code and settings, also after a restart."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import Above, class_data, classes, train_all

import tensair_dask as ta
from tensair_dask._common.functions import changed, described, name_of, settings_of

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


def scaled(scale):
    return lambda report: report.loss * scale


def nested(scale):
    inner = scaled(scale)
    return lambda report: inner(report)


def weighted(weight):
    array = np.array([1.0, weight])
    return lambda report: report.loss * array[1]


class Scale:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, report):
        return report.loss * self.scale

    def method(self, report):
        return report.loss * self.scale


def with_default(scale):
    def watch(report, scale=scale):
        return report.loss * scale

    return watch


def with_keyword(scale):
    def watch(report, *, scale=scale):
        return report.loss * scale

    return watch


def times(scale, report):
    return report.loss * scale


MAKERS = {
    "closure": scaled,
    "closure in a closure": nested,
    "array": weighted,
    "object": Scale,
    "method": lambda scale: Scale(scale).method,
    "default": with_default,
    "keyword": with_keyword,
    "partial": lambda scale: functools.partial(times, scale),
    "partial by name": lambda scale: functools.partial(times, scale=scale),
    "module": lambda scale: torch.nn.HuberLoss(delta=scale),
    "weights": lambda scale: torch.nn.CrossEntropyLoss(torch.tensor([1.0, scale])),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_functions_differ_in_what_they_were_made_with(kind):
    first, same, other = (settings_of(MAKERS[kind](scale)) for scale in (2.0, 2.0, 3.0))
    assert first == same
    assert first != other


@pytest.mark.parametrize("kind", MAKERS)
def test_the_name_of_one_is_that_of_the_other(kind):
    assert name_of(MAKERS[kind](2.0)) == name_of(MAKERS[kind](3.0))


def test_values_that_change_by_themselves_are_ignored(tmp_path):
    def made():
        file, number = object(), iter([1])
        return lambda report: (file, number)

    assert settings_of(made()) == settings_of(made())


def test_a_function_that_holds_itself_has_settings_all_the_same():
    def again(report):
        return again(report)

    assert settings_of(again)


def test_another_process_says_the_same():
    program = (
        "import torch, functools; "
        "from tensair_dask._common.functions import settings_of;"
        "print(settings_of(functools.partial(max, {'b', 'a', 'c'}, x=torch.ones(3))))"
    )
    there = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    here = settings_of(functools.partial(max, {"b", "a", "c"}, x=torch.ones(3)))
    assert there.strip() == str(here)
    assert "'a', 'b', 'c'" in there


def test_changes_are_reported_by_place():
    was = described({"loss": scaled(2), "schedule": None})
    now = described({"loss": scaled(3), "schedule": abs})
    assert changed(was, was) == []
    assert changed(was, now) == [
        "loss has scale=3 (was 2)",
        "schedule was not given",
    ]


def test_codes_of_another_python_are_not_compared():
    was, now = ({"loss": {"name": f"f ({code})", "settings": {}}} for code in "ab")
    assert changed(was, now)
    assert not changed(was, now, codes=False)


async def saved_and_restored(c, tmp_path, first, second):
    """Give what is said by a trainer that goes on, and what its detector has seen."""
    path = str(tmp_path / "model.tensair")
    async with ta.Trainer(c, **classes(detector=Above(1e9), **first)) as trainer:
        await train_all(trainer, class_data(5))
        await trainer.save(path)
    detector = Above(1e9)
    arguments = classes(detector=detector, **second)
    async with ta.Trainer.restore(path, c, **arguments) as trainer:
        return list(trainer.events["text"]), detector.observed


@one()
@pytest.mark.parametrize("kind", ["closure", "default", "partial", "object"])
async def test_a_detector_begins_anew_where_another_quantity_is_watched(
    c, s, a, kind, tmp_path
):
    first, second = ({"watch": MAKERS[kind](scale)} for scale in (2.0, 3.0))
    reported, observed = await saved_and_restored(c, tmp_path, first, second)
    assert any("2.0" in text and "3.0" in text for text in reported)
    assert observed == 0


@one()
async def test_a_detector_goes_on_where_the_same_is_watched(c, s, a, tmp_path):
    given = [{"watch": scaled(2.0)} for _ in range(2)]
    reported, observed = await saved_and_restored(c, tmp_path, *given)
    assert not any("begins anew" in text for text in reported)
    assert observed == 5


def smoothed(amount):
    return lambda prediction, y: torch.nn.functional.cross_entropy(
        prediction, y, label_smoothing=amount
    )


def falling(rate):
    return lambda gradients: rate**gradients


@one()
@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("loss", [smoothed(0.1), smoothed(0.2)], "loss has amount=0.2 (was 0.1)"),
        ("schedule", [falling(0.5), falling(0.9)], "schedule has rate=0.9 (was 0.5)"),
        (
            "metrics",
            [{"a": smoothed(0.1)}, {"a": smoothed(0.3)}],
            "metrics['a'] has amount=0.3 (was 0.1)",
        ),
    ],
)
async def test_other_functions_than_those_of_the_checkpoint_are_reported(
    c, s, a, name, values, said, tmp_path
):
    first, second = ({name: value} for value in values)
    reported, _ = await saved_and_restored(c, tmp_path, first, second)
    assert any(said in text for text in reported)
    same, _ = await saved_and_restored(c, tmp_path, first, first)
    assert not any("Other functions" in text for text in same)
