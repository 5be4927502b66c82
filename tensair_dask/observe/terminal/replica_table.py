"""The replicas of one trainer as a table of bounded length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tensair_dask.observe.wording import (
    amount,
    clipped,
    duration,
    share,
    short,
    value,
)

__all__ = ["STYLES", "chosen", "replica_table"]

Row = dict[str, Any]

# Of the states of replicas.
STYLES = {
    "learning": "green",
    "predicting": "blue",
    "waiting": "yellow",
    "silent": "red",
    "left": "cyan",
    "lost": "red",
}

# The first is shown first where there is no room for all.
_TROUBLE = ("lost", "silent", "waiting", "predicting", "learning", "left")

# Characters that an address gets at least, and its header.
_ADDRESS = 12


class _Column(NamedTuple):
    """A column, and how wide the table must be to have it."""

    header: str
    text: Callable[[Row], str]
    from_width: int = 0
    justify: Any = "right"


_COLUMNS = [
    _Column("device", lambda row: row["device"], 72, "left"),
    _Column("steps", lambda row: amount(row["steps"])),
    _Column("samples/s", lambda row: amount(row["samples_per_second"])),
    _Column("busy", lambda row: share(row["busy"])),
    _Column("loss", lambda row: value(row["loss"]), 100),
    _Column("stale", lambda row: short(row["staleness"]), 56),
    _Column("age", lambda row: duration(row["age"]), 64),
    _Column("refused", lambda row: amount(row["refused"]), 110),
    _Column("predicted", lambda row: amount(row["predictions"]), 120),
    _Column("gradients held", lambda row: amount(row["version"]), 140),
]


def replica_table(replicas: Sequence[Row], width: int, rows: int) -> RenderableType:
    """Draw a row for each replica; with too many, the troubled and slowest.

    Parameters
    ----------
    replicas
        As `ReplicaRecord.row` has them.
    width
        Of the table in characters.
    rows
        How many are shown at most; one line more says what is left out.
    """
    shown = chosen(replicas, rows)
    columns = [each for each in _COLUMNS if width >= each.from_width]
    cells = [[column.text(row) for column in columns] for row in shown]
    gap = 2 if width >= 100 else 1
    addresses = [
        row["address"] if width >= 100 else row["address"].partition("://")[2]
        for row in shown
    ]
    room = width - _taken(columns, cells, shown, gap)

    table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("replica", no_wrap=True)
    table.add_column("worker", no_wrap=True)
    for column in columns:
        table.add_column(column.header, justify=column.justify, no_wrap=True)
    table.add_column("state", no_wrap=True)
    for row, address, texts in zip(shown, addresses, cells, strict=True):
        table.add_row(
            row["replica"],
            clipped(address, max(room, _ADDRESS)),
            *texts,
            Text(row["state"], style=STYLES.get(row["state"], "")),
            style="dim" if row["state"] == "lost" else "",
        )
    return (
        table if len(shown) == len(replicas) else Group(table, _rest(replicas, shown))
    )


def chosen(replicas: Sequence[Row], rows: int) -> list[Row]:
    """Choose so many of them: all in their order, or the troubled and slowest."""
    if len(replicas) <= rows:
        return sorted(replicas, key=_natural)
    # None is to crowd out the others: of replicas that were lost, the newest.
    kinds = {
        state: [row for row in replicas if row["state"] == state] for state in _TROUBLE
    }
    kinds["lost"].reverse()
    kinds["learning"].sort(key=lambda row: row["samples_per_second"] or 0)
    part = max(1, rows // 3)
    first = [row for kind in kinds.values() for row in kind[:part]]
    others = [row for kind in reversed(kinds.values()) for row in kind[part:]]
    picked = {id(row) for row in [*first, *others][: max(rows, 0)]}
    return [row for kind in kinds.values() for row in kind if id(row) in picked]


def _natural(row: Row) -> list[Any]:
    """Order replica-2 before replica-10."""
    parts = re.split(r"(\d+)", row["replica"])
    return [int(part) if part.isdigit() else part for part in parts]


def _taken(
    columns: Sequence[_Column],
    cells: Sequence[list[str]],
    shown: Sequence[Row],
    gap: int,
) -> int:
    """How many characters all columns but that of addresses take."""
    names = [["replica", *(row["replica"] for row in shown)]]
    states = [["state", *(row["state"] for row in shown)]]
    numbers = [
        [column.header, *(line[place] for line in cells)]
        for place, column in enumerate(columns)
    ]
    texts = names + numbers + states
    return sum(max(map(len, column)) for column in texts) + gap * len(texts)


def _rest(replicas: Sequence[Row], shown: Sequence[Row]) -> Text:
    names = {row["replica"] for row in shown}
    states = Counter(row["state"] for row in replicas if row["replica"] not in names)
    text = ", ".join(
        f"{states[state]:,} {state}" for state in _TROUBLE if states[state]
    )
    return Text(f"and {states.total():,} more: {text}", style="dim")
