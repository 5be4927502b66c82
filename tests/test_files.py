from __future__ import annotations

import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.files import check_writable, write_atomically


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
def test_a_path_that_cannot_be_written_is_told_in_one_line(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"--report .* cannot be written: .+"):
        check_writable(tmp_path / place, "--report")
