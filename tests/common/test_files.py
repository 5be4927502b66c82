from __future__ import annotations

import gzip

import pytest

from tensair_dask._common.files import (
    as_file_system,
    check_folder,
    check_writable,
    open_files,
    write_atomically,
)
from tensair_dask.errors import ConfigurationError


def test_a_file_is_written_whole_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "page.html"
    write_atomically(path, "one")
    write_atomically(path, "two – ü")  # noqa: RUF001
    assert path.read_text(encoding="utf-8") == "two – ü"  # noqa: RUF001
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_there_stays_if_the_new_text_cannot_be_written(tmp_path):
    path = tmp_path / "page.html"
    write_atomically(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "half \ud800")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_a_path_that_can_be_written_is_not_written_by_the_check(tmp_path):
    path = tmp_path / "made" / "page.html"
    check_writable(path, "--report")
    assert path.parent.is_dir()
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("place", ["folder", "file/page.html", "nul\0"])
def test_the_error_for_a_path_that_cannot_be_written_is_one_line(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--report .* cannot be written: .+"):
        check_writable(tmp_path / place, "--report")


@pytest.fixture
def there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name", ["model::a", "new/folder/model::a", "a::b::c", "runs::1/model"]
)
@pytest.mark.parametrize("prefix", ["", "absolute", "file://"])
def test_two_colons_are_part_of_the_name_of_a_local_file(there, name, prefix):
    path = {"": "", "absolute": f"{there}/", "file://": f"file://{there}/"}[prefix]
    system, found = as_file_system(path + name)
    assert found == f"{there}/{name}"
    assert system.protocol == ("file", "local")


def test_a_file_that_exists_is_one_whatever_its_name_begins_with(there):
    (there / "memory::a").write_text("local")
    (file,) = open_files("memory::a")
    with file as opened:
        assert opened.read() == b"local"


@pytest.mark.parametrize(
    ("path", "protocol"),
    [
        ("simplecache::memory://a", "simplecache"),
        ("zip://inner::memory://no.zip", None),
        ("memory://a", "memory"),
    ],
)
def test_file_systems_are_chained_as_before(there, path, protocol):
    if protocol is None:  # it looks into the archive
        with pytest.raises(FileNotFoundError, match=r"no\.zip"):
            as_file_system(path)
        return
    system, _ = as_file_system(path)
    assert protocol in (system.protocol, *system.protocol)


def test_many_files_are_found_beside_those_with_two_colons(there):
    (there / "log::2.txt").write_bytes(b"two")
    (there / "log::1.txt.gz").write_bytes(gzip.compress(b"one"))
    (there / "other.txt").write_bytes(b"three")

    def contents(path):
        found = []
        for file in open_files(path, compression="infer"):
            with file as opened:
                found.append(opened.read())
        return found

    assert contents("log::*") == [b"one", b"two"]
    assert contents(["log::2.txt", "other.txt"]) == [b"two", b"three"]
    assert contents("*.txt") == [b"two", b"three"]


def test_a_device_is_written_to_and_stays_one(tmp_path):
    path = tmp_path / "null"
    path.symlink_to("/dev/null")
    check_writable(path, "--report")
    write_atomically(path, "one")
    assert path.is_symlink()
    assert path.is_char_device()


def test_a_folder_is_made_where_there_is_none(tmp_path):
    check_folder(tmp_path / "one" / "two", "--output")
    assert list((tmp_path / "one" / "two").iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_refused(tmp_path, path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--output .* is no folder"):
        check_folder(tmp_path / path, "--output")
