"""Chromium, headless, as people's browsers see the pages; Debian's, if it is there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
PATIENCE = 20_000  # milliseconds


def needs_browser() -> Any:
    """Skip, and say why, where there is no Chromium or no Playwright."""
    pytest.importorskip("playwright", reason="Playwright is not installed")
    return pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")


class Watched:
    """A tab of the browser, and what went wrong in it.

    Attributes
    ----------
    page
        Playwright's.
    troubles
        Errors on the console or in scripts, requests that failed or left the host.
    """

    def __init__(self, page: Any) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("requestfailed", lambda request: self.troubles.append(request.url))
        page.on("request", self._request)

    def _console(self, message: Any) -> None:
        if message.type == "error":
            self.troubles.append(message.text)

    def _request(self, request: Any) -> None:
        if "//127.0.0.1" not in request.url and request.url.startswith("http"):
            self.troubles.append(f"left the host: {request.url}")

    async def open(self, url: str) -> None:
        """Go there and wait until bokeh shows something."""
        answer = await self.page.goto(url)
        assert answer.status == 200, url
        await self.until("window.Bokeh && Bokeh.documents.length > 0")

    async def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        await self.page.wait_for_function(script, timeout=PATIENCE)

    async def read(self, script: str) -> Any:
        """Value of an expression in the page."""
        return await self.page.evaluate(script)


@contextlib.asynccontextmanager
async def tab(width: int = 1400, height: int = 900) -> AsyncIterator[Watched]:
    """Open a tab of a browser of its own."""
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, timeout=PATIENCE
        )
        try:
            page = await browser.new_page(viewport={"width": width, "height": height})
            yield Watched(page)
        finally:
            await browser.close()
