"""Files: written whole or not at all, and found under the names that they have."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import OpenFile, get_compression, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tensair_dask.errors import ConfigurationError

__all__ = [
    "as_file_system",
    "check_folder",
    "check_writable",
    "is_device",
    "open_files",
    "write_atomically",
]


def check_writable(path: Path, option: str) -> None:
    """See that a file can be written, before the work that it tells of begins.

    Parameters
    ----------
    path
        Of the file.
    option
        Where the path was given, for the error.

    Raises
    ------
    ConfigurationError
        If it cannot: one line that says why.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError("it is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError("it may not be written")
        if is_device(path):
            return
        _probe(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{option} {path} cannot be written: {reason}. Give the path of a file in "
            "a folder that you may write to."
        ) from error


def _probe(path: Path) -> None:
    """Write a file beside this one, and take it away; make the folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    probe = _beside(path)
    probe.touch(exist_ok=False)
    probe.unlink()


def check_folder(path: Path, option: str) -> None:
    """See that files can be written into a folder, which is made if need be.

    Parameters
    ----------
    path
        Of the folder.
    option
        Where the path was given, for the error.

    Raises
    ------
    ConfigurationError
        If it cannot: one line that says why.
    """
    try:
        _probe(path / "probe")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{option} {path} is no folder to write to: {reason}. Give one that you "
            "may write to; it is made if there is none."
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; whoever reads it meanwhile finds the old one or the new one.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is then still there.
    """
    if is_device(path):
        path.write_text(text, encoding="utf-8")
        return
    new = _beside(path)
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def is_device(path: Path) -> bool:
    """Whether it is a pipe or a device, which no file is to take the place of."""
    return path.exists() and not path.is_file() and not path.is_dir()


def _beside(path: Path) -> Path:
    # In the same folder: only there a file can be put in another's place at once.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def as_file_system(path: str | os.PathLike[str], **options: Any) -> tuple[Any, str]:
    """Give the file system of a path, and the path there, as ``url_to_fs`` does.

    To fsspec ``::`` joins file systems, as in ``simplecache::s3://bucket/key``, also
    where it is part of a name: ``runs/model::a`` was the file ``runs/model``. A path
    that exists is the name of a file, and so is what begins with no file system.
    """
    if (name := _local_name(path)) is None:
        return url_to_fs(os.fspath(path), **options)
    system = fsspec.filesystem("file", **options)
    return system, str(system._strip_protocol(name))


def open_files(
    path: Any, mode: str = "rb", expand: bool = True, **options: Any
) -> list[OpenFile]:
    """Find files as ``fsspec.open_files`` does; see `as_file_system` of their names.

    Parameters
    ----------
    path
        Of one file or, with ``*``, of several (``?`` and ``[...]`` as well, of local
        ones); or a list of them.
    mode, expand, **options
        As fsspec takes them.
    """
    if isinstance(path, Sequence) and not isinstance(path, str):
        if any(_local_name(each) or _local_pattern(each) for each in path):
            found = [open_files(each, mode, expand, **options) for each in path]
            return [file for files in found for file in files]
    elif name := _local_name(path) or _local_pattern(path):
        return _open_local(name, mode, expand, **options)
    return list(fsspec.open_files(path, mode=mode, expand=expand, **options))


def _open_local(
    name: str,
    mode: str,
    expand: bool,
    compression: str | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    **options: Any,
) -> list[OpenFile]:
    system = LocalFileSystem(**options)
    path = system._strip_protocol(name)
    is_pattern = expand and not os.path.exists(path)
    paths = (sorted(system.glob(path)) if is_pattern else []) or [path]
    return [
        OpenFile(
            system,
            each,
            mode,
            get_compression(each, compression),
            encoding,
            errors,
            newline,
        )
        for each in paths
    ]


def _local_pattern(path: Any) -> str | None:
    """Give a local path with ``?`` or ``[``, which fsspec would take as it is."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    name = os.fspath(path).removeprefix("file://").removeprefix("local://")
    local = "://" not in name and "::" not in name
    return name if local and ("?" in name or "[" in name) else None


def _local_name(path: Any) -> str | None:
    """Give the path of a local file that has ``::`` in it; None for all others."""
    if not isinstance(path, (str, os.PathLike)) or "::" not in os.fspath(path):
        return None
    name = os.fspath(path).removeprefix("file://").removeprefix("local://")
    first = name.partition("::")[0]
    chained = "://" in first or first in fsspec.available_protocols()
    return name if os.path.exists(name) or not chained else None
