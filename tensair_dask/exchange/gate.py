"""The gate: what comes from a peer is checked before it is believed."""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tensair_dask._wording import in_words
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.codec import decode
from tensair_dask.exchange.compression import BLOCK
from tensair_dask.exchange.message import GradientMessage
from tensair_dask.exchange.wire import Frame
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.view import Member, View

__all__ = ["REASONS", "Gate"]

logger = logging.getLogger(__name__)

REASONS = {
    "format": "it is no gradient message, or a field of it is not of its type",
    "run": "it is of another run",
    "origin": "it is not from a replica of that name in this run",
    "steps": "its numbers of steps or samples cannot be",
    "layout": "its tensors are not those of this replica's model",
    "size": "its frames are not as long as its header says",
    "rows": "its row numbers do not ascend, or are not in the table",
    "values": "it holds NaN or infinite values",
}

# Reasons and senders that have been logged; beyond, refusals are only counted.
_LOGGED = 1000
# As large as an integer of a message may be, and as old, in seconds, as a message.
_LARGEST = 1 << 62
_OLDEST = 1e9
# Characters of what a message claims that are logged.
_TOLD = 200
_FIELDS = {
    "run_id": str,
    "token": str,
    "origin": str,
    "first": int,
    "last": int,
    "samples": int,
    "taken": int,
    "clock": dict,
    "age": float,
    "encoded": bool,
    "parts": (list, tuple),
}

Shape = tuple[int, ...]


class _Refusal(Exception):
    """Why a message is refused; never leaves the gate."""

    def __init__(self, reason: str, told: str) -> None:
        super().__init__(told)
        self.reason = reason


