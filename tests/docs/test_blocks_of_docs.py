"""Every Python block of README.md and docs/ runs, from the top of its page down.

A block that needs what is not there is preceded by ``<!--- skip: next "why" -->``. The
pages of how-to/ go on from the block of how-to/index.md, as they say.
"""

from __future__ import annotations

import contextlib
import unittest
from pathlib import Path
from typing import Any

import dask.distributed
import distributed
import pytest
from pages import DOCS, PAGES, name_of

import tensair_dask as ta

sybil = pytest.importorskip("sybil", reason="needs sybil: pip install '.[test]'")
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser  # noqa: E402

pytestmark = pytest.mark.xdist_group("docs")  # one cluster for all of them

READER = sybil.Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=0), SkipParser()]
)
HOW_TO = DOCS / "how-to"


def has_blocks(page: Path) -> bool:
    return "```python" in page.read_text(encoding="utf-8")


class Cluster(str):
    """Stands for a cluster that is there already, and stays when a page closes it."""

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        pass


@pytest.fixture
def shared(scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the pages one cluster in place of those that they start."""
    for module in (distributed, dask.distributed):
        monkeypatch.setattr(module, "LocalCluster", lambda **_: Cluster(scheduler))


def run(page: Path, names: dict[str, Any]) -> None:
    """Run the blocks of a page with some names; add its own."""
    document = READER.parse(page)
    document.namespace.update(names)
    try:
        for example in document.examples():
            with contextlib.suppress(unittest.SkipTest):
                example.evaluate()
    finally:
        names.update(document.namespace)


def close(names: dict[str, Any]) -> None:
    """Close what a page has left open: trainers, then clients."""
    for kind in (ta.Trainer, distributed.Client):
        for one in list(names.values()):
            if isinstance(one, kind):
                one.close()


WITH_BLOCKS = [page for page in PAGES if has_blocks(page)]
KAFKA = DOCS / "tutorials" / "kafka.md"


def run_whole(page: Path, **names: Any) -> None:
    """Run a page as a program of its own."""
    names["__name__"] = "__main__"
    try:
        if page.parent == HOW_TO and page.name != "index.md":
            run(HOW_TO / "index.md", names)
        run(page, names)
    finally:
        close(names)


@pytest.mark.processes
@pytest.mark.usefixtures("shared")
@pytest.mark.parametrize(
    "page", [each for each in WITH_BLOCKS if each != KAFKA], ids=name_of
)
def test_the_blocks_of_a_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_whole(page)


@pytest.mark.processes
@pytest.mark.usefixtures("shared")
def test_the_blocks_about_kafka_run_with_a_broker(broker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_whole(KAFKA, broker=broker.address)


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name_of)
def test_a_page_says_why_a_block_does_not_run(page):
    text = page.read_text(encoding="utf-8")
    assert text.count("skip: next") == text.count('skip: next "')


def test_there_are_pages_with_blocks():
    assert len(WITH_BLOCKS) >= 20
