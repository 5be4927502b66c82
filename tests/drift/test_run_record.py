from __future__ import annotations

import math

import pytest

from tensair_dask.drift.run_record import Detections, Record
from tensair_dask.errors import ShapeError
from tensair_dask.reports import Report

CHANGES = {100: "a", 200: "b", 300: "c"}


def report(index: int, accuracy: float = 0.5, samples: int = 10, **fields) -> Report:
    return Report(index, 0.1 * index, {"accuracy": accuracy}, samples, **fields)


def test_the_first_alarm_after_a_change_finds_it_and_all_others_are_false():
    detections = Detections(CHANGES, [105, 50, 199, 200, 150])
    assert detections.found == [105, 200, None]
    assert detections.delays == [6, 1, None]
    assert detections.delay == 3.5
    assert detections.missed == 1
    assert detections.false == [50, 150, 199]
    assert detections.rows() == [
        ("a", 100, 105, 6),
        ("b", 200, 200, 1),
        ("c", 300, None, None),
    ]


def test_the_rules_are_those_of_the_detectors_evaluation():
    drift = pytest.importorskip("tensair_dask.drift")
    values = [0.0, 0.1] * 100 + [5.0, 5.1] * 100 + [9.0, 9.2] * 100
    changes = [200, 400]
    (run,) = drift.evaluate(drift.OPTWIN(), [(values, changes)]).runs
    detections = Detections(dict.fromkeys(changes, ""), run.alarms)
    assert detections.delays == list(run.delays)
    assert detections.missed == run.missed
    assert len(detections.false) == run.false_alarms


def test_nothing_detected_and_nothing_changed():
    assert Detections(CHANGES, []).delay is None
    assert Detections(CHANGES, []).missed == 3
    assert Detections({}, [7]).false == [7]


def test_a_record_has_each_mini_batch_at_its_place():
    record = Record(5, newest=2)
    assert math.isnan(record.recent())
    assert math.isnan(record.mean)
    record.add(report(3, 1.0, samples=30, learned=False))
    record.add(report(0, 0.0))
    record.add(report(2, 0.5))
    record.add(report(1, error=ShapeError("no")))
    frame = record.frame()
    assert frame["index"].tolist() == [0, 2, 3]
    assert frame["learned"].tolist() == [True, True, False]
    assert frame["accuracy"].tolist() == [0.0, 0.5, 1.0]
    assert frame["loss"].tolist() == pytest.approx([0.0, 0.2, 0.3])
    assert (record.learned, record.predicted, record.records) == (2, 1, 50)
    assert record.share == pytest.approx(2 / 3)
    assert record.mean == pytest.approx((30 + 0 + 5) / 50)
    assert record.recent() == pytest.approx(5 / 20)
