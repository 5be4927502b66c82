"""Notices: sentences for the user that are said once, wherever they arise."""

from __future__ import annotations

from tensair_dask._wording import bounded

__all__ = ["Notices"]

# Distinct notices of one run. User code makes keys (the name of a metric, say), and a
# fault that makes a new one at each step must not grow without bound.
MOST = 1000


class Notices:
    """Says each thing once, and keeps what has not been passed on.

    A replica says what it notices on its training thread; the texts travel to the
    client with the next `Status`. There the trainer, which hears the same from every
    replica, says each once again: as a warning, and as an event.
    """

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._new: dict[str, str] = {}

    def say(self, key: str, text: str) -> bool:
        """Say something, unless the same has been said.

        Parameters
        ----------
        key
            What it is about; the same key is said once.
        text
            For people: what happened, what is allowed, what to do.

        Returns
        -------
        is_new
            Whether it is said now.
        """
        if key in self._said or len(self._said) >= MOST:
            return False
        self._said.add(key)
        self._new[key] = bounded(text)
        return True

    def take(self) -> dict[str, str]:
        """Give what was said since the last call, by key."""
        if not self._new:  # at almost every step
            return {}
        taken, self._new = self._new, {}
        return taken
