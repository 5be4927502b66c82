from __future__ import annotations

import pytest
from streamz.core import get_io_loop


@pytest.fixture(scope="session", autouse=True)
def loop_of_streamz() -> None:
    """Start it before a test counts open files: it stays for as long as Python."""
    get_io_loop(False)
