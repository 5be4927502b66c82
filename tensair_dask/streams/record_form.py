"""How the items of a stream are read: decided once, and the same for all of them.

Nodes such as ``partition`` give records, and what comes otherwise is most often ready
arrays. Some items fit both: two records ``[x, y]`` that a time-out has left over look
like one mini-batch of two rows. So each node decides once: by the node before it, or by
its first item that fits one reading only. Until then, what fits both is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tensair_dask.batches.batch import (
    ABSENT,
    READY,
    RECORDS,
    MiniBatch,
    collate,
    fits_ready,
    fits_records,
    no_batch,
    only_reading,
    stack,
)
from tensair_dask.batches.named import as_pair_by_name
from tensair_dask.errors import BatchError

__all__ = ["Inputs", "Pairs"]


class Pairs:
    """Reads items as mini-batches ``(x, y)``, in one form.

    Parameters
    ----------
    form
        `READY` or `RECORDS`; None where the items have to tell.
    """

    def __init__(self, form: str | None = None) -> None:
        self.form = form

    def __call__(self, item: Any) -> tuple[Any, Any]:
        """Read one item.

        Raises
        ------
        BatchError
            If it does not have the form, or may have either and none is decided.
        """
        if type(item) is not tuple:
            item = as_pair_by_name(item)
        if self.form == READY and fits_ready(item):
            return item[0], item[1]
        if self.form == RECORDS and fits_records(item):
            return collate(item)
        if self.form is not None:
            raise self._other(item)
        form, pair = only_reading(item)
        MiniBatch.of(*pair)  # what is none decides nothing
        self.form = form
        return pair

    def _other(self, item: Any) -> BatchError:
        if not (fits_ready(item) or fits_records(item)):
            return no_batch(item)
        other = RECORDS if self.form == READY else READY
        return _of_another_form(item, self.form, other)


class Inputs:
    """Reads items as inputs of the model, in one form.

    Parameters
    ----------
    form
        `READY` or `RECORDS`; None where the items have to tell.
    """

    def __init__(self, form: str | None = None) -> None:
        self.form = form

    def __call__(self, item: Any) -> Any:
        """Read one item.

        Raises
        ------
        BatchError
            If it does not have the form, or may have either and none is decided.
        """
        if item is None or isinstance(item, (str, bytes)):
            raise BatchError(
                f"The stream gave a {type(item).__name__}; an array, or a tuple or "
                "dict of arrays, is needed. Put .map(parse) before, or give collate=."
            )
        if self.form == RECORDS:
            if not isinstance(item, (tuple, list)):
                raise _of_another_form(item, RECORDS, READY)
            return stack(item)
        # Only a tuple can be both: a model's inputs, and records of one input.
        if self.form == READY or not isinstance(item, tuple):
            return item
        return self._decide(item)

    def _decide(self, item: tuple[Any, ...]) -> Any:
        found: dict[str, Any] = {}
        refused: BatchError | None = None
        ways: dict[str, Callable[[Any], Any]] = {READY: tuple, RECORDS: stack}
        for form, read in ways.items():
            try:
                MiniBatch.of(read(item), ABSENT)
                found[form] = read(item)
            except BatchError as error:
                refused = error
        if len(found) > 1:
            raise BatchError(
                f"The tuple of {len(item)} items that the stream gave fits two "
                f"readings: {len(item)} records, and ready arrays, one for each input "
                "of the model. Nothing else tells which. For records, put partition(n) "
                "straight before, or give collate=tensair_dask.batches.stack; for "
                "ready arrays, give collate=lambda item: item."
            )
        if refused is not None and not found:
            raise refused
        ((self.form, inputs),) = found.items()
        return inputs


def _of_another_form(item: Any, form: str | None, other: str) -> BatchError:
    return BatchError(
        f"The items of this stream are {form}, as the node before, or its first one, "
        f"has told; this {type(item).__name__} can only be {other}. Give each form a "
        "stream of its own, or collate=."
    )
