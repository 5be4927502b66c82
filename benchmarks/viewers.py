"""Look at a page of the dashboard until standard input ends: what watching costs.

``browser`` is a real Chromium on this machine, which draws and so takes its share of
the CPU; ``websocket`` receives what a browser elsewhere would, and draws nothing.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import websocket_connect

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
    """Receive the page's messages, and leave them as they are."""
    asyncio.run(_receive(url))


async def _receive(url: str) -> None:
    page = (await AsyncHTTPClient().fetch(url)).body.decode()
    token = re.search(r'"token":"([^"]+)"', page)
    assert token is not None
    connection = await websocket_connect(
        f"{url.replace('http', 'ws', 1)}/ws",
        subprotocols=["bokeh", token[1]],
        max_message_size=2**28,
    )
    await _until(connection, "ACK")
    request = {"msgid": "1", "msgtype": "PULL-DOC-REQ"}
    for part in (request, {}, {}):  # header, metadata, content
        await connection.write_message(json.dumps(part))
    await _until(connection, "PULL-DOC-REPLY")
    print("open", flush=True)
    ended = asyncio.ensure_future(asyncio.to_thread(sys.stdin.read))
    received = asyncio.ensure_future(_discard(connection))
    await asyncio.wait({ended, received}, return_when=asyncio.FIRST_COMPLETED)
    connection.close()


async def _until(connection: Any, kind: str) -> None:
    while kind not in str(message := await connection.read_message()):
        if message is None:
            raise RuntimeError(f"The connection was closed before {kind} came")


async def _discard(connection: Any) -> None:
    while await connection.read_message() is not None:
        pass


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
