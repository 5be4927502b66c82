"""Where checkpoints lie: one file, or a folder of the newest, on any file system."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask._common.files import as_file_system
from tensair_dask._wording import in_words
from tensair_dask.checkpoints.checkpoint import Checkpoint
from tensair_dask.checkpoints.format import START, decode, encode, is_checkpoint
from tensair_dask.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMissingError,
    ConfigurationError,
)

__all__ = ["Store"]

logger = logging.getLogger(__name__)

_NUMBERED = re.compile(r"checkpoint-(\d{12})\.tensair")
# A file that is being written, or that a process which died has left.
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.unfinished")
# Files of a folder that are looked at, whether they are checkpoints.
_LOOKED_AT = 100
# Seconds after which nobody is writing to it any more.
_ABANDONED = 3600.0
# Where a file that is put can be seen in part, and can be renamed at once.
_SERVERS = {"sftp", "ssh", "ftp", "hdfs", "smb"}
# What is raised where there is no room.
_FULL = {errno.ENOSPC, errno.EDQUOT}
# Where there are no folders to be made: fsspec would make a bucket.
_BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss"}


class Store:
    """Writes and reads checkpoints at one path.

    A path is one file (`save`), or a folder of numbered checkpoints (`add`) of which
    the newest are kept. A folder belongs to one trainer: of two that wrote to the same,
    each would remove the other's, so the one that sees it refuses to.

    Parameters
    ----------
    path
        Any that fsspec knows: of a file system, ``"s3://bucket/model"``,
        ``"memory://model"``.
    keep
        How many of a folder are kept; ``tensair.checkpoints.keep`` by default.
    options
        For the file system, as fsspec calls them ``storage_options``.

    Attributes
    ----------
    crowded
        Whether the folder had no room for as many as are kept, when the newest one was
        written.

    Raises
    ------
    ConfigurationError
        If there is no such file system, or a package for it is missing.

    Notes
    -----
    A checkpoint is there whole or not at all. On a local disk it is written beside,
    flushed to the disk and renamed; on an object store a put is atomic by itself; on a
    file server (SFTP, FTP, HDFS, SMB) it is put beside and renamed. Whatever goes wrong
    all the same is found by the checksum of the file when it is read.

    Files of a folder are numbered by the mini-batches that had been submitted, and
    always upwards: where a higher number is there already (somebody has gone back to an
    older checkpoint), the next one is taken.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        keep: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(path, (str, os.PathLike)) or not str(path).strip():
            raise ConfigurationError(
                f"path={path!r} was given; a path of a file or a folder is allowed, "
                "for example 'model.tensair' or 's3://bucket/model'."
            )
        self.keep = whole("keep", config.get("checkpoints.keep", keep), 1, 3)
        try:
            self._fs, self._path = as_file_system(path, **(options or {}))
        except (ImportError, ValueError) as error:
            raise ConfigurationError(
                f"{path} cannot be reached: {error}. Any path that fsspec knows is "
                "allowed; for object stores install their package, for example "
                "pip install s3fs."
            ) from error
        self._local = isinstance(self._fs, LocalFileSystem)
        protocols = self._fs.protocol
        names = {protocols} if isinstance(protocols, str) else set(protocols)
        self._renames = bool(names & _SERVERS)
        self._folders = not names & _BUCKETS
        self._path = self._path.rstrip("/") or self._path
        # Highest number in the folder that is known, from `check` or the first `add`.
        self._highest: int | None = None
        # The newest that was written here: it is whole.
        self._whole: int | None = None
        self.crowded = False

    @property
    def path(self) -> str:
        """The whole path, with the name of the file system unless it is the local."""
        return self._shown(self._path)

    # ---- writing --------------------------------------------------------------------

    def check(self) -> None:
        """See that the folder can be written to, before anything depends on it.

        Raises
        ------
        CheckpointError
            If it cannot.
        """
        probe = self._beside(f"{self._path}/checkpoint")
        with self._writing(self._path):
            self._refuse_file()
            self._put(probe, [memoryview(b"probe")])
            self._fs.rm_file(probe)
            self._highest = max(self._numbers(), default=-1)

    @property
    def is_numbered(self) -> bool:
        """Whether the path has the name that a checkpoint of a folder has."""
        return _NUMBERED.fullmatch(_base(self._path)) is not None

    def holds(self, other: Store) -> bool:
        """Whether another path is that of this folder, or of a file in it."""
        return other.path == self.path or other.path.startswith(f"{self.path}/")

    def save(self, checkpoint: Checkpoint) -> str:
        """Write one file, in the place of one that is there.

        Returns
        -------
        path
            Of the file.

        Raises
        ------
        CheckpointError
            If it cannot be written; what was there before is then still there.
        """
        with self._writing(self._path):
            if self._fs.isdir(self._path):
                raise CheckpointError(
                    f"{self.path} is a folder; give the path of a file, for example "
                    f"{self.path}/model.tensair."
                )
            self._write(self._path, encode(checkpoint))
            folder, _, name = self._path.rpartition("/")
            self._clean(folder, name)
        return self.path

    def add(self, checkpoint: Checkpoint) -> str:
        """Write one more file into the folder, and remove what is older than is kept.

        Returns
        -------
        path
            Of the file.

        Raises
        ------
        CheckpointError
            If it cannot be written, or another trainer writes there; what is there and
            whole is then not removed, but for older ones that had to make room.
        """
        with self._writing(self._path):
            self._refuse_file()
            there = self._numbers()
            number = max(checkpoint.index, self._known(there) + 1)
            # Before it is written: it may yet come when nobody waits for it any more.
            self._highest = number
            path = self._numbered(number)
            there = self._write_in_turn(path, encode(checkpoint), there)
            self._whole = number
        # It is written; what fails from here on is no failure of it.
        try:
            for old in sorted([*there, number])[: -self.keep]:
                with contextlib.suppress(FileNotFoundError):
                    self._fs.rm_file(self._numbered(old))
            self._clean(self._path)
        except Exception as error:  # object stores have exceptions of their own
            logger.warning(
                "Older checkpoints in %s could not be removed: %s", self.path, error
            )
        return self._shown(path)

    def _write_in_turn(
        self, path: str, buffers: Sequence[memoryview], there: Sequence[int]
    ) -> list[int]:
        """Write a file; where there is no room, older ones go first.

        Returns
        -------
        there
            Numbers of the older ones that are left.
        """
        left = sorted(there)
        while True:
            try:
                self._write(path, buffers)
                self.crowded = len(left) < min(len(there), self.keep - 1)
                return left
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                nbytes = sum(each.nbytes for each in buffers)
                if not self._make_room(left, nbytes):
                    raise

    def _make_room(self, there: list[int], nbytes: int) -> bool:
        """Remove the oldest one that can be done without; False if there is none."""
        spare = [each for each in there if each != self._newest_whole(there)]
        if len(spare) == len(there) or not spare:
            return False
        if self._local:
            # Not in vain: all of them together may be too little.
            sizes = (os.path.getsize(self._numbered(each)) for each in spare)
            if shutil.disk_usage(self._path).free + sum(sizes) < nbytes:
                return False
        oldest = self._numbered(spare[0])
        logger.warning(
            "%s has no room for one more checkpoint: %s makes room for the newest",
            self.path,
            _base(oldest),
        )
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(oldest)
        there.remove(spare[0])
        return True

    def _newest_whole(self, there: Sequence[int]) -> int | None:
        """Which of these is the newest that can be restored."""
        for number in reversed(there):
            if number == self._whole:
                return number
            with contextlib.suppress(CheckpointError):
                self._read(self._numbered(number))
                self._whole = number
                return number
        return None

    def _refuse_file(self) -> None:
        if self._fs.isfile(self._path):
            raise CheckpointError(
                f"{self.path} is a file; checkpoints that are written as training "
                "goes on need a folder: give another path."
            )

    def _known(self, there: Sequence[int]) -> int:
        """Highest number of the folder, of which no higher one can be unknown."""
        highest = max(there, default=-1)
        known = highest if self._highest is None else self._highest
        if highest > known:
            raise CheckpointError(
                f"Another trainer writes to {self.path}: "
                f"{_base(self._numbered(highest))} is not of this one. Nothing was "
                "written or removed. Give each trainer a folder of its own."
            )
        return known

    def _write(self, path: str, buffers: Sequence[memoryview]) -> None:
        if not (self._local or self._renames):
            self._put(path, buffers)
            return
        unfinished = self._beside(path)
        try:
            self._put(unfinished, buffers)
            if self._local:
                os.replace(unfinished, path)
                _flush_folder(os.path.dirname(path))
            else:
                self._fs.mv(unfinished, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._fs.rm_file(unfinished)
            raise

    def _put(self, path: str, buffers: Sequence[memoryview]) -> None:
        folder = path.rpartition("/")[0]
        if folder and self._folders:
            self._fs.makedirs(folder, exist_ok=True)
        if not self._local:
            # Not file by file: a file system may keep what it got when that fails.
            self._fs.pipe_file(path, b"".join(buffers))
            return
        with open(path, "xb") as file:
            for buffer in buffers:
                file.write(buffer)
            file.flush()
            os.fsync(file.fileno())

    def _clean(self, folder: str, name: str | None = None) -> None:
        """Remove what was never finished: of one file, or in a whole folder."""
        if not (self._local or self._renames):
            return
        for found in self._fs.ls(folder or ".", detail=False):
            base = _base(found)
            if not _UNFINISHED.fullmatch(base):
                continue
            of = base[1:].rsplit(".", 2)[0]
            ours = _NUMBERED.fullmatch(of) if name is None else of == name
            with contextlib.suppress(FileNotFoundError):
                if ours and _age(self._fs.info(found)) > _ABANDONED:
                    self._fs.rm_file(found)

    # ---- reading --------------------------------------------------------------------

    def load(self) -> tuple[Checkpoint, str]:
        """Read the file, or the newest of the folder that is whole.

        Returns
        -------
        checkpoint, path

        Raises
        ------
        CheckpointMissingError
            If there is none.
        CheckpointDamagedError
            If none is whole.
        CheckpointError
            If it cannot be read, for example because its format is newer.
        """
        with self._reading(self._path):
            self._fs.invalidate_cache()
            folder = self._fs.isdir(self._path)
        if folder:
            return self.newest()
        return self._read(self._path), self.path

    def newest(self) -> tuple[Checkpoint, str]:
        """Read the newest of the folder that is whole; see `load`.

        One that is not is passed over, and named in the log.
        """
        passed = []
        for path in reversed(self._files()):
            try:
                return self._read(path), self._shown(path)
            except CheckpointMissingError:
                continue  # removed just now by who writes to the folder
            except CheckpointDamagedError as error:
                logger.warning("A checkpoint is passed over: %s", error)
                passed.append(f"- {error}")
        if not passed:
            raise CheckpointMissingError(
                f"There is no checkpoint in {self.path}: nothing there is called "
                "checkpoint-000000000000.tensair or the like. "
                + (
                    self.others()
                    or "Give the path of one, or of a folder that checkpoint_every= "
                    "has written to."
                )
            )
        text = "\n".join(passed)
        raise CheckpointDamagedError(
            f"None of the {len(passed)} checkpoints in {self.path} is whole; give "
            f"another path, or start anew.\n{text}"
        )

    def paths(self) -> list[str]:
        """Paths of the checkpoints in the folder, the oldest first."""
        return [self._shown(path) for path in self._files()]

    def others(self) -> str:
        """Name checkpoints in the folder under names of the user; empty for none."""
        with self._reading(self._path):
            there = [
                each["name"]
                for each in self._listed(self._path)
                if each.get("type", "file") == "file"
                and not _base(each["name"]).startswith(".")
                and not _NUMBERED.fullmatch(_base(each["name"]))
                and (each.get("size") or 0) > 0
            ][:_LOOKED_AT]
            found = [path for path in there if is_checkpoint(self._begin_of(path))]
        if not found:
            return ""
        files = "one file" if len(found) == 1 else f"{len(found):,} files"
        return (
            f"There are checkpoints under other names ({files}), which are restored by "
            f"their own paths only: give {self._shown(sorted(found)[-1])!r} to go on "
            "from that one."
        )

    def _begin_of(self, path: str) -> bytes:
        try:
            return bytes(self._fs.cat_file(path, start=0, end=START))
        except Exception:  # it may not be read: then it is not restored either
            return b""

    def _files(self) -> list[str]:
        with self._reading(self._path):
            return [self._numbered(number) for number in self._numbers()]

    def _read(self, path: str) -> Checkpoint:
        with self._reading(path):
            data = self._fs.cat_file(path)
        return decode(data, self._shown(path))

    # ---- names ----------------------------------------------------------------------

    def _numbers(self) -> list[int]:
        """Numbers of the checkpoints in the folder, upwards."""
        found = []
        for each in self._listed(self._path):
            match = _NUMBERED.fullmatch(_base(each["name"]))
            if match and each.get("type", "file") != "directory":
                found.append(int(match[1]))
        return sorted(found)

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        self._fs.invalidate_cache()
        try:
            return self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return []

    def _numbered(self, number: int) -> str:
        return f"{self._path}/checkpoint-{number:012d}.tensair"

    def _beside(self, path: str) -> str:
        # In the same folder: only there a file can be put in another's place at once.
        folder, slash, name = path.rpartition("/")
        return f"{folder}{slash}.{name}.{uuid.uuid4().hex[:8]}.unfinished"

    def _shown(self, path: str) -> str:
        return path if self._local else str(self._fs.unstrip_protocol(path))

    # ---- errors ---------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, path: str) -> Any:
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # object stores have exceptions of their own
            raise CheckpointError(
                f"{self._shown(path)} cannot be written: {_reason(error)}. Give a path "
                "that you may write to, with room for the model and the state of its "
                "optimizers."
            ) from error

    @contextlib.contextmanager
    def _reading(self, path: str) -> Any:
        shown = self._shown(path)
        try:
            yield
        except FileNotFoundError as error:
            raise CheckpointMissingError(
                f"There is no checkpoint at {shown}: there is no such file. Give the "
                "path of one that trainer.save has written, or of a folder that "
                "checkpoint_every= has written to."
            ) from error
        except Exception as error:
            raise CheckpointError(
                f"{shown} cannot be read: {_reason(error)}. Give a path that you may "
                "read, and look whether its server can be reached."
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror} ({error.filename})"
            if error.filename
            else (error.strerror)
        )
    return in_words(error)


def _base(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _age(found: dict[str, Any]) -> float:
    """Seconds since a file was written; 0 where the file system does not tell."""
    changed: Any = found.get("mtime", found.get("modified"))
    if hasattr(changed, "timestamp"):
        changed = changed.timestamp()
    return time.time() - changed if isinstance(changed, (int, float)) else 0.0


def _flush_folder(folder: str) -> None:
    """Have the new name of a file on the disk, too, where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
