"""A message wrapped so that whoever carries it need not be able to open it."""

from __future__ import annotations

from typing import Any

from distributed.protocol import deserialize, serialize
from distributed.protocol.serialize import dask_deserialize, dask_serialize

__all__ = ["Parcel"]

_SEALED: Any = object()


class Parcel:
    """One message on its way; pickled once, however many subscribers it goes to.

    On the receiving side it is opened by the subscription, not by Dask's reader. A
    message of a class that cannot be imported there would otherwise end a client's
    connection to the scheduler.
    """

    __slots__ = ("_frames", "_header", "_message", "nbytes")

    def __init__(self, message: Any) -> None:
        self._message = message
        self._header: dict[str, Any] | None = None
        self._frames: list[Any] = []
        self.nbytes = 0

    @classmethod
    def sealed(cls, header: dict[str, Any], frames: list[Any]) -> Parcel:
        """Return a parcel that came over the wire."""
        parcel = cls(_SEALED)
        parcel._header = header
        parcel._frames = frames
        return parcel

    def seal(self) -> tuple[dict[str, Any], list[Any]]:
        """Serialize the message, once; large buffers are not copied.

        Raises
        ------
        Exception
            Whatever serializing the message raises.
        """
        if self._header is None:
            header, frames = serialize(self._message, on_error="raise")
            self._frames = list(frames)
            self.nbytes = sum(memoryview(frame).nbytes for frame in frames)
            self._header = header
        return self._header, self._frames

    def copied(self) -> Parcel:
        """Return a parcel that came over the wire with frames of its own."""
        assert self._header is not None
        return Parcel.sealed(self._header, [bytearray(each) for each in self._frames])

    def open(self) -> Any:
        """Return the message.

        Raises
        ------
        Exception
            Whatever deserializing the message raises.
        """
        if self._message is _SEALED:
            return deserialize(self._header, self._frames)
        return self._message


@dask_serialize.register(Parcel)
def _to_frames(parcel: Parcel) -> tuple[dict[str, Any], list[Any]]:
    header, frames = parcel.seal()
    return {"message": header}, list(frames)


@dask_deserialize.register(Parcel)
def _from_frames(header: dict[str, Any], frames: list[Any]) -> Parcel:
    return Parcel.sealed(header["message"], list(frames))
