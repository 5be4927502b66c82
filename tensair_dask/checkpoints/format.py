"""The format of a checkpoint's file: what must be there before any of it is believed.

A header of 64 bytes tells format, length and checksum; behind it lies what
``torch.save`` writes. It is read with ``weights_only=True``, and only when every byte
has been found to be as it was written.
"""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from typing import IO, Any, cast

import numpy as np
import torch

from tensair_dask._common.places import joined, plain, seen_of
from tensair_dask._common.plain_values.tensors import pack, unpack
from tensair_dask.checkpoints.checkpoint import Checkpoint
from tensair_dask.errors import CheckpointDamagedError, CheckpointError

__all__ = ["FORMAT", "START", "decode", "encode", "is_checkpoint"]

# Raise it when older programs can no longer read what is written.
FORMAT = 1

_MAGIC = b"\x93TENSAIR"
# Bytes that tell a checkpoint from another file.
START = len(_MAGIC)
# Magic, format, bytes and checksum of what follows, version of the writer; then the
# checksum of the header itself. Magic, format, version and the last are for ever.
_FIELDS = struct.Struct("<8sIQI24s12x")
_CHECK = struct.Struct("<I")
_HEADER = _FIELDS.size + _CHECK.size

# What torch writes in smaller pieces is gathered to one buffer.
_SMALL = 1 << 16

# What torch.save writes: the values, one member for each tensor's memory, and notes.
_MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/[0-9]+|version|byteorder|\.format_version"
    r"|\.storage_alignment|\.data/serialization_id)"
)

_KINDS: dict[str, Any] = {
    "model": dict,
    "optimizers": list,
    "clock": dict,
    "counters": dict,
    "adaptation": dict,
    "scores": dict,
    "positions": dict,
    "name": str,
    "index": int,
    "time": (int, float),
    "versions": dict,
}

# What there was not from the beginning.
_LATER: dict[str, Any] = {
    "made": list,
    "structure": dict,
    "as_built": dict,
    "attributes": list,
    "columns": dict,
    "functions": dict,
}


def encode(checkpoint: Checkpoint) -> list[memoryview]:
    """Write a checkpoint into memory.

    Parameters
    ----------
    checkpoint
        What is to be written; it must not change meanwhile.

    Returns
    -------
    buffers
        The file is one after the other.

    Raises
    ------
    CheckpointError
        If it holds what a checkpoint cannot hold.

    Notes
    -----
    Tensors are copied once. Other threads run on: no copy and no checksum holds the
    interpreter.
    """
    content = {
        field.name: pack(_plain(field.name, checkpoint), field.name)
        for field in dataclasses.fields(checkpoint)
    }
    # Beside the positions: programs that know nothing of it read those all the same.
    content["seen"] = pack(seen_of(checkpoint.positions), "seen")
    gathered = _Gathered()
    try:
        torch.save(content, cast("IO[bytes]", gathered))
    except RuntimeError as error:
        raise CheckpointError(
            f"The checkpoint cannot be written by torch: {error}."
        ) from error
    body = gathered.buffers()
    return [memoryview(_header(body, checkpoint)), *body]


def _plain(name: str, checkpoint: Checkpoint) -> Any:
    value = getattr(checkpoint, name)
    if name == "positions":
        return plain(value)
    return dict(value) if name == "model" else value


def is_checkpoint(start: bytes) -> bool:
    """Whether a file that begins so is meant to be a checkpoint."""
    return start[:START] == _MAGIC


def decode(data: Any, path: str = "the checkpoint") -> Checkpoint:
    """Read a checkpoint from memory.

    Parameters
    ----------
    data
        All bytes of the file: anything that has a buffer.
    path
        Where they are from, for the errors.

    Raises
    ------
    CheckpointDamagedError
        If it is empty, cut off, changed, or no checkpoint at all.
    CheckpointError
        If it is of a newer format, or holds something that would need code.
    """
    view = memoryview(data).cast("B")
    body = view[_check(view, path) :]
    content = unpack(_load(body, path))
    if not isinstance(content, dict):
        raise _foreign(path, f"its content is a {type(content).__name__}")
    values = {}
    for name, kind in _KINDS.items():
        if not isinstance(content.get(name), kind):
            found = type(content[name]).__name__ if name in content else "not there"
            raise _foreign(path, f"its {name} is {found}")
        values[name] = content[name]
    # Files that were written before there was such a thing have none.
    for name, kind in _LATER.items():
        if isinstance(content.get(name), kind):
            values[name] = content[name]
    if isinstance(seen := content.get("seen"), dict):
        values["positions"] = joined(values["positions"], seen)
    return Checkpoint(**values)


def _header(body: Iterable[memoryview], checkpoint: Checkpoint) -> bytes:
    length, checksum = 0, 0
    for buffer in body:
        length += buffer.nbytes
        checksum = zlib.crc32(buffer, checksum)
    writer = str(checkpoint.versions.get("tensair_dask", "")).encode()
    fields = _FIELDS.pack(_MAGIC, FORMAT, length, checksum, writer)
    return fields + _CHECK.pack(zlib.crc32(fields))


