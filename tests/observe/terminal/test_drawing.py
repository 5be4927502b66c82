"""Pages are drawn from a real telemetry with simulated heartbeats."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from tensair_dask.observe.sparkline import PLAIN
from tensair_dask.observe.telemetry.counters import Counters
from tensair_dask.observe.telemetry.scheduler import Telemetry
from tensair_dask.observe.terminal.drawing import RECENT, drawing
from tensair_dask.observe.terminal.replica_table import chosen

STEPS_A_SECOND = 10


class Replica:
    """What one replica counts and what its exchange tells, without the replica."""

    def __init__(self, metrics):
        self.counters = Counters(metrics)

    def learn(self, steps):
        values = [0.75] * min(1, len(self.counters.metrics))
        values += [math.nan] * (len(self.counters.metrics) - 1)
        for _ in range(steps):
            self.counters.scored(64, 0.25, values, 0.0)

    def snapshot(self, seconds):
        steps = self.counters.steps
        return {
            **self.counters.snapshot(),
            "at": 100.0 + seconds,
            "busy": 0.5 * seconds,
            "sent": steps,
            "received": steps,
            "sent_bytes": 1000 * steps,
            "received_bytes": 1000 * steps,
            "staleness_mean": 1.5,
            "staleness_p95": 3,
            "staleness_max": 4,
            "age_p95": 0.1,
            "version": 2 * steps,
            "device": "cpu",
            "trainer": "m",
        }


class Cluster:
    """A scheduler's telemetry, and heartbeats of as many replicas as are wanted."""

    def __init__(self, workers=2):
        self.telemetry = Telemetry(
            SimpleNamespace(workers=dict.fromkeys(range(workers)))
        )

    def open(self, name, replicas=2, *, slow=(), waiting=(), metrics=("accuracy",)):
        run_id = f"{len(self.telemetry.trainers):032x}"
        self.telemetry.open(run_id, name, "client", list(metrics), replicas)
        self.telemetry.update(
            run_id, {"state": "open", "backlog": 3, "lag": 0.2, "dead_letters": 0}
        )
        record = self.telemetry.trainers[run_id]
        learning = [Replica(metrics) for _ in range(replicas)]
        for seconds in range(20):
            for number, replica in enumerate(learning):
                if number not in waiting:
                    replica.learn(STEPS_A_SECOND // (2 if number in slow else 1))
                reported = replica.snapshot(seconds)
                record.observe(f"replica-{number}", self.address(number), reported)
            record.sample(replicas)
        return record

    @staticmethod
    def address(number):
        return f"tcp://10.0.{number // 250}.{number % 250}:{40_000 + number}"

    def page(self, width=80, height=None, **options):
        reported = {
            "scheduler": "tcp://127.0.0.1:8786",
            "dashboard": "http://127.0.0.1:8787/status",
            **self.telemetry.read(recent=RECENT),
        }
        console = Console(width=width, height=height or 500, highlight=False)
        with console.capture() as captured:
            console.print(drawing(reported, width, height, **options))
        lines = captured.get().splitlines()
        assert max(map(len, lines)) <= width
        assert height is None or len(lines) <= height
        return "\n".join(line.rstrip() for line in lines)


def rows(page):
    """Replicas of the page, in order."""
    return re.findall(r"^(replica-\d+) ", page, re.MULTILINE)


def test_a_page_shows_how_training_stands():
    cluster = Cluster()
    cluster.open("flights")
    page = cluster.page()
    assert "tcp://127.0.0.1:8786  2 workers  http://127.0.0.1:8787/status" in page
    assert "flights  open" in page
    assert "2 of 2 replicas" in page
    assert "1,280 samples/s   20 steps/s" in page
    assert "loss 0.25   accuracy 0.75" in page
    assert "mean 1.5   p95 3.0   max 4.0" in page
    assert "20.0 kB/s sent   20.0 kB/s received" in page
    assert "backlog 3   lag 200 ms   dead letters 0   predictions/s 0" in page
    assert re.search(r"samples/s  ▁+█+ +loss ", page)
    assert re.search(
        r"replica-1 10\.0\.0\.1:40001 cpu +200 +640 +50 % +1\.5 +100 ms learning", page
    )


@pytest.mark.parametrize("width", [60, 80, 120, 200])
@pytest.mark.parametrize("height", [24, 50, None])
@pytest.mark.parametrize("replicas", [1, 2, 16, 200])
def test_a_page_fits_the_terminal(width, height, replicas):
    cluster = Cluster()
    cluster.open("flights", replicas)
    page = cluster.page(width, height)
    shown = len(rows(page))
    assert shown >= min(replicas, 8)
    if shown < replicas:
        assert f"and {replicas - shown} more: {replicas - shown} learning" in page


def test_of_many_replicas_the_troubled_and_slowest_are_shown_first():
    cluster = Cluster()
    record = cluster.open("flights", 200, slow=[150, 151], waiting=range(20, 40))
    for number in (7, 8):
        record.lose(record.replicas[f"replica-{number}"])
    shown = rows(cluster.page(80, 24))
    assert shown[:2] == ["replica-8", "replica-7"]  # the newest first
    assert shown[2] == "replica-20"
    assert {"replica-150", "replica-151"} <= set(shown)
    page = cluster.page(80, 24)
    assert "198 of 200 replicas" in page
    left = 20 - page.count(" waiting\n")
    assert f"more: {left} waiting, " in page


def test_lost_replicas_do_not_crowd_out_those_that_train():
    cluster = Cluster()
    record = cluster.open("flights", 60)
    for number in range(50):
        record.lose(record.replicas[f"replica-{number}"])
    states = [row["state"] for row in chosen(record.summary(2)["replicas"], 12)]
    assert states.count("learning") == 8
    assert states.count("lost") == 4


def test_replicas_that_fit_keep_their_order():
    cluster = Cluster()
    cluster.open("flights", 12, slow=[5])
    assert rows(cluster.page(80, 40)) == [f"replica-{number}" for number in range(12)]


def test_several_trainers_share_the_page():
    cluster = Cluster()
    cluster.open("flights", 40)
    cluster.open("imdb", 40)
    page = cluster.page(120, 50)
    first, second = page.split("imdb  open")
    assert abs(len(rows(first)) - len(rows(second))) <= 1
    assert len(page.splitlines()) == 50


def test_trainers_without_room_get_one_line():
    cluster = Cluster()
    for number in range(6):
        cluster.open(f"trainer {number}")
    page = cluster.page(80, 24)
    assert len(rows(page)) == 2
    for number in range(1, 6):
        assert f"trainer {number}  open  1,280 samples/s  loss 0.25" in page


def test_trainers_that_have_ended_are_shown_last_and_briefly():
    cluster = Cluster()
    for number in range(5):
        cluster.open(f"old {number}").end("closed")
    cluster.open("flights")
    page = cluster.page(80, 24)
    assert page.index("flights") < page.index("old 4")
    assert "steps" in page[page.index("old 4") :]
    assert "and 2 more that are over" in page
    assert page.count("closed") == 3


def test_the_newest_events_are_shown():
    cluster = Cluster()
    record = cluster.open("flights")
    run_id = record.run_id
    for number in range(5):
        message = {"run_id": run_id, "kind": "drift", "text": f"number {number}"}
        cluster.telemetry.event(message)
    record.lose(record.replicas["replica-1"])
    page = cluster.page(80, 24)
    reported = re.findall(r"\d\d:\d\d:\d\d  (.+)", page)
    assert reported == [
        "replica lost  replica-1 on tcp://10.0.0.1:40001",
        "drift  number 4",
        "drift  number 3",
    ]


def test_without_a_trainer_it_says_that_it_waits():
    assert "No trainer yet. Waiting" in Cluster().page()
    assert "No trainer and no worker yet." in Cluster(workers=0).page()


def test_long_names_and_many_metrics_are_cut():
    cluster = Cluster()
    cluster.open("x" * 300, metrics=["accuracy", *(f"m{n}" for n in range(50))])
    page = cluster.page(80, 24)
    assert "accuracy 0.75   m0 -" in page
    assert len(rows(page)) == 2


def test_what_looks_like_markup_is_only_text():
    cluster = Cluster()
    record = cluster.open("[red]name[/red]", metrics=["[bold]"])
    event = {"run_id": record.run_id, "kind": "note", "text": "[/] a\nb \x1b[2J"}
    cluster.telemetry.event(event)
    page = cluster.page()
    assert "[red]name[/red]  open" in page
    assert "[bold] 0.75" in page
    assert "note  [/] a b" in page
    assert "\x1b" not in page


def test_a_page_for_ascii_has_only_that():
    cluster = Cluster()
    cluster.open("flights")
    page = cluster.page(blocks=PLAIN)
    curve = next(line for line in page.splitlines() if line.startswith("samples/s "))
    assert curve.isascii()


def test_a_page_shows_when_a_trainer_only_predicts():
    cluster = Cluster()
    record = cluster.open("flights")
    assert re.search("learning +1,280 samples/s", cluster.page())
    record.update({"mode": "auto", "phase": "predicting"})
    assert re.search("predicting +1,280 samples/s", cluster.page())


def test_a_page_shows_what_the_replicas_share():
    cluster = Cluster()
    record = cluster.open("flights")
    assert not re.search("received +of", cluster.page())
    record.update({"share": "gradient"})
    assert re.search("received +of gradients", cluster.page())
