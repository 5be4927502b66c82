"""A source over items that Python can iterate."""

from __future__ import annotations

from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
)
from inspect import signature
from itertools import islice
from typing import Any, Unpack

from streamz import Stream

from tensair_dask._common.user_functions import START, defaulted
from tensair_dask._wording import in_words
from tensair_dask.errors import ConfigurationError, RaisedError, SourceError
from tensair_dask.streams.downstream import trainers_after
from tensair_dask.streams.sources.positions import Positions, named
from tensair_dask.streams.sources.repeatable import why_not_repeatable
from tensair_dask.streams.sources.source import Source, StreamOptions

__all__ = ["from_batches"]

# The position is one number; partitions are what a checkpoint keeps it by.
ITEMS = "items"

Items = Iterable[Any] | AsyncIterable[Any]


@Stream.register_api(staticmethod)
class from_batches(Source):
    """Emit the items of an iterable, each with its position.

    Parameters
    ----------
    items
        A list, a `torch.utils.data.DataLoader`, an asynchronous iterable, ...: whatever
        begins with the first item each time it is iterated. Or a function
        ``items(start)`` that returns an iterable which begins with item ``start``. An
        iterator goes on where it is after `stop`, but not after `close`. They are
        emitted once: started again behind its end, a source emits what was added since,
        and says so if that is nothing. For another pass make another source.
    name
        In checkpoints; keep it the same from run to run.
    positions
        Where to continue: what a checkpoint keeps, ``{name: {"items": 500}}``.
    start
        Whether to start at once.
    **kwargs
        As of `Source`.

    Raises
    ------
    SourceError
        At `ended`: if the iterable ends before the position, or raises; and where
        there is a position, if it has another order each time, as a set or a
        `DataLoader` that shuffles without a generator of its own, freshly seeded.

    Notes
    -----
    After a restart the first items of an iterable are made again and left out; where
    that takes long, give a function.

    Items are made on the stream's event loop, as an ordinary loop around ``emit`` would
    make them. What takes long to make belongs into an asynchronous iterable.

    Examples
    --------
    >>> source = Stream.from_batches(batches, positions=kept)  # doctest: +SKIP
    >>> source.train(trainer)  # doctest: +SKIP
    >>> source.start()  # doctest: +SKIP
    """

    def __init__(
        self,
        items: Items | Callable[[int], Items],
        name: str = "batches",
        positions: Positions | None = None,
        start: bool = False,
        **kwargs: Unpack[StreamOptions],
    ) -> None:
        if not callable(items) and not isinstance(items, (Iterable, AsyncIterable)):
            raise ConfigurationError(
                f"{name} was given {type(items).__name__}; an iterable is needed, or a "
                f"function that returns one.{_example(items)}"
            )
        if not isinstance(items, (Iterable, AsyncIterable)):
            _check_function(items, name)
        self._items = items
        # Kept while the source is stopped: an iterator goes on where it is.
        self._iterator: AsyncGenerator[Any, None] | None = None
        self._opened_once = False
        # An item that was made, and that nobody took yet.
        self._made: list[Any] = []
        super().__init__(name, positions, **kwargs)
        if unknown := self._positions.keys() - {ITEMS}:
            raise ConfigurationError(
                f"positions= of {name} has {named(sorted(unknown))}; {ITEMS!r} is "
                f"allowed: {{{name!r}: {{{ITEMS!r}: 500}}}}."
            )
        self.position = self._positions.get(ITEMS, 0)
        self.tracker.begin(ITEMS, self.position)
        if start:
            self.start()

    async def _run(self) -> None:
        if self._iterator is None:
            self._iterator = _each(self._opened())
        while not self._stopping:
            try:
                if not self._made:
                    self._made.append(await self._iterator.__anext__())
            except StopAsyncIteration:
                self._ended()
                return
            except Exception as error:
                self._iterator = None
                if isinstance(error, SourceError):
                    raise
                raise SourceError(
                    f"{self.name} could not make item {self.position}: "
                    f"{in_words(error)}"
                ) from error
            if not await self._taken():
                return
            mark = self.tracker.emitted(ITEMS, self.position, self.position + 1)
            self.position += 1
            await self._pass_on(self._made.pop(), [mark])

    def _why_nothing(self) -> str:
        if isinstance(self._items, (Iterator, AsyncIterator)):
            kind = type(self._items).__name__
            return (
                f"the {kind} that it was given is exhausted, and does not begin anew. "
                "For another pass give another source an iterable that does, such as a "
                "list."
            )
        if not self.position:
            return "there are none in what it was given."
        return (
            f"it is behind the last one, at position {self.position}, and none was "
            "added. A source emits each item once, since checkpoints go on from its "
            "position. For several passes give the items as often, such as items * 3; "
            "or close it, and make another source."
        )

    def _ended(self) -> None:
        # What is iterated anew may have become longer until the next start.
        if not isinstance(self._items, (Iterator, AsyncIterator)):
            self._iterator = None

    async def _let_go(self, timeout: float) -> None:
        if self._iterator is not None:
            await self._iterator.aclose()
            self._iterator = None

    def _opened(self) -> Items:
        if isinstance(self._items, (Iterator, AsyncIterator)) and self._opened_once:
            raise SourceError(
                f"{self.name} cannot go on behind item {self.position}: it was given "
                "an iterator, which does not begin anew after it has raised or the "
                "source was closed. Give an iterable that does, or a function."
            )
        self._opened_once = True
        if isinstance(self._items, (Iterable, AsyncIterable)):
            return self._skipped(self._items, self.position)
        items = self._items(self.position)
        if not isinstance(items, (Iterable, AsyncIterable)):
            raise SourceError(
                f"The function of {self.name} returned {type(items).__name__} for "
                f"start={self.position}; an iterable is needed."
            )
        return items

    def _skipped(self, items: Items, count: int) -> Items:
        why = why_not_repeatable(items)
        if not count:
            if why and any(
                getattr(each, "keeps", False) for each in trainers_after(self)
            ):
                self._note(
                    f"{self.name} cannot be gone on with from a checkpoint in the "
                    f"middle of a pass: {why}."
                )
            return items
        if why:
            raise SourceError(
                f"{self.name} cannot go on behind item {count}, which would be another "
                f"one now; some items would be learned twice, and others never: {why}."
            )
        if isinstance(items, Iterable):
            iterator = iter(items)
            self._check_skipped(sum(1 for _ in islice(iterator, count)), count)
            return iterator
        return self._skipped_awaiting(items, count)

    async def _skipped_awaiting(
        self, items: AsyncIterable[Any], count: int
    ) -> AsyncIterator[Any]:
        seen = 0
        async for item in items:
            seen += 1
            if seen > count:
                yield item
        self._check_skipped(min(seen, count), count)

    def _check_skipped(self, seen: int, count: int) -> None:
        if seen < count:
            raise SourceError(
                f"{self.name} was to continue behind item {count}, but has only {seen} "
                "items. Give it the data that the checkpoint was made with, and an "
                "iterable that begins anew each time."
            )


