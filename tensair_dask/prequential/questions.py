"""A stream of records as what really happens: questions now, answers when they come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tensair_dask.errors import BatchError, ConfigurationError
from tensair_dask.prequential.delayed_labels import Delay, UntilDue
from tensair_dask.prequential.inputs import as_seconds

__all__ = ["Answer", "Question", "questions_and_answers"]


class Question(NamedTuple):
    """A record that has come without its label: time to predict.

    Attributes
    ----------
    number
        Number of the record in the stream, from 0.
    x
        Its features.
    time
        When it came: seconds, or how many records came before it.
    """

    number: int
    x: Any
    time: float


class Answer(NamedTuple):
    """The label of a record has come: time to score the prediction, and to learn.

    Attributes
    ----------
    number
        Number of the record, as in its question.
    x, y
        The record.
    time
        When the label came, in the unit of the questions.
    """

    number: int
    x: Any
    y: Any
    time: float


def questions_and_answers(
    stream: Iterable[Any],
    delay: Any,
    moment: Any = None,
    pending: int = 1_000_000,
) -> Iterator[Question | Answer]:
    """Turn records into questions, and the answers that come later.

    Parameters
    ----------
    stream
        Records ``(x, y)`` or ``(x, y, time)``, or mini-batches with one time each.
    delay
        How much later than a record its label comes: records as a whole number, or a
        time (``"2h"``, a timedelta, seconds as a float), as in `Prequential`. Or
        ``delay(x, y)``, which gives the time of each label, so that they may overtake
        each other. None or 0 for at once.
    moment
        For a delay in time, when a record comes, if the stream does not say: the name
        of a column of ``x``, or ``moment(x)``. Seconds, or dates.
    pending
        Records that may wait for their labels.

    Yields
    ------
    question or answer
        In the order in which they happen. Labels that come with a record come before
        its question. When the stream ends, the labels that are missing come in their
        order.

    Raises
    ------
    ConfigurationError
        If the delay is not allowed, or more than ``pending`` records wait.
    BatchError
        If a record has no time, or is no pair.

    Notes
    -----
    Time does not run backwards: a record that is earlier than the one before is asked
    in its place in the stream, and its label comes as much later than its own time.
    """
    fixed = None if callable(delay) else Delay.of(0 if delay is None else delay)
    in_time = fixed is None or fixed.in_time
    waiting: UntilDue[tuple[int, Any, Any]] = UntilDue()
    now = float("-inf")
    for index, record in enumerate(stream):
        x, y, given = _read(index, record)
        at = _moment(index, x, given, moment) if in_time else float(index)
        now = max(now, at)
        yield from _answers(waiting, now)
        yield Question(index, x, at)
        later = fixed or Delay.of(_as_time(delay(x, y)))
        waiting.put(at + later.amount, 1, (index, x, y))
        if later.amount == 0:
            yield from _answers(waiting, now)
        if waiting.waiting > pending:
            raise ConfigurationError(
                f"{waiting.waiting} records wait for their labels, more than pending="
                f"{pending}. Give a shorter delay, or a larger pending=."
            )
    yield from _answers(waiting, float("inf"))


def _answers(waiting: UntilDue[tuple[int, Any, Any]], until: float) -> Iterator[Answer]:
    while waiting.waiting and waiting.next_due <= until:
        due, (index, x, y) = waiting.take_first()
        yield Answer(index, x, y, due)


def _read(index: int, record: Any) -> tuple[Any, Any, Any]:
    if isinstance(record, (tuple, list)) and len(record) in (2, 3):
        x, y, *rest = record
        return x, y, rest[0] if rest else None
    raise BatchError(
        f"Record {index} of the stream is a {type(record).__name__}; give pairs "
        "(x, y), or (x, y, time)."
    )


def _moment(index: int, x: Any, given: Any, moment: Any) -> float:
    if isinstance(moment, str):
        try:
            given = x[moment]
        except (KeyError, IndexError, TypeError) as error:
            raise BatchError(
                f"Record {index} has no {moment!r}, which moment= names as its time."
            ) from error
    elif callable(moment):
        given = moment(x)
    if given is None:
        raise BatchError(
            f"Record {index} has no time, which a delay in time needs. Give records "
            "(x, y, time), or moment='a column of x', or moment=a function of x; or "
            "give the delay in records, for example delay=500."
        )
    return as_seconds(given, 1)[0]


def _as_time(given: Any) -> Any:
    """What a function gives is a time, also where it is a whole number of seconds."""
    return float(given) if isinstance(given, int) else given
