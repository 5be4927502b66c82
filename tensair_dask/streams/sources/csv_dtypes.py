"""Dtypes that a table has as a whole, and its data frames each for itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from tensair_dask.errors import ConfigurationError

__all__ = ["check_dates", "check_dtypes"]


def check_dtypes(read: Mapping[str, Any]) -> None:
    """See that no dtype depends on what a data frame happens to hold.

    Parameters
    ----------
    read
        Arguments of `pandas.read_csv`.

    Raises
    ------
    ConfigurationError
        If categories are to be found: each data frame would number its own.
    """
    for column, dtype in _dtypes(read.get("dtype")):
        if _finds_categories(dtype):
            where = "" if column is None else f" for {column!r}"
            raise ConfigurationError(
                f"read={{'dtype': ...}} has {str(dtype)!r} without categories{where}: "
                "each data frame would find its own, and the same code would stand for "
                "something else in each. Name them: pd.CategoricalDtype(['red', ...])."
            )


def check_dates(frame: pd.DataFrame, read: Mapping[str, Any]) -> None:
    """See that the columns of dates are dates.

    Raises
    ------
    ValueError
        If pandas has left one as it was: it does so, without a word, with all of a
        column that holds something else.
    """
    if not len(frame):
        return
    for name, values in _dates(frame, read):
        if not pd.api.types.is_datetime64_any_dtype(values.dtype):
            raise ValueError(
                f"{name!r} of parse_dates holds what is no date, or dates of several "
                "forms; read={'date_format': ...} names the form"
            )


def _dtypes(given: Any) -> Iterator[tuple[Any, Any]]:
    if not isinstance(given, Mapping):
        yield None, given
        return
    yield from given.items()
    if (other := getattr(given, "default_factory", None)) is not None:
        yield "all others", other()


def _finds_categories(dtype: Any) -> bool:
    if isinstance(dtype, str):
        return dtype == "category"
    if dtype is pd.CategoricalDtype:
        return True
    return isinstance(dtype, pd.CategoricalDtype) and dtype.categories is None


def _dates(
    frame: pd.DataFrame, read: Mapping[str, Any]
) -> Iterator[tuple[Any, pd.Series | pd.Index]]:
    given = read.get("parse_dates") or []
    if given is True:
        if not isinstance(frame.index, pd.RangeIndex):
            yield "the index", frame.index
        return
    for each in given:
        name = "_".join(map(str, each)) if isinstance(each, (list, tuple)) else each
        if name in frame.index.names:
            yield name, frame.index.get_level_values(name)
        elif name in frame.columns:
            yield name, frame[name]
        elif isinstance(name, int) and _is_whole(read):
            yield name, frame.iloc[:, name]


def _is_whole(read: Mapping[str, Any]) -> bool:
    """Whether columns are where they are in the file."""
    return not read.get("usecols") and read.get("index_col") is False
