"""Columns of data frames: their names and order are decided once for a trainer.

A model sees numbers at places. A frame whose columns stand in another order, or are
other ones, would be learned as something else, and look healthy. So the first frame
decides, for each place where one is given; arrays have no names, and are free.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tensair_dask.batches.batch import ABSENT, MiniBatch
from tensair_dask.batches.named import (
    fields_in_order,
    in_order,
    is_frame,
    is_row,
    rows_in_order,
    same_names,
    stand_for_places,
)
from tensair_dask.errors import ForwardError, LossError, ShapeError

__all__ = ["ColumnNames"]

# A model that cannot take the columns is refused with one of these.
_MISFITS = (ShapeError, ForwardError, LossError)


class ColumnNames:
    """The columns that a trainer's model knows, by the place of the frame."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        # Those of a checkpoint, which what was learned has decided.
        self._kept: dict[str, list[Any]] = {}

    def batch(self, x: Any, y: Any = ABSENT, owned: bool = False) -> MiniBatch:
        """Make a mini-batch whose columns stand in the order of the first one.

        Parameters
        ----------
        x, y, owned
            As `MiniBatch.of` takes them.

        Raises
        ------
        BatchError
            As `MiniBatch.of`; and a `ShapeError` if a frame has other columns.
        """
        if type(x) is type(y) is np.ndarray:  # which have no names
            return MiniBatch.of(x, y, owned)
        _check_rows(x, y)
        found: dict[str, Any] = {}
        ordered_x = self._ordered(x, "x", found)
        ordered_y = self._ordered(y, "y", found)
        owned = owned and ordered_x is x and ordered_y is y
        made = MiniBatch.of(ordered_x, ordered_y, owned)
        self._known.update(found)  # what is no mini-batch decides nothing
        return made

    def ordered(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Give both sides with their columns in order, and decide nothing.

        Raises
        ------
        ShapeError
            If a frame has other columns.
        """
        return self._ordered(x, "x", {}), self._ordered(y, "y", {})

    def refused(self, error: BaseException) -> None:
        """Forget the names: the first frames do not fit the model.

        Only for as long as nothing was learned, and nothing else is under way.
        """
        if isinstance(error, _MISFITS):
            self._known = dict(self._kept)

    def state_dict(self) -> dict[str, list[Any]]:
        """Give the names by place, as plain values; those that are none are left out.

        Names of a place that cannot be kept are decided anew after a restart.
        """
        names = {place: list(each) for place, each in list(self._known.items())}
        plain = {
            place: [_plain(name) for name in each] for place, each in names.items()
        }
        return {
            place: each
            for place, each in plain.items()
            if each == names[place] and None not in each
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the names of a checkpoint; an older one has none."""
        self._kept = {place: list(names) for place, names in state.items()}
        self._known = dict(self._kept)

    def _ordered(self, side: Any, place: str, found: dict[str, Any]) -> Any:
        if type(side) is np.ndarray:
            return side
        if is_frame(side):
            return self._of_frame(side, place, found)
        if is_row(side):
            return self._of_row(side, place)
        if isinstance(side, Mapping):
            if not any(map(is_frame, side.values())):
                return side
            return {
                key: self._ordered(value, f"{place}[{key!r}]", found)
                for key, value in side.items()
            }
        if isinstance(side, list) and side and hasattr(side[0], "_fields"):
            known = self._known.get(place)
            if known is None or stand_for_places(known):
                known = side[0]._fields
                if not any(each.startswith("_") for each in known):  # else no names
                    found[place] = known
            return rows_in_order(side, list(known), place)
        if hasattr(side, "_fields"):
            known = self._known.get(place)
            if known is None:
                found[place] = side._fields
            elif isinstance(known, (tuple, list)):  # a list is of a checkpoint
                side = fields_in_order(side, tuple(known), place)
        # A list may be long, and of numbers; of arrays are all of it, or none.
        if not isinstance(side, (tuple, list)) or not any(map(is_frame, side[:64])):
            return side
        return tuple(
            self._ordered(value, f"{place}[{at}]", found)
            for at, value in enumerate(side)
        )

    def _of_row(self, row: Any, place: str) -> Any:
        """Put one row of a frame in order; a column, whose index counts, is left."""
        known = self._known.get(place)
        if known is None or stand_for_places(known) or stand_for_places(row.index):
            return row
        if set(row.index).isdisjoint(known):
            return row
        return in_order(row, known, place, "index")

    def _of_frame(self, frame: Any, place: str, found: dict[str, Any]) -> Any:
        names = frame.columns
        known = self._known.get(place)
        if names is known:
            return frame
        if known is None or stand_for_places(known):
            if known is None or not same_names(known, names):
                found[place] = names
                return frame
        elif stand_for_places(names) and not same_names(known, names):
            return frame  # an array in a frame
        ordered = in_order(frame, known, place)
        if ordered is frame and type(known) is list:
            found[place] = names  # compared faster than the list of a checkpoint
        return ordered


def _plain(name: Any) -> Any:
    """Give a name as a value of Python's own; None if it cannot be kept."""
    if isinstance(name, tuple):
        parts = tuple(map(_plain, name))
        return None if None in parts else parts
    if isinstance(name, np.generic):
        name = name.item()
    return name if isinstance(name, (str, int, float, bool)) else None


def _check_rows(x: Any, y: Any) -> None:
    """Refuse frames whose rows belong together by their labels, and not by place."""
    (first, frame), *others = [*_frames(x, "x"), *_frames(y, "y")] or [("", None)]
    for place, each in others:
        assert frame is not None
        one, other = frame.index, each.index
        if len(one) != len(other) or one.equals(other):
            continue
        if one.is_unique and one.sort_values().equals(other.sort_values()):
            raise ShapeError(
                f"The rows of {first} and {place} have the same labels in another "
                f"order: {first} begins with {one[0]!r}, and {place} with "
                f"{other[0]!r}. A mini-batch pairs rows by their place. Align them, "
                f"for example {place} = {place}.loc[{first}.index]; or, where the "
                f"place is meant, give {place}.to_numpy()."
            )


def _frames(side: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Give the frames of one side of a mini-batch, and the columns of a dict."""
    if hasattr(side, "iloc"):
        yield place, side
    elif isinstance(side, Mapping):
        for key, value in side.items():
            if hasattr(value, "iloc"):
                yield f"{place}[{key!r}]", value
    elif isinstance(side, tuple):  # of records, too: only frames hold several rows
        for at, value in enumerate(side[:64]):
            if is_frame(value):
                yield f"{place}[{at}]", value
