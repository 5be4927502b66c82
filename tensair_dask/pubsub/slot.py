"""Memory that two processes of one machine share, for one delivery at a time."""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np

__all__ = ["AVAILABLE", "Slot", "pack"]

# Files in memory without a name: nothing is left of them when the last process that
# has them ends, however it ends.
AVAILABLE = sys.platform == "linux" and hasattr(os, "memfd_create")

# Frames begin at multiples of this many bytes, as torch's own memory does.
_ALIGNMENT = 64
_LEAST = 1 << 16


class Slot:
    """One file in memory, of a size that does not change, mapped.

    It belongs to the sender until it has sent a token, and then to the receiver, until
    that has answered: neither locks anything, and neither reads what the other writes.

    Parameters
    ----------
    file
        Number of the open file; closed by this.
    """

    def __init__(self, file: int) -> None:
        try:
            self.nbytes = os.fstat(file).st_size
            self._memory = mmap.mmap(file, self.nbytes)
        finally:
            os.close(file)

    @classmethod
    def made(cls, nbytes: int) -> tuple[Slot, int]:
        """Make a slot for at least so many bytes; also give its file, to send it."""
        import fcntl

        file = os.memfd_create("tensair", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, max(_LEAST, 1 << (nbytes - 1).bit_length()))
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, _seals())
            return cls(os.dup(file)), file
        except BaseException:
            os.close(file)
            raise

    @classmethod
    def received(cls, file: int) -> Slot:
        """Map the file of another process.

        Raises
        ------
        OSError
            If its size can change: who reads beyond its end is killed.
        """
        import fcntl

        try:
            if fcntl.fcntl(file, fcntl.F_GET_SEALS) & _seals() != _seals():
                raise OSError("The size of the memory of a neighbour is not sealed.")
        except OSError:
            os.close(file)
            raise
        return cls(file)

    def write(self, header: bytes, frames: Sequence[Any]) -> None:
        """Copy a header and frames in; `size` says how much room they take."""
        memory = np.frombuffer(self._memory, np.uint8)
        start = _put(memory, 0, header)
        for frame in frames:
            start = _put(memory, start, frame)

    def read(self, length: int) -> tuple[Any, list[list[memoryview]]]:
        """Unpack a header of so many bytes, and find the frames of each parcel.

        Returns
        -------
        header, frames
            The frames are this memory itself, and writable.

        Raises
        ------
        ValueError
            If that is not what `pack` makes.
        """
        memory = memoryview(self._memory)
        header = msgpack.unpackb(memory[:length], use_list=False, strict_map_key=False)
        start = _aligned(length)
        frames = []
        for _, lengths in header["parcels"]:
            found = []
            for nbytes in lengths:
                if not 0 <= nbytes <= self.nbytes - start:
                    raise ValueError("A frame lies outside the memory of its slot.")
                found.append(memory[start : start + nbytes])
                start = _aligned(start + nbytes)
            frames.append(found)
        return header, frames


def pack(
    parcels: Sequence[tuple[Any, Sequence[Any]]], **fields: Any
) -> tuple[bytes, list[Any], int]:
    """Describe parcels, sealed, and other plain fields.

    Returns
    -------
    header, frames, nbytes
        What `Slot.write` takes, and the room that it needs.

    Raises
    ------
    TypeError, ValueError
        If a header cannot be packed.
    """
    described = [
        [header, [memoryview(frame).nbytes for frame in frames]]
        for header, frames in parcels
    ]
    packed = msgpack.packb({"parcels": described, **fields}, use_bin_type=True)
    nbytes = _aligned(len(packed))
    for _, lengths in described:
        nbytes += sum(map(_aligned, lengths))
    return packed, [frame for _, frames in parcels for frame in frames], nbytes


def _put(memory: np.ndarray, start: int, frame: Any) -> int:
    # By numpy, which lets other threads run meanwhile.
    values = np.frombuffer(frame, np.uint8)
    memory[start : start + len(values)] = values
    return _aligned(start + len(values))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


def _seals() -> int:
    import fcntl

    return fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
