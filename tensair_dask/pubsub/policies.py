"""What a publisher does with a message for a subscriber that is not keeping up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask.errors import ConfigurationError

__all__ = ["Block", "Conflate", "DropOldest", "Policy"]


class Policy:
    """Base of the policies: how many messages may wait, and what gives way to one more.

    Attributes
    ----------
    maxsize
        Messages that may wait for one subscriber.
    blocks
        Whether ``put`` waits for room.
    lossy
        Whether the oldest waiting message gives way; else `combine` merges it.
    batch
        Most messages that leave in one delivery.
    """

    blocks: ClassVar[bool] = False
    lossy: ClassVar[bool] = False
    batch: ClassVar[int] = 1

    def __init__(self, maxsize: int) -> None:
        self.maxsize = whole("maxsize", maxsize, 1, 10)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(maxsize={self.maxsize})"

    def combine(self, waiting: Any, new: Any) -> Any:
        """Return one message that stands for both; only asked of those that merge."""
        raise NotImplementedError


class Block(Policy):
    """Lose nothing: ``put`` waits until the slowest subscriber has room.

    Parameters
    ----------
    maxsize
        Messages that may be on the way to one subscriber, those in flight included.
        Default: ``tensair.pubsub.queue``.

    Notes
    -----
    One slow subscriber holds the publisher. Use `DropOldest` where only fresh messages
    count, and `Conflate` where messages can be summed up.
    """

    blocks = True
    batch = 100

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(config.get("pubsub.queue", maxsize))


class DropOldest(Policy):
    """Keep the newest: a message that finds no room pushes out the oldest waiting one.

    Parameters
    ----------
    maxsize
        Messages that may wait for one subscriber, besides the one in flight.
        Default: ``tensair.pubsub.queue``.

    Notes
    -----
    ``put`` never waits; what was lost is counted in ``Pub.links`` as ``dropped``.
    """

    lossy = True

    def __init__(self, maxsize: int | None = None) -> None:
        super().__init__(config.get("pubsub.queue", maxsize))


class Conflate(Policy):
    """Lose nothing and never wait: merge a message into the one that has not left yet.

    Parameters
    ----------
    merge
        ``merge(waiting, new)`` returns the message that stands for both. It runs in
        the thread that calls ``put``. It must not change ``waiting`` or ``new``: both
        may be on their way to other subscribers. It should not raise: if it does, the
        subscribers concerned do not get the new message and ``put`` raises.

    Notes
    -----
    At most one message waits for each subscriber, so memory is bounded; a slow
    subscriber gets fewer, larger messages.

    Examples
    --------
    >>> import operator
    >>> Conflate(operator.add).combine(1, 2)
    3
    """

    def __init__(self, merge: Callable[[Any, Any], Any]) -> None:
        if not callable(merge):
            raise ConfigurationError(
                f"merge is {merge!r}: give a function merge(waiting, new), "
                "for example: operator.add"
            )
        super().__init__(1)
        self.merge = merge

    def __repr__(self) -> str:
        return f"Conflate({self.merge!r})"

    def combine(self, waiting: Any, new: Any) -> Any:
        """Return the merged message.

        Raises
        ------
        ConfigurationError
            If the function returns None, as those do that change what they are given.
        """
        merged = self.merge(waiting, new)
        if merged is None and waiting is not None and new is not None:
            raise ConfigurationError(
                f"merge ({self.merge!r}) returned None for two messages, so that both "
                "would be lost. Let it return the message that stands for both, and "
                "change neither: lambda waiting, new: {**waiting, **new}."
            )
        return merged
