"""The client's half, with a real scheduler and no trainer."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import time
from typing import Any

import pytest
from distributed import Client, SchedulerPlugin
from distributed.utils_test import gen_cluster

from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard
from tensair_dask.observe.telemetry import reporter
from tensair_dask.observe.telemetry.reporter import Reporter

none = functools.partial(gen_cluster, client=True, nthreads=[], timeout=60)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reporter, "INTERVAL", 0.01)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(reporter, "PATIENCE", 0.2)


def started_reporter(
    c: Client, plugin: Any = None, state: Any = None, **overrides: Any
) -> Reporter:
    about = {
        "run_id": "run",
        "name": "model",
        "client": c.id,
        "metrics": ["a"],
        "target": 1,
    }
    return Reporter(
        c,
        (NAME, plugin or TrainingDashboard()),
        {**about, **overrides},
        state or (lambda: {"state": "open", "emitted": 3}),
    )


def trainers(s: Any) -> dict[str, Any]:
    return s.plugins[NAME].telemetry.trainers


async def until(predicate) -> None:
    while not predicate():
        await asyncio.sleep(0.005)


def only_warning(caplog) -> str:
    """What was said, which must have been once: that training is not watched."""
    (warning,) = [
        entry.getMessage()
        for entry in caplog.records
        if entry.levelno >= logging.WARNING and entry.name == reporter.__name__
    ]
    assert "Training itself is not affected" in warning
    return warning


@none()
async def test_a_trainer_is_known_from_its_start_to_its_end(c, s):
    teller = started_reporter(c)
    await teller.open()
    assert trainers(s)["run"].name == "model"
    await until(lambda: trainers(s)["run"].reported.get("emitted") == 3)
    assert trainers(s)["run"].state == "open"
    await teller.close({})
    assert trainers(s)["run"].state == "closed"
    await teller.close({})


@none()
async def test_a_trainer_that_never_opened_is_not_reported(c, s):
    await started_reporter(c).close({})
    assert NAME not in s.plugins


class Unknown(SchedulerPlugin):
    """Belongs to a package that the scheduler does not have."""

    def __reduce__(self):
        return importlib.import_module, ("no_such_package",)


@none()
async def test_a_scheduler_without_the_package_is_reported_once(c, s, caplog):
    teller = started_reporter(c, Unknown())
    await teller.open()
    await until(teller.reporting.done)
    await teller.close({})
    assert "no_such_package" in only_warning(caplog)


@none()
async def test_a_scheduler_that_takes_no_plugins_is_reported_once(c, s, caplog):
    s.blocked_handlers.append("register_scheduler_plugin")
    teller = started_reporter(c)
    await teller.open()
    await teller.close({})
    assert "register_scheduler_plugin" in only_warning(caplog)


@none()
async def test_a_scheduler_that_takes_no_plugins_may_have_preloaded_it(c, s, caplog):
    await s.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
    s.blocked_handlers.append("register_scheduler_plugin")
    teller = started_reporter(c)
    await teller.open()
    await until(lambda: trainers(s)["run"].reported.get("emitted") == 3)
    await teller.close({})
    assert "dashboard is off" in only_warning(caplog)  # nothing worse
    assert trainers(s)["run"].state == "closed"


class Other(SchedulerPlugin):
    name = NAME


@none()
async def test_a_scheduler_with_another_plugin_of_that_name_is_reported_once(
    c, s, caplog
):
    await c.register_plugin(Other())
    teller = started_reporter(c)
    await teller.open()
    await teller.close({})
    assert NAME in only_warning(caplog)


@none()
async def test_a_plugin_that_is_unregistered_is_reported_once(c, s, caplog):
    teller = started_reporter(c)
    await teller.open()
    caplog.clear()
    await c.unregister_scheduler_plugin(NAME)
    await until(teller.reporting.done)
    await teller.close({})
    assert NAME in only_warning(caplog)


@none()
async def test_a_plugin_that_was_registered_anew_gets_everything_again(c, s, caplog):
    teller = started_reporter(c)
    await teller.open()
    await until(lambda: trainers(s)["run"].reported.get("emitted") == 3)
    caplog.clear()
    s.remove_plugin(NAME)
    await s.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
    await until(lambda: "run" in trainers(s))
    await until(lambda: trainers(s)["run"].reported.get("emitted") == 3)
    await teller.close({})
    assert trainers(s)["run"].state == "closed"
    assert "dashboard is off" in only_warning(caplog)  # nothing worse


@none(config={"tensair.dashboard.trainers": 1})
async def test_a_scheduler_that_has_no_room_is_reported_once(c, s, caplog):
    first, second = started_reporter(c), started_reporter(c, run_id="another")
    await first.open()
    caplog.clear()
    await second.open()
    await until(second.reporting.done)
    await second.close({})
    assert "dashboard.trainers" in only_warning(caplog)
    assert list(trainers(s)) == ["run"]
    await first.close({})


@none()
async def test_a_scheduler_that_hangs_delays_the_start_and_the_end_a_little(
    c, s, impatient
):
    await s.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
    released = asyncio.Event()

    async def hang(**kwargs: Any) -> None:
        await released.wait()

    handlers = {name: s.handlers[name] for name in s.handlers if "telemetry" in name}
    for name in handlers:
        s.handlers[name] = hang
    teller = started_reporter(c)
    begin = time.monotonic()
    await teller.open()
    await teller.close({})
    assert time.monotonic() - begin < 2
    assert trainers(s) == {}
    # One that goes on is made known as soon as the scheduler answers.
    teller = started_reporter(c)
    await teller.open()
    assert trainers(s) == {}
    s.handlers.update(handlers)
    released.set()
    await until(lambda: "run" in trainers(s))
    await teller.close({})
    assert trainers(s)["run"].state == "closed"


@none()
async def test_it_ends_with_its_client_and_says_nothing(c, s, caplog):
    async with Client(s.address, asynchronous=True) as other:
        teller = started_reporter(other)
        await teller.open()
        await until(lambda: trainers(s)["run"].reported.get("emitted") == 3)
        caplog.clear()
    await until(lambda: trainers(s)["run"].state == "lost")
    await until(teller.reporting.done)
    await teller.close({})
    assert not [entry for entry in caplog.records if entry.name == reporter.__name__]


@none()
async def test_a_state_that_cannot_be_sent_is_reported_once(c, s, caplog):
    teller = started_reporter(c, state=lambda: 1 / 0)
    await teller.open()
    caplog.clear()
    await until(teller.reporting.done)
    await teller.close({})
    assert "ZeroDivisionError" in only_warning(caplog)


@none()
async def test_an_opening_that_was_cancelled_can_be_closed(c, s):
    await s.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
    opened, go_on = asyncio.Event(), asyncio.Event()
    handler = s.handlers["tensair_telemetry_open"]

    async def slow(**kwargs: Any) -> Any:
        answer = await handler(**kwargs)
        opened.set()
        await go_on.wait()
        return answer

    s.handlers["tensair_telemetry_open"] = slow
    teller = started_reporter(c)
    opening = asyncio.ensure_future(teller.open())
    await opened.wait()
    opening.cancel()
    await asyncio.wait([opening])
    assert opening.cancelled()
    go_on.set()
    await teller.close({})
    assert trainers(s)["run"].state == "closed"
