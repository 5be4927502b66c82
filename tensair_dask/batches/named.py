"""Frames and rows whose numbers have names: how they are found, and put in order."""

from __future__ import annotations

import keyword
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensair_dask.errors import BatchError, ShapeError

__all__ = [
    "as_pair_by_name",
    "fields_in_order",
    "in_order",
    "is_frame",
    "is_row",
    "one_row_frames",
    "rows_in_order",
    "same_names",
    "stand_for_places",
]

# Names that are written out in one message.
_SHOWN = 8


# First fields of named tuples that are no x.
_TARGETS = ("y", "label", "labels", "target", "targets", "class_", "y_true")


def as_pair_by_name(item: Any) -> Any:
    """Give a named tuple with the fields x and y as (x, y), whatever their order.

    Raises
    ------
    BatchError
        If the first of two fields is called as targets are.
    """
    fields: tuple[str, ...] = getattr(item, "_fields", ())
    if len(fields) != 2 or fields == ("x", "y"):
        return item
    if set(fields) == {"x", "y"}:
        return item.x, item.y
    if fields[0].lower() in _TARGETS:
        first, second = fields[0], fields[1]
        raise BatchError(
            f"The item is a {type(item).__name__} with the fields {first!r} and "
            f"{second!r}; a pair (x, y) is read by place, and so {first!r} would be x. "
            f"Put .map(lambda item: (item.{second}, item.{first})) before, or call the "
            "fields x and y, which are read by name."
        )
    return item


def fields_in_order(item: Any, known: tuple[str, ...], place: str) -> Any:
    """Give the values of a named tuple in the order of fields that are known.

    Raises
    ------
    ShapeError
        If it has other fields.
    """
    fields = item._fields
    if fields == known:
        return item
    if not same_names(fields, known):
        raise ShapeError(_other_names(list(fields), list(known), place, "fields"))
    return tuple(getattr(item, field) for field in known)


def rows_in_order(rows: list[Any], known: list[Any], place: str) -> list[Any]:
    """Give rows that are named tuples, such as of ``itertuples``, in one order.

    Parameters
    ----------
    rows
        Of one frame, most often: the fields of the first count for those of its kind.
    known
        Names that decide on the order.
    place
        Where they are given.

    Raises
    ------
    ShapeError
        If some have other fields.
    """
    fields, ordered = getattr(rows[0], "_fields", None), []
    if fields is not None and _agree(fields, known):
        kind = type(rows[0])
        if all(type(row) is kind for row in rows):
            return rows
    for number, row in enumerate(rows):
        where = f"{place} of row {number}"
        fields = getattr(row, "_fields", None)
        if fields is None:
            raise ShapeError(
                f"{where} is a {type(row).__name__} without names, and the first row "
                "is a named tuple. Give all of them one structure."
            )
        ordered.append(
            row if _agree(fields, known) else fields_in_order(row, tuple(known), where)
        )
    return ordered


def _agree(fields: Sequence[str], known: Sequence[Any]) -> bool:
    """Whether fields stand in a known order; those that have no name, by place.

    ``itertuples`` calls a field by its place, ``_3``, where the name of the column
    cannot be that of an attribute.
    """
    if len(fields) != len(known):
        return False
    return all(
        field == name or (field == f"_{at}" and not _could_be_field(name))
        for at, (field, name) in enumerate(zip(fields, known, strict=True))
    )


def _could_be_field(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and not name.startswith("_")
    )


def one_row_frames(frames: Sequence[Any], place: str) -> Any:
    """Make a frame of frames of one row; each in the order of the first one's columns.

    Raises
    ------
    ShapeError
        If one has other columns, or another number of rows.
    """
    from pandas import concat  # is there, since the frames are

    names = frames[0].columns
    for number, frame in enumerate(frames):
        if not is_frame(frame) or len(frame) != 1:
            what = f"a {type(frame).__name__}"
            if is_frame(frame):
                what = f"a frame of {len(frame)} rows"
            raise ShapeError(
                f"The records of a mini-batch differ in {place}: record 0 is a frame, "
                f"which must have one row, and record {number} (of {len(frames)}) is "
                f"{what}. Give frames of one row each, such as frame.iloc[[i]], or "
                "rows, frame.iloc[i]; frames of many rows are mini-batches already, "
                "and for predict."
            )
    ordered = [
        in_order(frame, names, f"{place} of record {number}")
        for number, frame in enumerate(frames)
    ]
    return ordered[0] if len(ordered) == 1 else concat(ordered, ignore_index=True)


def in_order(named: Any, known: Any, place: str, of: str = "columns") -> Any:
    """Give a frame, or a row of one, in the order of names that are known.

    Parameters
    ----------
    named
        A frame, or a row with the names as its index.
    known
        The names of the first one.
    place
        Where it is given, such as ``x['age']``.
    of
        What the names are of: ``"columns"`` of a frame, ``"index"`` of a row.

    Raises
    ------
    ShapeError
        If it has other names.
    """
    names = getattr(named, of)
    if names is known or _equal(names, known):
        return named
    if not same_names(names, known):
        raise ShapeError(_other_names(list(names), list(known), place))
    if len(set(names)) < len(names):
        raise ShapeError(
            f"{place} has columns of one name ({_shown(list(names))}), and those of "
            "the first one stood in another order: which is which cannot be told. "
            "Give each column a name of its own."
        )
    return named[list(known)]


def is_frame(value: Any) -> bool:
    """Whether it is a table with names: told without importing what made it."""
    if type(value) is np.ndarray:
        return False
    return hasattr(value, "columns") and len(getattr(value, "shape", ())) == 2


def is_row(value: Any) -> bool:
    """Whether it is a row of a table, with names: a Series of pandas."""
    return hasattr(value, "index") and hasattr(value, "iloc")


def stand_for_places(names: Any) -> bool:
    """Whether names are 0, 1, 2 ..., as a frame has that was made of an array."""
    if hasattr(names, "step"):  # a RangeIndex: no look at each
        return bool(names.start == 0 and names.step == 1)
    return list(names) == list(range(len(names)))


def _equal(names: Any, known: Any) -> bool:
    if hasattr(names, "equals") and type(names) is type(known):
        return bool(names.equals(known))
    return list(names) == list(known)


def same_names(names: Any, known: Any) -> bool:
    """Whether they are the same, in any order."""
    return len(names) == len(known) and set(names) == set(known)


_INSTEAD = {
    "columns": (
        "choose those of the first, frame[[...]], or give arrays, whose columns have "
        "places only."
    ),
    "fields": (
        "choose those of the first, or give plain tuples, which have places only."
    ),
}


def _other_names(
    names: list[Any], known: list[Any], place: str, of: str = "columns"
) -> str:
    parts = []
    if lacking := [each for each in known if each not in set(names)]:
        parts.append(f"it lacks {_shown(lacking)}")
    if new := [each for each in names if each not in set(known)]:
        parts.append(f"{_shown(new)} {'was' if len(new) == 1 else 'were'} not there")
    return (
        f"{place} has the {of} {_shown(names)}, and the first one had "
        f"{_shown(known)}: {' and '.join(parts) or 'some are there more than once'}. "
        f"{of.capitalize()} may stand in any order, and must have the same names: "
        + _INSTEAD[of]
    )


def _shown(names: Sequence[Any]) -> str:
    text = ", ".join(f"{each!r}"[:60] for each in names[:_SHOWN])
    more = len(names) - _SHOWN
    return f"[{text}, and {more} more]" if more > 0 else f"[{text}]"
