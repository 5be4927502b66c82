"""Who is in a topic: immutable, numbered views, and what changes between two."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import msgpack

__all__ = ["Change", "Member", "View"]


class Member(NamedTuple):
    """One publisher or one subscriber of a topic.

    Attributes
    ----------
    id
        Unique for ever: a subscription that is closed and opened again has another.
    address
        Of the worker (``"tcp://..."``), or the id of the Dask client.
    member
        The name given to ``Pub`` or ``Sub``; who shares it hears nothing of the other.
    kind
        ``"worker"`` or ``"client"``.
    """

    id: str
    address: str
    member: str | None
    kind: str


class Change(NamedTuple):
    """What makes the next view of a topic from the one before.

    A whole view is a change as well: of view number 0, in which nobody is.

    Attributes
    ----------
    topic
        Of the views.
    after, number
        Of the view before, and of the next one.
    publishers, subscribers
        Who has joined.
    left
        Ids of those that have left.
    """

    topic: str
    after: int
    number: int
    publishers: tuple[Member, ...]
    subscribers: tuple[Member, ...]
    left: tuple[str, ...] = ()

    def to_wire(self) -> bytes:
        """Return few bytes: members differ in little but their ids."""
        return zlib.compress(msgpack.packb(self))

    @classmethod
    def from_wire(cls, wire: bytes) -> Change:
        """Undo `to_wire`."""
        topic, after, number, publishers, subscribers, left = msgpack.unpackb(
            zlib.decompress(wire)
        )
        return cls(
            topic,
            after,
            number,
            tuple(Member(*one) for one in publishers),
            tuple(Member(*one) for one in subscribers),
            tuple(left),
        )


def _nobody() -> Mapping[str, Member]:
    return MappingProxyType({})


@dataclass(frozen=True)
class View:
    """The members of one topic after one change.

    A later view of the scheduler has a larger number. ``publishers`` and
    ``subscribers`` map ids to `Member`.
    """

    topic: str
    number: int = 0
    publishers: Mapping[str, Member] = field(default_factory=_nobody)
    subscribers: Mapping[str, Member] = field(default_factory=_nobody)

    @classmethod
    def of(
        cls,
        topic: str,
        number: int,
        publishers: Iterable[Member],
        subscribers: Iterable[Member],
    ) -> View:
        """Build a view from its members."""
        return cls(
            topic,
            number,
            MappingProxyType({one.id: one for one in publishers}),
            MappingProxyType({one.id: one for one in subscribers}),
        )

    def __contains__(self, member_id: object) -> bool:
        return member_id in self.publishers or member_id in self.subscribers

    def __reduce__(self) -> tuple[Any, ...]:
        return View.from_wire, (self.to_wire(),)

    @property
    def members(self) -> Iterator[Member]:
        """All publishers and subscribers."""
        yield from self.publishers.values()
        yield from self.subscribers.values()

    def destinations(self, publisher_id: str) -> dict[str, Member]:
        """Return who gets what this publisher puts: all but its own namesakes."""
        own = self.publishers[publisher_id].member
        return {
            one.id: one
            for one in self.subscribers.values()
            if own is None or one.member != own
        }

    def changed(self, change: Change) -> View:
        """Return the next view; this is the one that the change is of."""

        def after(
            before: Mapping[str, Member], joined: Iterable[Member]
        ) -> Mapping[str, Member]:
            members = {**before, **{one.id: one for one in joined}}
            for one in change.left:
                members.pop(one, None)
            return MappingProxyType(members)

        return View(
            self.topic,
            change.number,
            after(self.publishers, change.publishers),
            after(self.subscribers, change.subscribers),
        )

    def to_wire(self) -> bytes:
        """Return the view as a change of nothing, in bytes."""
        return Change(
            self.topic,
            0,
            self.number,
            tuple(self.publishers.values()),
            tuple(self.subscribers.values()),
        ).to_wire()

    @classmethod
    def from_wire(cls, wire: bytes) -> View:
        """Undo `to_wire`."""
        change = Change.from_wire(wire)
        return cls(change.topic).changed(change)