class Gate:
    """Opens messages of the own run that fit the own model, and refuses all others.

    A replica applies what it gets to its parameters, so a message must match them to
    the byte: what its header claims is compared with the arena, and each frame with
    the header, before anything is decoded. So no more memory is taken for a message
    than for a right one, whatever it claims.

    A refused message is counted, logged once for each reason and sender, and done
    with: nothing is raised, and the sender need not repeat it. Belongs to the event
    loop, but for `refuse` and `news`.

    Parameters
    ----------
    run_id, origin
        Of this replica.
    arena
        Of its model.
    token
        Of the run: a message without it is not from one of its replicas.

    Attributes
    ----------
    refused
        How many messages have been refused, by the reason: a key of `REASONS`.
    """

    def __init__(self, run_id: str, origin: str, arena: Arena, token: str = "") -> None:
        self.refused: Counter[str] = Counter()
        self._news: deque[tuple[str, str]] = deque()
        self._run_id = run_id
        self._token = token
        self._origin = origin
        self.fit(arena)
        self._members: set[str | None] = set()
        self._logged: set[tuple[str, Any]] = set()

    def fit(self, arena: Arena) -> None:
        """Let in, from now on, what fits these parameters."""
        self._buffers = [
            (_name(dtype), (size,))
            for dtype, size in zip(arena.layout.dtypes, arena.layout.sizes, strict=True)
        ]
        self._dense = len(arena.dense)
        self._tables = [
            (_name(table.dtype), tuple(table.shape)) for table in arena.tables
        ]

    # ---- members ----------------------------------------------------------------

    def see(self, view: View) -> None:
        """Take note of who publishes; who leaves may have messages under way."""
        self._members.update(one.member for one in view.publishers.values())

    def knows(self, origin: str) -> bool:
        """Whether a publisher of that name has been seen."""
        return origin in self._members

    # ---- messages ---------------------------------------------------------------

    def open(self, parcel: Parcel, sender: Member) -> GradientMessage | None:
        """Check a message and decode it; None if it is refused."""
        try:
            envelope, frames = parcel.seal()
            # The envelope also names the class, for Dask: here it is not looked at.
            header: Any = envelope.get("sub-header")
            self._check(header, frames)
            self._check_sender(header, sender)
            return decode(header, frames)
        except _Refusal as refusal:
            self.refuse(refusal.reason, sender, str(refusal))
        except Exception as error:
            self.refuse("format", sender, in_words(error))
        return None

    def refuse(self, reason: str, sender: Member | str, told: str) -> None:
        """Count a refusal, log the first of its kind, and keep it for the user.

        Parameters
        ----------
        reason
            A key of `REASONS`.
        sender
            Who sent the message; the name of the replica, where it is one.
        told
            What the message claims, for people.
        """
        self.refused[reason] += 1
        kind = (reason, sender)
        if kind in self._logged or len(self._logged) >= _LOGGED:
            return
        self._logged.add(kind)
        who = _named(sender)
        logger.warning(
            "Replica %r refused a gradient message from %s: %s (%s). Further ones for "
            "this reason are counted only.",
            self._origin,
            who,
            REASONS[reason],
            told[:_TOLD],
        )
        self._news.append(
            (
                f"a refused message: {reason}, {who}",
                f"A gradient message from {who} was refused: {REASONS[reason]} "
                f"({told[:_TOLD]}). Nothing of it was learned; further ones are only "
                "counted (trainer.exchange_stats()). Only the replicas of a run may "
                "publish to its topic.",
            )
        )

    def news(self) -> Iterator[tuple[str, str]]:
        """Give key and text of what was refused for the first time, once each."""
        while self._news:
            yield self._news.popleft()

    def _check_sender(self, header: Any, sender: Member) -> None:
        if header["origin"] != sender.member:
            raise _Refusal("origin", f"{header['origin']!r} did not send it")
        if sender.kind != "worker":
            raise _Refusal("origin", f"a {sender.kind} sent it, and no replica is one")
        if header["token"] != self._token:
            raise _Refusal("origin", f"{header['origin']!r} does not know its token")

    def _check(self, header: Any, frames: Sequence[Frame]) -> None:
        self._check_fields(header)
        if header["run_id"] != self._run_id:
            raise _Refusal("run", f"{header['run_id']!r} instead of {self._run_id!r}")
        if header["origin"] == self._origin:
            raise _Refusal("origin", f"{self._origin!r} is this replica itself")
        first, last = header["first"], header["last"]
        if not (1 <= first <= last + 1):
            raise _Refusal("steps", f"steps {first} to {last}")
        remaining = iter(frames)
        parts = header["parts"]
        if not parts or (len(parts) > 1 and not header["encoded"]):
            raise _Refusal("layout", f"{len(parts)} sums instead of one")
        sizes = [self._check_part(one, header["encoded"], remaining) for one in parts]
        if next(remaining, None) is not None:
            raise _Refusal("size", f"{len(frames)} frames, more than it describes")
        # As the sender sums up encoded ones: else decoding many could take for ever.
        encoded, decoded = zip(*sizes, strict=True)
        if len(parts) > 1 and sum(encoded) > max(decoded):
            raise _Refusal("size", f"{len(parts)} sums that are larger than their sum")

    def _check_fields(self, header: Any) -> None:
        if type(header) is not dict or header.keys() != _FIELDS.keys():
            raise _Refusal("format", f"a header of type {type(header).__name__}")
        for name, kind in _FIELDS.items():
            value = header[name]
            kinds = kind if isinstance(kind, tuple) else (kind,)
            if type(value) not in kinds:
                raise _Refusal("format", f"{name} is a {type(value).__name__}")
            if kind is int and not 0 <= value <= _LARGEST:
                raise _Refusal("steps", f"{name} is {value}")
        if not 0 <= header["age"] <= _OLDEST:  # nor NaN
            raise _Refusal("format", f"age is {header['age']}")
        for origin, count in header["clock"].items():
            if type(origin) is not str or not _is_count(count):
                raise _Refusal("format", "the clock does not count steps")

    def _check_part(
        self, part: Any, encoded: bool, frames: Iterator[Frame]
    ) -> tuple[int, int]:
        """Check one sum; return its bytes as they are, and decoded."""
        if type(part) is not dict or part.keys() != {"touched", "buffers", "rows"}:
            raise _Refusal("format", "the content has other fields")
        self._check_touched(part["touched"])
        if len(part["buffers"]) != len(self._buffers):
            raise _Refusal(
                "layout",
                f"{len(part['buffers'])} buffers instead of {len(self._buffers)}",
            )
        is_now = decoded = 0
        check = _check_encoded if encoded else _check_plain
        for one, (dtype, shape) in zip(part["buffers"], self._buffers, strict=True):
            is_now += check(one, dtype, shape, BLOCK, frames)
            decoded += _nbytes(dtype, shape)
        seen = set()
        for table, ids, values in part["rows"]:
            if not _is_count(table) or table >= len(self._tables) or table in seen:
                raise _Refusal("layout", f"table {table!r} of {len(self._tables)}")
            seen.add(table)
            dtype, (length, *trailing) = self._tables[table]
            count = _check_ids(ids, length, frames)
            shape = (count, *trailing)
            width = max(1, math.prod(trailing)) if count else 1
            is_now += 4 * count + check(values, dtype, shape, width, frames)
            decoded += 4 * count + _nbytes(dtype, shape)
        return is_now, decoded

    def _check_touched(self, touched: Any) -> None:
        if touched is None:
            return
        if type(touched) not in (list, tuple) or not all(map(_is_count, touched)):
            raise _Refusal("format", "the touched parameters are not counted")
        if len(touched) > self._dense or max(touched, default=-1) >= self._dense:
            raise _Refusal("layout", f"touched parameters of {self._dense}")