def _check(view: memoryview, path: str) -> int:
    """See that all is there and as it was written; where the content begins."""
    if not view.nbytes:
        raise _damaged(path, "is empty")
    start = bytes(view[: len(_MAGIC)])
    if not _MAGIC.startswith(start):
        raise _no_checkpoint(path, bytes(view[:16]))
    if view.nbytes < _HEADER:
        raise _damaged(path, f"is cut off after {view.nbytes} bytes, in its header")
    fields = view[: _FIELDS.size]
    (checksum,) = _CHECK.unpack(view[_FIELDS.size : _HEADER])
    if zlib.crc32(fields) != checksum:
        raise _damaged(path, "has a header that was changed after it was written")
    _, form, length, checksum, writer = _FIELDS.unpack(fields)
    if form > FORMAT:
        by = writer.rstrip(b"\0").decode(errors="replace")
        raise CheckpointError(
            f"{path} has format {form} and was written by tensair_dask {by or '?'}; "
            f"this version reads formats up to {FORMAT}. Install that version, or a "
            "later one."
        )
    if view.nbytes != _HEADER + length:
        raise _damaged(
            path, f"has {view.nbytes:,} bytes, and {_HEADER + length:,} were written"
        )
    if zlib.crc32(view[_HEADER:]) != checksum:
        raise _damaged(path, "has bytes that were changed after they were written")
    return _HEADER


def _load(body: memoryview, path: str) -> Any:
    # Anything but an archive would be read in torch's legacy format, which older
    # versions of torch read less strictly.
    if bytes(body[:4]) != b"PK\x03\x04":
        raise _foreign(path, "it does not hold what torch.save writes")
    _check_archive(body, path)
    file = cast("IO[bytes]", _Reader(body))
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # The first line says it; torch adds pages on how to allow it all the same.
        said = str(error).strip().splitlines() or [type(error).__name__]
        reason = next((line for line in said if "Unsupported" in line), said[0])
        raise CheckpointError(
            f"{path} is not read: it holds more than tensors and plain values, which "
            f"would need code that it brings itself ({reason.strip()[:300]}). "
            "tensair_dask writes no such files: take another one."
        ) from error


def _check_archive(body: memoryview, path: str) -> None:
    """See that it holds tensors only, before torch looks at it.

    An archive of TorchScript has members more; older versions of torch run it, whatever
    they are told to read.
    """
    try:
        with zipfile.ZipFile(cast("IO[bytes]", _Reader(body))) as archive:
            names = archive.namelist()
    except Exception as error:
        raise _foreign(path, f"it is no archive ({type(error).__name__})") from error
    other = next((name for name in names if not _MEMBER.fullmatch(name)), None)
    if other is not None or len(set(names)) < len(names):
        what = "a member twice" if other is None else repr(other[:100])
        raise CheckpointError(
            f"{path} is not read: besides tensors its archive holds {what}, which may "
            "be code that it brings itself. tensair_dask writes no such files: take "
            "another one."
        )


def _damaged(path: str, what: str) -> CheckpointDamagedError:
    return CheckpointDamagedError(
        f"{path} {what}: it is no whole checkpoint. Take another one; if it was copied "
        "here, copy it again."
    )


def _no_checkpoint(path: str, start: bytes) -> CheckpointDamagedError:
    if start.startswith(b"PK\x03\x04"):
        kind = "a file of torch.save or another archive"
    elif start.startswith(b"\x80"):
        kind = "perhaps a pickle"
    else:
        kind = "something else"
    return CheckpointDamagedError(
        f"{path} is no checkpoint of tensair_dask: it begins with {start!r} ({kind}). "
        "Give a file that trainer.save has written. A state_dict of torch is loaded "
        "within the model factory, with torch.load and model.load_state_dict."
    )


def _foreign(path: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"{path} does not hold what a checkpoint holds: {what}. It was not written by "
        "trainer.save; give a file that was."
    )


class _Gathered:
    """A file that keeps what is written as buffers."""

    def __init__(self) -> None:
        self._buffers: list[memoryview] = []
        self._small = bytearray()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if view.nbytes < _SMALL:
            self._small += view
            return view.nbytes
        self._end_small()
        # numpy copies without holding the interpreter; bytes() would hold it.
        copied = np.empty(view.nbytes, np.uint8)
        np.copyto(copied, np.frombuffer(view, np.uint8))
        self._buffers.append(copied.data)
        return view.nbytes

    def flush(self) -> None:
        pass

    def buffers(self) -> list[memoryview]:
        self._end_small()
        return self._buffers

    def _end_small(self) -> None:
        if self._small:
            self._buffers.append(memoryview(bytes(self._small)))
            self._small.clear()


class _Reader:
    """A file on a buffer, from which tensors are read without a further copy."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._place = 0

    def read(self, size: int = -1) -> bytes:
        end = self._data.nbytes if size < 0 else self._place + size
        found = bytes(self._data[self._place : end])
        self._place += len(found)
        return found

    def readinto(self, target: Any) -> int:
        into = np.frombuffer(target, np.uint8)
        found = np.frombuffer(self._data, np.uint8)[self._place :][: len(into)]
        np.copyto(into[: len(found)], found)
        self._place += len(found)
        return len(found)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_CUR: self._place, os.SEEK_END: self._data.nbytes}
        self._place = start.get(whence, 0) + offset
        return self._place

    def tell(self) -> int:
        return self._place

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True
