"""Who is in a topic: an immutable, numbered picture that the scheduler hands out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

__all__ = ["Member", "View"]


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

    def destinations(self, publisher_id: str) -> dict[str, Member]:
        """Return who gets what this publisher puts: all but its own namesakes."""
        own = self.publishers[publisher_id].member
        return {
            one.id: one
            for one in self.subscribers.values()
            if own is None or one.member != own
        }

    def to_wire(self) -> dict[str, Any]:
        """Return plain lists and strings, which Dask sends without pickling."""
        return {
            "topic": self.topic,
            "number": self.number,
            "publishers": [list(one) for one in self.publishers.values()],
            "subscribers": [list(one) for one in self.subscribers.values()],
        }

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> View:
        """Undo `to_wire`."""
        return cls.of(
            wire["topic"],
            wire["number"],
            (Member(*one) for one in wire["publishers"]),
            (Member(*one) for one in wire["subscribers"]),
        )