def _named(sender: Member | str) -> str:
    if isinstance(sender, str):
        return f"replica {sender!r}"
    return f"{str(sender.member)[:_TOLD]!r} ({sender.kind} {sender.address[:_TOLD]})"


def _check_plain(
    described: Any, dtype: str, shape: Shape, width: int, frames: Iterator[Frame]
) -> int:
    """Check that a tensor is of that dtype and shape, in header and frame."""
    _check_described(described, dtype, shape)
    nbytes = _nbytes(dtype, shape)
    _check_length(frames, nbytes)
    return nbytes


def _check_encoded(
    described: Any, dtype: str, shape: Shape, width: int, frames: Iterator[Frame]
) -> int:
    """Check that an encoded tensor decodes to that dtype and shape."""
    if type(described) is not dict:
        raise _Refusal("format", "an encoded tensor has other fields")
    if described.keys() != {"tensor", "codes", "scales"}:
        raise _Refusal("format", "an encoded tensor has other fields")
    _check_described(described["tensor"], dtype, shape)
    codes, scales = described["codes"], described["scales"]
    if scales is None:
        if codes[0] not in ("bfloat16", "float16"):
            raise _Refusal("layout", f"codes of dtype {codes[0]!r}")
        return _check_plain(codes, codes[0], shape, width, frames)
    blocks = -(-math.prod(shape) // width)
    return _check_plain(codes, "int8", (blocks, width), width, frames) + _check_plain(
        scales, "float32", (blocks,), width, frames
    )


def _check_ids(described: Any, length: int, frames: Iterator[Frame]) -> int:
    """Check row numbers of a table of that length; return how many there are."""
    dtype, (count,) = described
    if dtype not in ("int32", "int64"):
        raise _Refusal("layout", f"row numbers of dtype {dtype!r}")
    if not _is_count(count) or count > length:
        raise _Refusal("layout", f"{count!r} rows of a table of {length}")
    frame = _check_length(frames, _nbytes(dtype, (count,)))
    if count:
        ids = np.frombuffer(frame, dtype)
        if ids[0] < 0 or ids[-1] >= length or not (ids[1:] > ids[:-1]).all():
            raise _Refusal("rows", f"{count} rows of a table of {length}")
    return count


def _check_described(described: Any, dtype: str, shape: Shape) -> None:
    given, sizes = described
    if given != dtype or tuple(sizes) != shape or not all(map(_is_count, sizes)):
        raise _Refusal("layout", f"{sizes} {given} instead of {list(shape)} {dtype}")


def _check_length(frames: Iterator[Frame], nbytes: int) -> Frame:
    """Check and return the next frame."""
    frame = next(frames, None)
    if frame is None:
        raise _Refusal("size", "fewer frames than it describes")
    given = memoryview(frame).nbytes
    if given != nbytes:
        raise _Refusal("size", f"a frame of {given} bytes instead of {nbytes}")
    return frame


def _nbytes(dtype: str, shape: Shape) -> int:
    return getattr(torch, dtype).itemsize * math.prod(shape)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")
