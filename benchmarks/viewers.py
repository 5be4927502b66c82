"""Look at a page of the dashboard until standard input ends: what watching costs.

``browser`` is a real Chromium on this machine, which draws and so takes its share of
the CPU; ``websocket`` receives what a browser elsewhere would, and draws nothing.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@contextmanager
def viewing(kind: str, url: str) -> Iterator[None]:
    """Look at a page in a process of its own for as long as the context lasts."""
    process = subprocess.Popen(
        [sys.executable, __file__, kind, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline().strip() != "open":
            raise RuntimeError(f"The page at {url} could not be opened as {kind}")
        yield
    finally:
        process.stdin.close()
        process.wait(30)


def websocket(url: str) -> None:
    """Receive the page's messages."""
    from bokeh.client import pull_session

    session = pull_session(url=url)
    print("open", flush=True)
    sys.stdin.read()
    session.close()


def browser(url: str) -> None:
    """Open the page in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=FLAGS
        )
        page = chromium.new_page(viewport={"width": 1400, "height": 900})
        page.goto(url)
        page.wait_for_function("window.Bokeh && Bokeh.documents.length > 0")
        print("open", flush=True)
        sys.stdin.read()
        chromium.close()


@click.command()
@click.argument("kind", type=click.Choice(["browser", "websocket"]))
@click.argument("url")
def main(kind: str, url: str) -> None:
    """Look at URL."""
    {"browser": browser, "websocket": websocket}[kind](url)


if __name__ == "__main__":
    main()
