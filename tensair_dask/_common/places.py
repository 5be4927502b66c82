"""Places in files: an offset, and by what to tell that a file is the same below it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Place", "Trail", "joined", "plain", "seen_of"]

# Bytes at either end that are compared. Rows of one table are alike, and 128 bytes are
# several of them.
_WINDOW = 128


class Place(int):
    """An offset that knows what was read before it; an int in all else.

    Parameters
    ----------
    offset
        In bytes.
    seen
        Stands for the bytes below, see `Trail`; or these bytes themselves: few places
        are ever asked, and there is one for each line.
    """

    _seen: int | tuple[bytes, bytes]

    def __new__(cls, offset: int, seen: int | tuple[bytes, bytes] = 0) -> Place:
        """Make an offset that has seen something."""
        place = int.__new__(cls, offset)
        place._seen = seen
        return place

    @property
    def seen(self) -> int:
        """Number that stands for the bytes below."""
        if isinstance(self._seen, tuple):
            digest = hashlib.blake2b(b"".join(self._seen), digest_size=6).digest()
            self._seen = int.from_bytes(digest, "big")
        return self._seen


class Trail:
    """The first bytes of a file, and the last before where its reader is.

    A file that was replaced, or written anew, has others there. Both depend on the file
    and the offset alone, however it was read.
    """

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""

    @classmethod
    def of(cls, stream: Any, offset: int) -> Trail:
        """Read it from a file, which is then at the offset, or at its end."""
        trail = cls()
        size = min(offset, _WINDOW)
        stream.seek(0)
        trail._head = trail._tail = stream.read(size)
        if offset > size:
            stream.seek(offset - size)
            trail._tail = stream.read(size)
        return trail

    def add(self, pieces: Sequence[bytes]) -> None:
        """Take in what was read next."""
        if len(self._head) < _WINDOW:
            self._begin(pieces)
        if len(pieces) == 1:
            self._tail = (self._tail + pieces[0][-_WINDOW:])[-_WINDOW:]
            return
        new = b""
        for piece in reversed(pieces):
            new = piece[-_WINDOW:] + new
            if len(new) >= _WINDOW:
                break
        self._tail = (self._tail + new)[-_WINDOW:]

    def _begin(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            if len(self._head) >= _WINDOW:
                break
            self._head = (self._head + piece[:_WINDOW])[:_WINDOW]

    def at(self, offset: int) -> Place:
        """Give the offset up to which all was taken in, as a place."""
        return Place(offset, (self._head, self._tail))


def plain(positions: Mapping[str, Mapping[Any, int]]) -> dict[str, dict[Any, int]]:
    """Give positions as numbers that are nothing else, as a file keeps them."""
    return {
        name: {key: int(offset) for key, offset in each.items()}
        for name, each in positions.items()
    }


def seen_of(positions: Mapping[str, Mapping[Any, int]]) -> dict[str, dict[Any, int]]:
    """Give what the places among positions have seen."""
    return {
        name: {key: place.seen for key, place in _places(each.items())}
        for name, each in positions.items()
    }


def joined(
    positions: Mapping[str, Mapping[Any, int]], seen: Mapping[str, Mapping[Any, int]]
) -> dict[str, dict[Any, int]]:
    """Reverse `plain` and `seen_of`."""
    return {
        name: {
            key: Place(offset, known[key]) if key in known else offset
            for key, offset in each.items()
        }
        for name, each in positions.items()
        for known in [seen.get(name, {})]
    }


def _places(items: Iterable[tuple[Any, int]]) -> Iterable[tuple[Any, Place]]:
    return ((key, each) for key, each in items if isinstance(each, Place))
