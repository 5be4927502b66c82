"""Write a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

from tensair_dask.errors import ConfigurationError

__all__ = ["check_writable", "write_atomically"]


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
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = _beside(path)
        probe.touch(exist_ok=False)
        probe.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{option} {path} cannot be written: {reason}. Give the path of a file in "
            "a folder that you may write to."
        ) from error


def write_atomically(path: Path, text: str) -> None:
    """Write a text file; whoever reads it meanwhile finds the old one or the new one.

    Raises
    ------
    OSError
        If it cannot be written; what was there before is then still there.
    """
    new = _beside(path)
    try:
        new.write_text(text, encoding="utf-8")
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def _beside(path: Path) -> Path:
    # In the same folder: only there a file can be put in another's place at once.
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
