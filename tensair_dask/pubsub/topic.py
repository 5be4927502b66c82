"""One topic at the scheduler: its members, what they were told, who confirmed it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from tensair_dask.pubsub.pulse import Pulse
from tensair_dask.pubsub.view import Change, Member, View

__all__ = ["Topic"]


class Topic:
    """Gather who joins and leaves, and make numbered changes of it.

    Publishers act by the view that they know. So a subscriber is sure to get what is
    put from the moment on at which all publishers that knew a view before have
    confirmed the one that it is in. Others put nothing before their first view.

    Attributes
    ----------
    view
        That was told last.
    pulse
        Beats when somebody was told or has left, and when all have confirmed.
    """

    def __init__(self, name: str) -> None:
        self.view = View(name)
        self.pulse = Pulse()
        # Since that view.
        self._joined: dict[str, tuple[str, Member]] = {}
        self._left: dict[str, None] = {}
        # Of each member that is there, the number of its first view.
        self._since: dict[str, int] = {}
        # Publishers at each address that know a view.
        self._publishing: Counter[str] = Counter()
        # By the number of a view, addresses from which it was not confirmed.
        self._unheard: dict[int, set[str]] = {}

    def __contains__(self, member_id: object) -> bool:
        return member_id in self._joined or member_id in self._since

    @property
    def is_empty(self) -> bool:
        """Whether nobody is there any more."""
        return not self._joined and not self._since

    @property
    def untold(self) -> int:
        """How many have joined since the view."""
        return len(self._joined)

    @property
    def has_changed(self) -> bool:
        """Whether somebody has joined or left since the view."""
        return bool(self._joined or self._left)

    def add(self, role: str, member: Member) -> None:
        """Add a member, to ``"publishers"`` or to ``"subscribers"``."""
        self._joined[member.id] = (role, member)

    def remove(self, member_id: str) -> str:
        """Remove a member that is there, and return its address."""
        if member_id in self._joined:
            address = self._joined.pop(member_id)[1].address
        else:
            address = self._remove_told(member_id)
        self.pulse.beat()
        return address

    def _remove_told(self, member_id: str) -> str:
        del self._since[member_id]
        self._left[member_id] = None
        publisher = self.view.publishers.get(member_id)
        if publisher is None:
            return self.view.subscribers[member_id].address
        address = publisher.address
        self._publishing[address] -= 1
        if not self._publishing[address]:
            del self._publishing[address]
            self._settle(address, self.view.number)
        return address

    def processes(self) -> dict[str, str]:
        """Return the kinds of the processes in the view, by their addresses."""
        return {one.address: one.kind for one in self.view.members}

    def tell(self, number: int) -> Change:
        """Make the next view, and return what has changed."""

        def joined(wanted: str) -> tuple[Member, ...]:
            return tuple(one for role, one in self._joined.values() if role == wanted)

        change = Change(
            self.view.topic,
            self.view.number,
            number,
            joined("publishers"),
            joined("subscribers"),
            tuple(self._left),
        )
        if change.subscribers and self._publishing:
            self._unheard[number] = set(self._publishing)
        self._publishing.update(one.address for one in change.publishers)
        self._since.update(dict.fromkeys(self._joined, number))
        self._joined.clear()
        self._left.clear()
        self.view = self.view.changed(change)
        self.pulse.beat()
        return change

    def seen(self, address: str, number: int) -> None:
        """Take note that a process acts by this view, or a later one."""
        if self._settle(address, number):
            self.pulse.beat()

    def _settle(self, address: str, number: int) -> bool:
        """Wait no more for this process; return whether it was the last for a view."""
        done = []
        for each, waiting in self._unheard.items():
            if each <= number:
                waiting.discard(address)
                if not waiting:
                    done.append(each)
        for each in done:
            del self._unheard[each]
        return bool(done)

    def waits_for(self, address: str, number: int) -> bool:
        """Whether this process has yet to confirm the view of that number."""
        return address in self._unheard.get(number, ())

    def unheard(self, ids: Iterable[str]) -> set[str]:
        """Return from where the first views of these members were not confirmed."""
        numbers = {self._since.get(one) for one in ids}
        return {
            address
            for number, waiting in self._unheard.items()
            if number in numbers
            for address in waiting
        }

    def is_settled(self, ids: Iterable[str]) -> bool:
        """Whether all know these members, as far as they are still there."""
        ids = list(ids)
        return self._joined.keys().isdisjoint(ids) and not self.unheard(ids)

    def number_of(self, ids: Iterable[str]) -> int | None:
        """Return the first view in which all of these are that are still there."""
        return max(
            (self._since[one] for one in ids if one in self._since), default=None
        )
