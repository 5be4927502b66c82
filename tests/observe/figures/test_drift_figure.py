from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from drifting_runs import CHANGES, LENGTH, rows

from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures import drift as drift_figures
from tensair_dask.observe.figures.drift import Course, chart, stretches
from tensair_dask.observe.figures.page import save


@pytest.fixture
def course() -> Course:
    reference = np.repeat([1.0, 0.8], LENGTH // 2)
    return Course(
        rows(),
        changes=CHANGES,
        alarms=[600, 1_009],
        references={"accuracy": ("guesses", reference)},
    )


# -------------------------------------------------------------------------- stretches


def test_stretches_are_means_and_few():
    frame = rows()
    seen = stretches(frame, ["accuracy"], most=100)
    assert len(seen) == 100
    assert seen["first"].tolist() == list(range(0, LENGTH, 20))
    assert seen["last"].tolist() == list(range(19, LENGTH, 20))
    assert seen["loss"][3] == pytest.approx(frame["loss"][60:80].mean())
    assert seen["accuracy"][3] == pytest.approx(frame["accuracy"][60:80].mean())
    assert (seen["low"] <= seen["loss"]).all()
    assert (seen["loss"] <= seen["high"]).all()
    assert seen["learned"].tolist() == [
        first < 400 or 1_000 <= first < 1_400 for first in seen["first"]
    ]


def test_short_streams_are_drawn_as_they_are_and_in_order():
    frame = rows().head(50).sample(frac=1, random_state=0)
    seen = stretches(frame)
    assert seen["first"].tolist() == seen["last"].tolist() == list(range(50))
    assert seen["loss"].tolist() == rows()["loss"].head(50).tolist()


def test_mini_batches_that_were_refused_leave_no_trace():
    frame = rows().head(60)
    frame.loc[10:19, "loss"] = np.nan
    assert stretches(frame)["first"].tolist() == [*range(10), *range(20, 60)]
    assert len(stretches(frame.assign(loss=np.nan), ["accuracy"])) == 0


def test_lines_of_both_phases_meet():
    seen = stretches(rows(), most=LENGTH)
    lines = drift_figures._lines(seen, "loss")
    trained, predicted = lines["training"], lines["predicting only"]
    assert np.isfinite(trained)[:400].all()
    # The point before a change of phase belongs to both.
    both = np.flatnonzero(np.isfinite(trained) & np.isfinite(predicted))
    assert both.tolist() == [399, 1_009, 1_399]


# ---------------------------------------------------------------------- what is marked


def test_alarms_are_distinguished_by_whether_something_had_changed(course):
    assert list(course.marks()) == [
        (1_000, "the stream truly changed", "3 ↔ 7"),
        (1_500, "the stream truly changed", "2 ↔ 8"),
        (1_500, "change that was missed", "missed"),
        (600, "false alarm", "nothing had changed"),
        (1_009, "drift detected, after so many mini-batches", "after 10"),
    ]


def test_where_nobody_knows_the_changes_no_alarm_is_called_false():
    marks = list(Course(rows(), alarms=[600]).marks())
    assert marks == [(600, "drift detected", "")]


def test_missing_columns_are_named():
    with pytest.raises(ConfigurationError, match="no column accuracy, learned"):
        Course(rows()[["index", "loss"]])


# ------------------------------------------------------------------------ what is drawn


def test_the_grounds_are_where_it_trained(course):
    shades = [(shade.start, shade.end) for shade in chart(course).shades]
    assert shades == [(0, 400), (1_008, 1_400)]


def test_words_stand_beside_marks_but_false_alarms_and_only_where_there_is_room(course):
    worded = {mark.text for mark in chart(course).marks if mark.worded}
    assert worded == {"3 ↔ 7", "2 ↔ 8", "missed", "after 10"}
    crowded = Course(rows(), changes=CHANGES, alarms=range(0, LENGTH, 50))
    assert not any(mark.worded for mark in chart(crowded).marks)


def test_a_reference_is_drawn_by_its_corners(course):
    _, accuracy = chart(course).panels
    (reference,) = [line for line in accuracy.lines if line.points is not None]
    assert reference.label == "guesses"
    corners = [0, LENGTH // 2 - 1, LENGTH // 2, LENGTH - 1]
    assert reference.points["index"].tolist() == corners
    assert reference.points["guesses"].tolist() == [1.0, 1.0, 0.8, 0.8]


def test_picture_and_page(fonts, course, tmp_path):
    drawn = chart(course, "A <title>", "more")
    files = save(drawn, tmp_path / "made" / "here", "drift")
    assert set(files) == {"html", "png"}
    assert Path(files["png"]).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    page = Path(files["html"]).read_text(encoding="utf-8")
    # Opened without a network, it shows the same.
    assert not re.search(r"""<(script|link)[^>]+(src|href)=["']?http""", page)
    for word in (
        "predicting only",
        "false alarm",
        "that was missed",
        "guesses",
        "mini-batches of the",
    ):
        assert word in page
    assert "<h1>A <title>" not in page


@pytest.mark.parametrize("changed", [{}, {"alarms": [], "changes": {}}])
def test_runs_without_drift_or_rows_are_drawn(fonts, tmp_path, changed):
    for frame in (rows(), rows().head(0), rows().assign(learned=True), rows().head(1)):
        course = Course(frame, **changed)
        save(chart(course, "Nothing much"), tmp_path, "drift")


def test_without_metrics_only_the_loss_is_drawn(fonts, tmp_path):
    drawn = chart(Course(rows(), metrics=[]), "Loss")
    assert [panel.label for panel in drawn.panels] == ["loss (mean)"]
    save(drawn, tmp_path, "loss")
