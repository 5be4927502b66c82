"""What every test gets: the package's defaults, one torch thread, no leaks behind."""

from __future__ import annotations

import copy
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver, resource_tracker
from unittest import mock

import dask
import psutil
import pytest
import torch
from broker import Broker, running
from distributed import utils_test
from distributed.comm import Comm
from distributed.utils import DequeHandler, get_mp_context

import tensair_dask  # noqa: F401  its defaults become known to dask.config
from tensair_dask.replica import thread

# Workers are forked from a process that has imported torch, which takes each of them
# seconds. Those of programs that tests start are spawned, as those of users are.
dask.config.set(
    {
        "distributed.worker.multiprocessing-method": "forkserver",
        # Toy models are learned with large steps, and are to be warned only where a
        # test is about that.
        "tensair.exchange.stability-check": 0,
    }
)
get_mp_context().set_forkserver_preload(
    # The last is half of it: torch imports it when the first optimizer is made.
    ["distributed", "tensair_dask.replica.actor", "torch._dynamo"]
)
# gen_cluster puts back the configuration of when utils_test was imported, which may
# have been before this.
utils_test.original_config.clear()
utils_test.original_config.update(copy.deepcopy(dask.config.config))
# It also sets the level of every logger again, which `levels_of_loggers` does below
# where one has changed: each time that empties the caches of all loggers.
utils_test.logging_levels.clear()
torch.set_num_threads(1)
# Threads of replicas look so often whether their worker is still there, and each test
# waits for their end: not for a second.
thread.HEARTBEAT = 0.1
# It stays for as long as Python does; started here, it is no leak of the first test
# that starts processes.
resource_tracker.ensure_running()

# Seconds that threads, connections and processes get to end by themselves.
PATIENCE = 10.0


def pytest_collection_finish() -> None:
    """Prepare for the tests, once all of them are imported."""
    # dask_jobqueue makes a SystemExit of Ctrl-C when imported.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests that look for leaks collect garbage often; what is older is none of it.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def forks(request: pytest.FixtureRequest) -> None:
    """Start what workers are forked from, where tests start some.

    Here it is no leak of the first of them, and what its workers print is captured.
    """
    if any(each.get_closest_marker("processes") for each in request.session.items):
        # As nannies do before they spawn: libraries look at these when they are loaded.
        settings = dask.config.get("distributed.nanny.pre-spawn-environ")
        with mock.patch.dict(os.environ, {k: str(v) for k, v in settings.items()}):
            forkserver.ensure_running()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a process, a connection or a file open."""
    threads, children, files = _threads(), _children(), _open_files()
    yield
    leaks: dict[str, Callable[[], object]] = {
        "threads": lambda: _threads() - threads,
        "processes": lambda: _children() - children,
        "connections": lambda: [comm for comm in Comm._instances if not comm.closed()],
        "open files": lambda: max(0, _open_files() - files),
    }
    deadline = time.monotonic() + PATIENCE
    while found := {name: left for name, leak in leaks.items() if (left := leak())}:
        gc.collect()
        assert time.monotonic() < deadline, f"the test leaves behind: {found}"
        time.sleep(0.01)


# Those whose levels a run from the command line changes, for the rest of its process.
LOGGERS = ("asyncio", "distributed", "tensair_dask", "tornado")


@pytest.fixture(autouse=True)
def levels_of_loggers() -> Iterator[None]:
    """Give the loggers the levels back that they had before the test."""
    levels = {name: logger.level for name, logger in _loggers()}
    yield
    for name, logger in _loggers():
        level = levels.get(name, logging.NOTSET)
        if logger.level != level:  # setting it empties the caches of all loggers
            logger.setLevel(level)


@pytest.fixture(autouse=True)
def handlers_of_servers() -> Iterator[None]:
    """Take away the handlers in which schedulers and workers keep their logs.

    Python does so when it collects these: until then each line that is logged goes
    through the handlers of hundreds of them.
    """
    yield
    for handler in list(DequeHandler._instances):
        for name in ("distributed.scheduler", "distributed.worker"):
            logging.getLogger(name).removeHandler(handler)


def _loggers() -> list[tuple[str, logging.Logger]]:
    known = list(logging.root.manager.loggerDict.items())
    return [
        (name, logger)
        for name, logger in known
        if isinstance(logger, logging.Logger) and name.startswith(LOGGERS)
    ]


@pytest.fixture(scope="session")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let matplotlib open its fonts before a test counts open files: they stay open."""
    figure = pytest.importorskip("matplotlib.figure").Figure()
    panel, logarithmic = figure.subplots(2)
    logarithmic.set(yscale="log", ylim=(1, 2))
    panel.set_title("some", weight="bold")
    panel.plot([0.0, 1e-3], label="some")
    panel.legend()
    figure.savefig(tmp_path_factory.mktemp("fonts") / "some.png")


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """A broker that speaks Kafka's protocol, one for all tests."""
    with running(tmp_path_factory.mktemp("broker")) as started:
        yield started


def _threads() -> set[str]:
    return {one.name for one in threading.enumerate() if "tensair" in one.name}


def _children() -> set[int]:
    return {
        child.pid
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE
    }


def _open_files() -> int:
    return psutil.Process().num_fds()
