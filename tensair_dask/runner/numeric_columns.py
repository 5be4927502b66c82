"""Which columns of a CSV file a model can learn from as they are."""

from __future__ import annotations

import click
import pandas as pd

__all__ = ["numeric_columns"]


def numeric_columns(head: pd.DataFrame, target: str) -> pd.DataFrame:
    """Choose the columns that hold numbers; print which they are, and which are not.

    Parameters
    ----------
    head
        The first rows of the file.
    target
        The column that is learned.

    Returns
    -------
    numbers
        All columns but the target that hold numbers only, as floats.

    Raises
    ------
    click.UsageError
        If there is none, or no such target.
    """
    if target not in head:
        raise click.UsageError(f"There is no column {target!r}, but {[*head]}.")
    others = head.drop(columns=target)
    numbers = others.select_dtypes(["number", "bool"]).astype(float)
    print(f"Inputs: {', '.join(map(str, numbers)) or 'none'}")
    for name in others.columns.difference(numbers.columns, sort=False):
        column = others[name].dropna()
        texts = [*column[pd.to_numeric(column, errors="coerce").isna()]] or [*column]
        print(f"Left out: {name}, which holds {texts[:1]} ({len(texts)} such)")
    if numbers.empty:
        raise click.UsageError("No column but the target holds numbers only.")
    return numbers