def _example(items: Any) -> str:
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        return (
            " Of a torch Dataset, for example from_batches(DataLoader(data, "
            "batch_size=64)); or its records one by one, from_batches(lambda start: "
            "(data[i] for i in range(start, len(data)))).partition(64)."
        )
    return " For example from_batches(lambda start: islice(make(), start, None))."


def _check_function(function: Callable[[int], Items], name: str) -> None:
    try:
        accepted = signature(function)
    except (TypeError, ValueError):  # some that are written in C do not tell
        return
    try:
        accepted.bind(0)
    except TypeError as error:
        raise ConfigurationError(
            f"{name} was given a function that does not take the number of the item to "
            f"begin with ({error}); it is needed to go on after a restart: "
            "from_batches(lambda start: data[start:]). Give data that can be iterated "
            "anew as they are."
        ) from error
    if (name_of_it := defaulted(function, 0, START)) is not None:
        raise ConfigurationError(
            f"{name} was given a function whose first parameter is {name_of_it}, with "
            "a default, and which would be called with the number of the item to begin "
            "with in its place. Call it start, or give it no default: "
            f"from_batches(lambda start: function({name_of_it}=...))."
        )


async def _each(items: Items) -> AsyncGenerator[Any, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        iterator = iter(items)
        while True:
            try:
                item = next(iterator)
            except StopIteration:
                return
            except BaseException as error:
                raise RaisedError.caught(error) from error.__cause__
            yield item
