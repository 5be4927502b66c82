"""Files that are packed, of which a source would read something else than is meant."""

from __future__ import annotations

import tarfile
import zipfile
from itertools import islice
from typing import Any

from fsspec.core import OpenFile

from tensair_dask.errors import SourceError
from tensair_dask.streams.sources.positions import named

__all__ = ["check_alone", "check_unpacked"]

# No text begins with these.
_BEGINNINGS = {
    b"\x1f\x8b": "gzip",
    b"BZh91AY&SY": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_TAR = slice(257, 262)
# Members that a message names.
_MOST = 6


def check_alone(file: OpenFile) -> None:
    """See that an archive of zip holds one file.

    Raises
    ------
    SourceError
        If it does not: fsspec would read the first, and leave out the others.
    """
    if file.compression != "zip":
        return
    with file.fs.open(file.path, "rb") as packed, zipfile.ZipFile(packed) as archive:
        members = [each.filename for each in archive.infolist() if not each.is_dir()]
    if len(members) != 1:
        raise _archive(file, "zip", members)


def check_unpacked(file: OpenFile, stream: Any) -> None:
    """See that what is read is no archive, and not compressed once more.

    Parameters
    ----------
    file
        Of fsspec.
    stream
        The same, open at its beginning; it is left there.

    Raises
    ------
    SourceError
        If it is: the message says how to read it.
    """
    beginning = stream.read(_TAR.stop)
    stream.seek(0)
    if beginning[_TAR] == b"ustar":
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            members = (each.name for each in archive if each.isfile())
            raise _archive(file, "tar", list(islice(members, _MOST)))
    for sign, kind in _BEGINNINGS.items():
        if beginning.startswith(sign):
            what = f"compression {file.compression}" if file.compression else "none"
            raise SourceError(
                f"{file.path} was to be read with {what}, and begins as {kind} does. "
                f"Give compression={kind!r}, or unpack it."
            )


def _archive(file: OpenFile, kind: str, members: list[str]) -> SourceError:
    return SourceError(
        f"{file.path} is an archive of {named(members) or 'nothing'}; one file is "
        f"needed. Unpack it, or name what is to be read: "
        f"'{kind}://member::{file.path}', or '{kind}://*::{file.path}' for all."
    )
