from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tensair_dask._common import work_clock
from tensair_dask._common.work_clock import open_work_clock, work_time

linux = pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(), reason="no Linux"
)


def test_sleep_is_time():
    start = work_time()
    time.sleep(0.02)
    assert work_time() - start >= 0.015


@linux
def test_to_wait_for_a_cpu_is_no_time():
    # Two processes on one CPU: each waits about as long as it works.
    cpu = min(os.sched_getaffinity(0))
    program = (
        "import os, time\n"
        f"os.sched_setaffinity(0, {{{cpu}}})\n"
        "from tensair_dask._common.work_clock import work_time\n"
        "wall, work, cpu = time.monotonic(), work_time(), time.thread_time()\n"
        "while time.thread_time() - cpu < 0.3: pass\n"
        "print(time.monotonic() - wall, work_time() - work)\n"
    )
    pair = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    answers = [map(float, each.communicate(timeout=120)[0].split()) for each in pair]
    waited = [wall - work for wall, work in answers]
    # The second may begin when the first has ended; but hardly waits less than a tick.
    assert all(each > -0.05 for each in waited)
    assert sum(waited) > 0.001


def test_an_open_clock_tells_the_same():
    before = work_time()
    with open_work_clock():
        between = work_time()
    assert abs(between - before) < 10
    assert abs(work_time() - between) < 10


@linux
def test_each_thread_opens_a_clock_of_its_own():
    files = []

    def look():
        with open_work_clock():
            files.append(os.readlink(f"/proc/self/fd/{work_clock._opened.file}"))

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    look()
    assert len(set(files)) == 3


@pytest.mark.parametrize("opened", [True, False])
def test_without_the_kernels_counts_it_is_the_monotonic_clock(monkeypatch, opened):
    monkeypatch.setattr(work_clock, "_FILE", "/nowhere/schedstat")
    with open_work_clock() if opened else contextlib.nullcontext():
        before = time.monotonic()
        assert before <= work_time() <= time.monotonic()
