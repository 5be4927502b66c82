"""A running cluster's training as a page of text that fits the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from tensair_dask.observe.sparkline import BLOCKS, sparkline
from tensair_dask.observe.telemetry.events import KINDS
from tensair_dask.observe.terminal.replica_table import replica_table
from tensair_dask.observe.wording import (
    amount,
    duration,
    plain,
    rate_of_bytes,
    short,
    value,
)

__all__ = ["RECENT", "drawing"]

Snapshot = dict[str, Any]

# Columns of the series that are drawn.
RECENT = ("time", "samples", "loss")

_STATES = {"starting": "yellow", "open": "green", "closed": "dim", "lost": "red"}
_KINDS = {
    "drift": "magenta",
    "policy": "yellow",
    "mode": "blue",
    "joined": "green",
    "left": "cyan",
    "lost": "red",
}

# Characters of a fact with its name; metrics and events shown of a trainer; trainers
# that are over; rows of a table where the page has no end.
_FACT = 78
_METRICS = 8
_EVENTS = 3
_OVER = 3
_ROWS = 16


def drawing(
    snapshot: Snapshot, width: int, height: int | None = None, blocks: str = BLOCKS
) -> RenderableType:
    """Draw what a scheduler has reported.

    Parameters
    ----------
    snapshot
        As `RemoteTelemetry.read` gives it, with `RECENT`.
    width, height
        Of the page in characters and lines; None for as many lines as it takes.
    blocks
        What curves are made of.
    """
    page = _cluster(snapshot, width)
    running = [each for each in snapshot["trainers"] if each["ended"] is None]
    over = [each for each in snapshot["trainers"] if each["ended"] is not None]
    over.sort(key=lambda each: -each["ended"])
    if not snapshot["trainers"]:
        page.append(_nobody(snapshot))
    drawn = [_Trainer(each, snapshot["time"], width, blocks) for each in running]
    last = _last(over, snapshot["time"])
    left = None if height is None else height - len(page) - len(last)
    full, brief = _fitted(drawn, left)
    page += [line for each in full for line in each.lines()]
    page += [each.brief() for each in brief]
    return Group(*page, *last)


def _cluster(snapshot: Snapshot, width: int) -> list[RenderableType]:
    """Where the cluster is; its dashboard, which people click on, is never cut."""
    workers = snapshot["workers"]
    clock = _clock(snapshot["time"])
    line = Text(snapshot["scheduler"], style="bold")
    line.append(f"  {workers:,} worker{'' if workers == 1 else 's'}", style="not bold")
    link = Text(snapshot["dashboard"] or "", style="dim")
    fits = len(line) + len(link) + len(clock) + 4 <= width
    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    grid.add_column(no_wrap=True, justify="right")
    grid.add_row(Text("  ").join([line, link]) if fits else line, clock)
    return [grid] if fits else [grid, link]


def _nobody(snapshot: Snapshot) -> RenderableType:
    workers = "" if snapshot["workers"] else " and no worker"
    return Text(f"\nNo trainer{workers} yet. Waiting; what comes is shown here.")


def _last(over: Sequence[Snapshot], now: float) -> list[RenderableType]:
    """One line for each of the trainers that ended last."""
    lines: list[RenderableType] = []
    for trainer in over[:_OVER]:
        totals = trainer["totals"]
        line = Text(f"{plain(trainer['name'])}  ", style="bold", no_wrap=True)
        line.overflow = "ellipsis"
        state = trainer["state"]
        line.append(f"{state} ", style=f"not bold {_STATES.get(state, '')}")
        line.append(
            f"{duration(now - trainer['ended'])} ago after "
            f"{duration(trainer['ended'] - trainer['started'])}: "
            f"{amount(totals['steps'])} steps, {amount(totals['samples'])} samples",
            style="not bold dim",
        )
        lines.append(line)
    if len(over) > _OVER:
        lines.append(Text(f"and {len(over) - _OVER} more that are over", style="dim"))
    return [Rule(style="dim"), *lines] if lines else []


class _Trainer:
    """A trainer that is not over, and how many lines it is given.

    Attributes
    ----------
    rows, events
        How many of its replicas and events are shown.
    """

    def __init__(self, snapshot: Snapshot, now: float, width: int, blocks: str) -> None:
        self._snapshot = snapshot
        self._now = now
        self._width = width
        self._blocks = blocks
        self._facts = _facts(snapshot)
        self.rows = min(len(snapshot["replicas"]), _ROWS)
        self.events = min(len(snapshot["events"]), _EVENTS)

    @property
    def wanted(self) -> _Size:
        """How many there are to show."""
        return _Size(
            len(self._snapshot["replicas"]), min(len(self._snapshot["events"]), _EVENTS)
        )

    @property
    def height(self) -> int:
        """How many lines it takes."""
        facts = -(-len(self._facts) // self._facts_in_a_line)
        replicas = len(self._snapshot["replicas"])
        table = (1 + self.rows + (self.rows < replicas)) if replicas else 0
        return 1 + facts + 1 + table + self.events

    @property
    def _facts_in_a_line(self) -> int:
        return max(1, self._width // _FACT)

    def lines(self) -> list[RenderableType]:
        """Draw title, facts, curves, replicas and events."""
        snapshot = self._snapshot
        drawn: list[RenderableType] = [self._title(), self._grid(), self._curves()]
        if snapshot["replicas"]:
            drawn.append(replica_table(snapshot["replicas"], self._width, self.rows))
        newest = snapshot["events"][len(snapshot["events"]) - self.events :]
        return [*drawn, *map(_event, reversed(newest))]

    def brief(self) -> RenderableType:
        """Draw one line."""
        now = self._snapshot["now"]
        line = self._name()
        line.append(
            f"  {amount(now['samples_per_second'])} samples/s  "
            f"loss {value(now['loss'])}",
            style="not bold",
        )
        return line

    def _name(self) -> Text:
        snapshot = self._snapshot
        name = plain(snapshot["name"])
        line = Text(name, style="bold", no_wrap=True, overflow="ellipsis")
        state = snapshot["state"]
        line.append(f"  {state}", style=f"not bold {_STATES.get(state, '')}")
        return line

    def _title(self) -> RenderableType:
        snapshot = self._snapshot
        title = self._name()
        title.append(
            f" {duration(self._now - snapshot['started'])}", style="not bold dim"
        )
        alive = sum(
            row["state"] not in ("lost", "left") for row in snapshot["replicas"]
        )
        title.append(
            f"  {alive:,} of {snapshot['target']:,} replicas",
            style="not bold" if alive >= snapshot["target"] else "yellow",
        )
        title.append(f"  run {snapshot['run_id'][:8]}", style="not bold dim")
        return Rule(title, align="left", style="dim")

    def _grid(self) -> RenderableType:
        """Draw the facts, one or more in a line."""
        places = self._facts_in_a_line
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        for _ in range(places):
            grid.add_column(no_wrap=True, style="dim")
            grid.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for start in range(0, len(self._facts), places):
            line = self._facts[start : start + places]
            grid.add_row(*(cell for fact in line for cell in fact))
        return grid

    def _curves(self) -> RenderableType:
        recent = self._snapshot.get("recent") or {}
        times = recent.get("time") or []
        line = Text(no_wrap=True, overflow="crop")
        if len(times) < 2:
            return line
        span = f"last {duration(times[-1] - times[0])}"
        names = ("samples/s  ", "   loss ", "   ")
        width = (self._width - sum(map(len, names)) - len(span)) // 2
        speed = sparkline(recent["samples"], width, lowest=0.0, blocks=self._blocks)
        loss = sparkline(recent["loss"], width, blocks=self._blocks)
        for text, style in (
            (names[0], "dim"),
            (speed.ljust(width), "cyan"),
            (names[1], "dim"),
            (loss.ljust(width), "magenta"),
            (names[2] + span, "dim"),
        ):
            line.append(text, style=style)
        return line


class _Size(NamedTuple):
    """Replicas and events."""

    rows: int
    events: int


class _Fact(NamedTuple):
    """A name, and the numbers that belong to it."""

    name: str
    text: Text


def _facts(snapshot: Snapshot) -> list[_Fact]:
    """What is shown of a trainer, the most important first."""
    now = snapshot["now"]
    refused = snapshot["dead_letters"]
    dropped = snapshot.get("dropped", 0)  # older schedulers do not tell it
    scores = [("loss", now["loss"]), *list(now["metrics"].items())[:_METRICS]]
    predicting = snapshot.get("phase") == "predicting"
    return [
        _fact(
            "predicting" if predicting else "learning",
            _number(amount(now["samples_per_second"]), "samples/s"),
            _number(amount(now["steps_per_second"]), "steps/s"),
            _number(amount(snapshot["totals"]["samples"]), "samples"),
        ),
        _fact("scores", *(_named(plain(name), value(score)) for name, score in scores)),
        _fact(
            "staleness",
            _named("mean", short(now["staleness_mean"])),
            _named("p95", short(now["staleness_p95"])),
            _named("max", short(now["staleness_max"])),
            _named("age of gradients, p95", duration(now["age_p95"])),
        ),
        _fact(
            "exchange",
            _number(rate_of_bytes(now["sent_bytes_per_second"]), "sent"),
            _number(rate_of_bytes(now["received_bytes_per_second"]), "received"),
            *([_named("of", f"{snapshot['share']}s")] if snapshot.get("share") else []),
        ),
        _fact(
            "queue",
            _named("backlog", amount(snapshot["backlog"])),
            _named("lag", duration(snapshot["lag"])),
            _named("dead letters", amount(refused), "bold red" if refused else "bold"),
            *([_named("dropped", amount(dropped), "bold red")] if dropped else []),
            _named("predictions/s", amount(now["predictions_per_second"])),
        ),
    ]


def _fact(name: str, *numbers: Text) -> _Fact:
    text = Text("   ").join(numbers)
    text.no_wrap, text.overflow = True, "ellipsis"
    return _Fact(name, text)


def _number(number: str, unit: str) -> Text:
    return Text.assemble((number, "bold"), f" {unit}")


def _named(name: str, number: str, style: str = "bold") -> Text:
    return Text.assemble(f"{name} ", (number, style))


def _fitted(
    trainers: Sequence[_Trainer], height: int | None
) -> tuple[list[_Trainer], list[_Trainer]]:
    """Give out the lines of the page; who gets a block of them, and who one line."""
    if height is None:
        return list(trainers), []
    for each in trainers:
        each.rows, each.events = min(2, each.wanted.rows), 0
    full = list(trainers)
    brief: list[_Trainer] = []
    while len(full) > 1 and _height(full) + len(brief) > height:
        brief.insert(0, full.pop())
    for rows, events in ((4, 0), (4, _EVENTS), (height, _EVENTS)):
        _grow(full, _Size(rows, events), height - len(brief))
    return full, brief


def _grow(trainers: Sequence[_Trainer], size: _Size, height: int) -> None:
    """Give each a line in turn, until it has so many or the page is full."""
    growing = True
    while growing:
        growing = False
        for each in trainers:
            rows, events = each.rows, each.events
            each.rows = min(rows + 1, size.rows, each.wanted.rows)
            each.events = min(events + 1, size.events, each.wanted.events)
            if _height(trainers) > height:
                each.rows, each.events = rows, events
            growing = growing or (each.rows, each.events) != (rows, events)


def _height(trainers: Sequence[_Trainer]) -> int:
    return sum(each.height for each in trainers)


def _event(event: Snapshot) -> Text:
    line = Text(_clock(event["time"]), style="dim", no_wrap=True, overflow="ellipsis")
    kind = event["kind"]
    line.append(f"  {KINDS.get(kind, kind)}", style=f"not dim {_KINDS.get(kind, '')}")
    line.append(f"  {plain(event['text'])}", style="not dim")
    return line


def _clock(moment: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))
