"""Checkpoints on real file systems: whole or not there, the newest kept."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import multiprocessing
import os
import re
import shutil
import time
import uuid
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import dask
import fsspec
import pytest
import torch
from checkpoint_examples import example, same, small
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry

from tensair_dask.checkpoints import Checkpoint, Store
from tensair_dask.checkpoints.format import encode
from tensair_dask.errors import (
    CheckpointDamagedError,
    CheckpointError,
    CheckpointMissingError,
    ConfigurationError,
)


@pytest.fixture(params=["plain", "file://", "memory://"])
def place(request, tmp_path):
    """A path on each file system at which there is nothing yet."""
    if request.param == "memory://":
        path = f"memory://{uuid.uuid4().hex}/deep/run"
        yield path
        fs, inner = fsspec.core.url_to_fs(path.partition("/deep")[0])
        if fs.exists(inner):
            fs.rm(inner, recursive=True)
    else:
        yield f"{request.param}/{tmp_path}/deep/run".removeprefix("plain/")


def write(path, data: bytes) -> None:
    with fsspec.open(str(path), "wb") as file:
        file.write(data)


def read(path) -> bytes:
    with fsspec.open(str(path), "rb") as file:
        return file.read()


def names(place) -> list[str]:
    fs, path = fsspec.core.url_to_fs(str(place))
    return sorted(each.rpartition("/")[2] for each in fs.ls(path, detail=False))


def of(*numbers: int) -> list[str]:
    return [f"checkpoint-{number:012d}.tensair" for number in numbers]


def test_one_file_is_saved_and_loaded(place):
    path = Store(place).save(example())
    checkpoint, found = Store(path).load()
    assert same(checkpoint, example(time=checkpoint.time))
    assert found == path == Store(place).path


def test_a_file_is_replaced_by_the_next(place):
    Store(place).save(small(1))
    Store(place).save(small(2))
    assert Store(place).load()[0].index == 2
    assert names(place.rpartition("/")[0]) == ["run"]


def test_a_folder_keeps_the_newest(place):
    store = Store(place, keep=2)
    paths = [store.add(small(index)) for index in (5, 10, 15)]
    assert store.paths() == paths[1:]
    assert names(place) == of(10, 15)
    checkpoint, path = Store(place).load()
    assert checkpoint.index == 15
    assert path == paths[-1]
    assert Store(path).load()[0].index == 15


def test_how_many_are_kept_is_configured(place):
    with dask.config.set({"tensair.checkpoints.keep": 1}):
        store = Store(place)
    store.add(small(1))
    store.add(small(2))
    assert names(place) == of(2)


def test_numbers_go_up_also_where_training_went_back(place):
    store = Store(place, keep=3)
    for index in (100, 50, 50, 200):
        store.add(small(index))
    assert names(place) == of(101, 102, 200)
    assert Store(place).load()[0].index == 200


def test_where_another_writes_too_nothing_is_written_or_removed(place):
    one, other = Store(place, keep=1), Store(place, keep=1)
    one.check()
    other.check()
    one.add(small(10))
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"Another .* checkpoint-0+10\.ten"):
            other.add(small(20))
    assert names(place) == of(10)
    one.add(small(30))
    assert names(place) == of(30)


def test_a_run_that_goes_on_in_a_folder_has_it_for_itself(place):
    Store(place).add(small(10))
    store = Store(place, keep=2)
    store.check()
    store.add(small(5))
    store.add(small(6))
    assert names(place) == of(11, 12)


def test_a_folder_holds_itself_and_its_files(place):
    store = Store(place)
    path = store.add(small(1))
    assert store.holds(Store(place))
    assert store.holds(Store(path))
    assert not store.holds(Store(f"{place}2"))
    assert not Store(path).holds(store)


def test_only_its_own_files_are_removed(place):
    others = ["checkpoint-1.tensair", "checkpoint-000000000000.tensair.bak", "a.txt"]
    for name in others:
        write(f"{place}/{name}", b"mine")
    write(f"{place}/checkpoint-000000000000.tensair/in a folder", b"mine")
    store = Store(place, keep=1)
    store.add(small(1))
    store.add(small(2))
    assert names(place) == sorted([*others, *of(0, 2)])
    assert store.load()[0].index == 2


def test_a_torn_one_is_passed_over_and_named(place, caplog):
    store = Store(place, keep=9)
    paths = [store.add(small(index)) for index in range(5)]
    write(paths[4], read(paths[4])[:-1])
    write(paths[3], b"")
    write(paths[2], b"\0" * len(read(paths[2])))
    with caplog.at_level(logging.WARNING):
        checkpoint, path = store.load()
    assert checkpoint.index == 1
    assert path == paths[1]
    for passed, why in ((4, "has .* bytes"), (3, "is empty"), (2, "no checkpoint")):
        assert paths[passed] in caplog.text
        assert re.search(why, caplog.text)


def test_if_no_checkpoint_is_whole_the_error_names_them_all(place):
    store = Store(place)
    paths = [store.add(small(index)) for index in (1, 2)]
    for path in paths:
        write(path, b"torn")
    with pytest.raises(CheckpointDamagedError) as caught:
        store.load()
    assert all(path in str(caught.value) for path in paths)
    assert "None of the 2" in str(caught.value)


def test_one_of_a_newer_format_is_not_passed_over(place, monkeypatch):
    store = Store(place)
    store.add(small(1))
    monkeypatch.setattr("tensair_dask.checkpoints.format.FORMAT", 2)
    store.add(small(2))
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"000002\.tensair has format 2"):
        store.load()


def test_an_empty_folder_raises_an_error_that_says_so(place):
    with pytest.raises(CheckpointMissingError, match=r"deep/run: there is no such"):
        Store(place).load()
    with pytest.raises(FileNotFoundError):
        Store(place).load()
    assert Store(place).paths() == []
    write(f"{place}/a.txt", b"")
    with pytest.raises(CheckpointMissingError, match=r"no checkpoint in .*deep/run"):
        Store(place).load()


def test_a_file_is_no_folder_and_a_folder_no_file(place):
    Store(place).save(small())
    with pytest.raises(CheckpointError, match=r"is a file; .* need a folder"):
        Store(place).add(small())
    with pytest.raises(CheckpointError, match="is a file"):
        Store(place).check()
    folder = place.rpartition("/")[0]
    with pytest.raises(CheckpointError, match=r"is a folder; .*deep/model\.tensair"):
        Store(folder).save(small())
    assert Store(place).load()[0].index == 0


def test_a_folder_that_can_be_written_to_is_left_as_it_was(place):
    Store(place).add(small(1))
    Store(place).check()
    assert names(place) == of(1)


def test_what_cannot_be_encoded_leaves_what_was_there(place):
    Store(place).save(small(1))
    with pytest.raises(CheckpointError, match="cannot hold"):
        Store(place).save(Checkpoint({"w": object()}))
    assert Store(place).load()[0].index == 1
    assert names(place.rpartition("/")[0]) == ["run"]


# ---- local disks --------------------------------------------------------------------


def test_a_path_of_pathlib_and_one_from_home_are_taken(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store(tmp_path / "a").save(small()) == str(tmp_path / "a")
    assert Store("~/b").save(small()) == str(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    Store("c").save(small())
    Store("d").add(small())
    assert names(tmp_path) == ["a", "b", "c", "d"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path / "run", keep=1)
    store.add(small(1))

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot be written: No space left") as e:
        store.add(small(2))
    assert str(tmp_path) in str(e.value)
    assert names(tmp_path / "run") == of(1)


class Disk:
    """Has room for so many bytes in a folder."""

    def __init__(self, monkeypatch, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        put = Store._put

        def bounded(store, path, buffers):
            put(store, path, buffers)
            if self.used() > self.room:
                raise OSError(errno.ENOSPC, "No space left on device")

        def usage(path):
            return shutil._ntuple_diskusage(room, 0, max(0, self.room - self.used()))

        monkeypatch.setattr(Store, "_put", bounded)
        monkeypatch.setattr(shutil, "disk_usage", usage)

    def used(self) -> int:
        return sum(each.stat().st_size for each in self.folder.iterdir())


SIZE = sum(each.nbytes for each in encode(small(1)))


@pytest.mark.parametrize(("room", "kept"), [(2, 2), (3, 3), (5, 4)])
def test_where_there_is_room_for_few_the_oldest_go_first(
    tmp_path, monkeypatch, room, kept, caplog
):
    Disk(monkeypatch, tmp_path / "run", int((room + 0.5) * SIZE))
    store = Store(tmp_path / "run", keep=4)
    for number in range(1, 9):
        store.add(small(number))
        assert store.crowded == (number > room and room < 4)
    assert names(tmp_path / "run") == of(*range(9 - kept, 9))
    assert ("makes room" in caplog.text) == (room < 5)


def test_the_newest_whole_one_never_makes_room(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path / "run", 100 * SIZE)
    for number in (1, 2, 3):
        Store(tmp_path / "run").add(small(number))
    torn = tmp_path / "run" / of(3)[0]
    torn.write_bytes(torn.read_bytes()[:-3])
    disk.room = disk.used() + SIZE // 2
    # The third cannot be read, so the second stays.
    store = Store(tmp_path / "run")
    store.check()
    store.add(small(4))
    assert names(tmp_path / "run") == of(2, 3, 4)
    disk.room = int(1.5 * SIZE)
    with pytest.raises(CheckpointError, match="No space left"):
        store.add(small(5))
    assert of(4)[0] in names(tmp_path / "run")


def test_what_has_no_room_in_any_case_removes_nothing(tmp_path, monkeypatch):
    disk = Disk(monkeypatch, tmp_path / "run", 100 * SIZE)
    store = Store(tmp_path / "run")
    for number in (1, 2, 3):
        store.add(small(number))
    disk.room = disk.used() + SIZE // 2
    large = small(4)
    large = replace(large, model={**large.model, "more": torch.zeros(SIZE)})
    with pytest.raises(CheckpointError, match="No space left"):
        store.add(large)
    assert names(tmp_path / "run") == of(1, 2, 3)


def test_a_full_store_of_objects_makes_room_too(monkeypatch):
    place = f"memory://{uuid.uuid4().hex}/run"
    put = MemoryFileSystem.pipe_file

    def bounded(fs, path, value, **kwargs):
        if len(fs.ls(path.rpartition("/")[0], detail=False)) >= 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        put(fs, path, value, **kwargs)

    store = Store(place)
    store.add(small(1))
    monkeypatch.setattr(MemoryFileSystem, "pipe_file", bounded)
    for number in (2, 3, 4):
        store.add(small(number))
    assert names(place) == of(3, 4)


def test_a_folder_that_may_not_be_written_to_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    for method in ("check", "add", "save"):
        store = Store(tmp_path / "file" / "run")
        arguments = [] if method == "check" else [small()]
        with pytest.raises(CheckpointError, match=r"cannot be written: .*\(.*file"):
            getattr(store, method)(*arguments)


def keep_saving(folder: Path, reported: Connection) -> None:
    """Save one checkpoint after the other, and tell of each."""
    store = Store(folder)
    for index in itertools.count(1):
        weights = torch.full((500_000,), float(index))
        store.add(Checkpoint({"w": weights}, index=index))
        reported.send(index)


@pytest.mark.processes
def test_a_process_that_is_killed_leaves_the_one_before(tmp_path):
    context = multiprocessing.get_context("forkserver")
    for turn in range(3):
        reading, writing = context.Pipe(duplex=False)
        child = context.Process(target=keep_saving, args=(tmp_path / "run", writing))
        child.start()
        writing.close()
        for _ in range(2):
            reported = reading.recv()
        time.sleep(0.003 * turn)  # killed at different places
        child.kill()
        with contextlib.suppress(EOFError):
            while True:
                reported = reading.recv()
        child.join()
        child.close()
        reading.close()
        newest = Store(tmp_path / "run").paths()[-1]
        checkpoint, path = Store(tmp_path / "run").load()
        assert path == newest
        assert torch.equal(
            checkpoint.model["w"], torch.full((500_000,), float(checkpoint.index))
        )
        assert checkpoint.index >= reported
        for left in (tmp_path / "run").iterdir():
            left.unlink()


def test_what_was_never_finished_is_removed_when_it_is_old(tmp_path):
    def leave(name: str, age: float) -> Path:
        path = tmp_path / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age, time.time() - age))
        return path

    old = leave(".checkpoint-000000000007.tensair.0123abcd.unfinished", 7200)
    new = leave(".checkpoint-000000000008.tensair.0123abcd.unfinished", 60)
    ours = leave(".model.0123abcd.unfinished", 7200)
    strange = [
        leave(".something.0123abcd.unfinished", 7200),
        leave("checkpoint-000000000007.tensair.0123abcd.unfinished", 7200),
        leave(".checkpoint-000000000007.tensair.swp", 7200),
    ]
    Store(tmp_path).add(small(9))
    assert not old.exists()
    assert new.exists()
    assert ours.exists()
    Store(tmp_path / "model").save(small())
    assert not ours.exists()
    assert all(each.exists() for each in strange)


# ---- other file systems -------------------------------------------------------------


class Server(AbstractFileSystem):
    """A file server: what is put can be seen in part, as SFTP has it."""

    protocol = "sftp"
    disk = LocalFileSystem()
    broken = False

    def ls(self, path, detail=True, **options):
        return self.disk.ls(path, detail, **options)

    def makedirs(self, path, exist_ok=False):
        self.disk.makedirs(path, exist_ok)

    def mv(self, old, new, **options):
        self.disk.mv(old, new, **options)

    def rm_file(self, path):
        self.disk.rm_file(path)

    def open(self, path, mode="rb", **options):
        return self.disk.open(path, mode, **options)

    def pipe_file(self, path, value, **options):
        with open(path, "wb") as file:
            file.write(value[: len(value) // 2])
            assert not os.path.basename(path).startswith("checkpoint")
            if self.broken:
                raise OSError("the connection was lost")
            file.write(value[len(value) // 2 :])


class Ftp(MemoryFileSystem):
    """An FTP server, as far as names go."""

    protocol = "ftp"
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    put: ClassVar[list[str]] = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("ftp:/"))

    def pipe_file(self, path, value, **options):
        self.put.append(path)
        super().pipe_file(path, value, **options)


def test_on_an_ftp_server_it_is_put_beside_too(monkeypatch):
    monkeypatch.setitem(_registry, "ftp", Ftp)
    store = Store("ftp://server/run")
    path = store.add(small(1))
    assert [each.rpartition(".")[2] for each in Ftp.put] == ["unfinished"]
    assert store.paths() == [path]
    assert store.load()[0].index == 1


def test_on_a_file_server_it_is_put_beside_and_renamed(tmp_path, monkeypatch):
    monkeypatch.setitem(_registry, "sftp", Server)
    store = Store(f"sftp://{tmp_path}/run", keep=1)
    store.add(small(1))
    store.add(small(2))
    assert names(tmp_path / "run") == of(2)
    assert store.load()[0].index == 2
    monkeypatch.setattr(Server, "broken", True)
    with pytest.raises(CheckpointError, match="the connection was lost"):
        store.add(small(3))
    assert names(tmp_path / "run") == of(2)


def test_a_put_that_fails_leaves_what_was_there(monkeypatch):
    place = f"memory://{uuid.uuid4().hex}"
    store = Store(place, keep=1)
    store.add(small(1))

    def refuse(self, path, value, **options):
        raise PermissionError(13, "Access Denied")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", refuse)
        with pytest.raises(CheckpointError, match="cannot be written: Access Denied"):
            store.add(small(2))
    assert names(place) == of(1)


def test_older_ones_that_cannot_be_removed_are_no_failure(monkeypatch, caplog):
    place = f"memory://{uuid.uuid4().hex}"
    store = Store(place, keep=1)
    store.add(small(1))

    def refuse(self, path):
        raise RuntimeError("the token has expired")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(MemoryFileSystem, "rm_file", refuse)
        assert store.add(small(2)).endswith(of(2)[0])
    assert "could not be removed: the token has expired" in caplog.text
    assert names(place) == of(1, 2)


def test_what_cannot_be_read_now_is_no_torn_checkpoint(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.add(small(1))

    def fail(self, path, **options):
        raise ConnectionError("the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "cat_file", fail)
        with pytest.raises(CheckpointError, match=r"cannot be read: .*not answer") as e:
            store.load()
    assert not isinstance(e.value, CheckpointDamagedError)


def test_a_checkpoint_that_is_removed_while_it_is_looked_for_is_no_error(monkeypatch):
    store = Store(f"memory://{uuid.uuid4().hex}")
    store.add(small(1))
    store.add(small(2))
    original = MemoryFileSystem.cat_file

    def gone(self, path, **options):
        if path.endswith("2.tensair"):
            raise FileNotFoundError(path)
        return original(self, path, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", gone)
    assert store.load()[0].index == 1


@pytest.mark.parametrize("path", [None, 3, "", " "])
def test_a_value_that_is_no_path_is_refused(path):
    with pytest.raises(ConfigurationError, match="a path of a file or a folder"):
        Store(path)


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, "3"])
def test_how_many_are_kept_is_a_whole_number(keep):
    with pytest.raises(ConfigurationError, match="a whole number from 1"):
        Store("x", keep=keep)


def test_an_unknown_file_system_is_refused():
    with pytest.raises(ConfigurationError, match="Any path that fsspec knows"):
        Store("nothing://bucket/model")


def test_the_file_is_what_is_encoded(tmp_path):
    checkpoint = small(time=1.0)
    path = Store(tmp_path / "a").save(checkpoint)
    assert read(path) == b"".join(encode(checkpoint))


def test_two_colons_in_a_path_are_part_of_its_name(tmp_path):
    path = tmp_path / "model::a"
    Store(path).add(example())
    Store(f"{tmp_path}/one::2.tensair").save(example())
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "model::a",
        "one::2.tensair",
    ]
    assert Store(path).paths() == [
        str(path / f"checkpoint-{example().index:012d}.tensair")
    ]
    checkpoint, _ = Store(f"{tmp_path}/one::2.tensair").load()
    assert checkpoint.index == example().index
