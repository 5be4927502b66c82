"""Every command line of tensair in README.md and docs/ has options that exist."""

from __future__ import annotations

import contextlib
import re
import shlex
from pathlib import Path

import click
import pytest
from pages import BESIDE, PAGES, ROOT, fenced, name_of

from tensair_dask.cli import tensair

PREFIXES = ("tensair ", "dask tensair ", "python -m tensair_dask ")


def lines_of(text: str) -> list[str]:
    """Give the command lines of shell blocks, and those within a sentence."""
    found = []
    for language, block in fenced(text):
        if language in ("sh", "console", "bash"):
            joined = block.replace("\\\n", " ")
            found += [line.strip().removeprefix("$ ") for line in joined.splitlines()]
    found += re.findall(r"(?<!`)`((?:dask )?tensair [^`]+)`", text)
    # The last command of a pipe; a comment is none.
    commands = [line.rpartition(" | ")[2].partition("  #")[0] for line in found]
    return [each for each in commands if each.startswith(PREFIXES)]


def parse(line: str) -> None:
    """Read a command line as the program would, and run nothing."""
    words = shlex.split(line)
    arguments = words[words.index("tensair") + 1 :] if "tensair" in words else words[3:]
    command: click.Command = tensair
    context = None
    while True:
        context = command.make_context(command.name, list(arguments), parent=context)
        if not isinstance(command, click.Group):
            return
        rest = [*context._protected_args, *context.args]
        if not rest:
            return
        _, found, arguments = command.resolve_command(context, rest)
        assert found is not None
        command = found


COMMANDS = [
    pytest.param(line, id=f"{name_of(page)}: {line}")
    for page in PAGES + BESIDE
    for line in dict.fromkeys(lines_of(page.read_text(encoding="utf-8")))
]


def make_files_of(line: str, folder: Path) -> None:
    """Make the files that a command line names: some options want them to exist."""
    for word in shlex.split(line):
        if re.fullmatch(r"[\w/.-]+\.(csv|txt|json)", word):
            (folder / word).parent.mkdir(parents=True, exist_ok=True)
            (folder / word).touch()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_line_can_be_read(line, tmp_path, monkeypatch):
    make_files_of(line, tmp_path)
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(click.exceptions.Exit):  # --help and --version
        parse(line)


def test_a_misspelt_option_would_be_found():
    with pytest.raises(click.NoSuchOption):
        parse("tensair run flights --rates max")


MAKE = re.compile(r"`make ([\w-]+)`|^make ([\w-]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES + BESIDE, ids=name_of)
def test_a_target_of_make_is_in_the_makefile(page):
    named = {a or b for a, b in MAKE.findall(page.read_text(encoding="utf-8"))}
    there = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert named <= set(there)
