from __future__ import annotations

import math

import pytest

from tensair_dask.errors import ShapeError
from tensair_dask.reports import History, Report


def test_a_report_without_an_error_is_returned_and_one_with_it_raises():
    report = Report(0, 0.5, {}, 8)
    assert report.raise_for_error() is report
    with pytest.raises(ShapeError, match="too wide"):
        Report.refused(1, 8, ShapeError("too wide")).raise_for_error()


def test_a_refused_report_has_no_loss():
    assert math.isnan(Report.refused(1, 8, ShapeError("x")).loss)


def test_history_is_a_frame_with_a_column_for_each_metric():
    history = History(10)
    history.append(Report(1, 0.5, {"accuracy": 0.9}, 8, 0.1, 3, "tcp://a", time=1e9))
    history.append(Report.refused(0, 4, ShapeError("too wide")))
    frame = history.frame()
    assert list(frame.columns) == [
        "index",
        "time",
        "loss",
        "accuracy",
        "samples",
        "seconds",
        "staleness",
        "replica",
        "learned",
        "error",
    ]
    assert frame["index"].tolist() == [1, 0]
    assert frame["learned"].tolist() == [True, False]
    assert frame["error"].tolist()[1] == "ShapeError: too wide"
    assert frame["accuracy"].isna().tolist() == [False, True]


def test_history_is_bounded():
    history = History(3)
    for index in range(10):
        history.append(Report(index, 0.0, {}, 1))
    assert history.frame()["index"].tolist() == [7, 8, 9]


def test_an_empty_history_is_an_empty_frame():
    assert History(3).frame().empty


def test_a_metric_of_only_some_reports_leaves_gaps():
    history = History(10)
    history.append(Report(0, 0.5, {"one": 1.0}, 8))
    history.append(Report(1, 0.5, {"one": 2.0, "two": 3.0}, 8))
    frame = history.frame()
    assert frame["two"].isna().tolist() == [True, False]
    assert list(frame.columns)[3:5] == ["one", "two"]


def test_metrics_have_their_columns_from_the_start():
    history = History(10, ["one", "two"])
    assert list(history.frame().columns)[2:6] == ["loss", "one", "two", "samples"]
    history.append(Report.refused(0, 4, ShapeError("too wide")))
    assert history.frame()["two"].isna().tolist() == [True]
    history.append(Report(1, 0.5, {"two": 3.0, "more": 1.0}, 8))
    assert list(history.frame().columns)[3:6] == ["one", "two", "more"]


def test_a_metric_of_several_values_has_their_columns_in_its_place():
    history = History(10, ["one", "many", "last"])
    history.append(Report(1, 0.5, {"last": 1.0, "many.a": 2.0, "many.b": 3.0}, 8))
    frame = history.frame()
    assert list(frame.columns)[3:7] == ["one", "many.a", "many.b", "last"]
    assert "many" not in frame
