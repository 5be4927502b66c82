"""A trainer that is not closed reports what is lost when client or program ends."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all
from receivers import Hearer

import tensair_dask as ta

SCRIPT = """
    import functools, sys
    import dask, numpy as np, torch
    from distributed import Client, LocalCluster
    from streamz import Stream
    import tensair_dask as ta

    def main(how, folder):
        cluster = LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        )
        trainer = ta.Trainer(
            Client(cluster),
            model=functools.partial(torch.nn.Linear, 4, 2),
            loss=torch.nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            checkpoint_to=folder,
        )
        source = Stream()
        source.partition(8).train(trainer)
        for number in range(84):
            source.emit((np.ones(4, "float32"), np.int64(number % 2)))
        if how == "raises":
            raise ZeroDivisionError
        if how == "closes":
            trainer.close()
        if how == "drains and saves":
            trainer.drain()
            trainer.save()

    if __name__ == "__main__":
        main(*sys.argv[1:])
"""


def run(tmp_path, how: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, str(script), how, str(tmp_path / "checkpoints")]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False
    )
    return ended.stderr


@pytest.mark.processes
@pytest.mark.parametrize("how", ["ends", "raises"])
def test_a_script_that_ends_says_what_is_lost(tmp_path, how):
    reported = run(tmp_path, how)
    assert reported.count("was still open when the program ended") == 1
    assert "Up to 10 of 10 mini-batches are in no checkpoint" in reported
    assert "such as partition, held items" in reported
    assert "handed over" not in reported


@pytest.mark.processes
@pytest.mark.parametrize("how", ["closes", "drains and saves"])
def test_a_trainer_that_has_closed_or_saved_says_nothing(tmp_path, how):
    reported = run(tmp_path, how)
    assert "still open" not in reported
    assert "handed over" not in reported


def left_open(caplog) -> list[str]:
    return [each for each in caplog.messages if "still open when" in each]


def test_a_client_that_closes_before_the_trainer_says_it(tmp_path, caplog):
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            folder = str(tmp_path / "checkpoints")
            trainer = ta.Trainer(client, **classes(checkpoint_to=folder))
            for x, y in class_data(3):
                trainer.train(x, y)
        [text] = left_open(caplog)
        assert "its Dask client closed" in text
        assert "Up to 3 of 3" in text
        assert text in [*trainer.events.text]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_an_asynchronous_client_says_it_too(c, s, a, caplog):
    async with Client(s.address, asynchronous=True) as client:
        trainer = await ta.Trainer(client, **classes())
        for pair in class_data(50):
            trainer.session.intake.feed(pair, lambda item: item, Hearer())
        assert trainer.backlog
    [text] = left_open(caplog)
    assert "mini-batches were not learned" in text


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_nothing_is_said_where_nothing_is_lost(c, s, a):
    async with Client(s.address, asynchronous=True) as client:
        trainer = await ta.Trainer(client, **classes())
        await train_all(trainer, class_data(3))
        assert trainer.run_id in client._periodic_callbacks
    assert not [each for each in trainer.events.text if "still open" in each]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_trainer_that_is_closed_is_listened_for_no_longer(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        assert trainer.run_id in c._periodic_callbacks
    assert trainer.run_id not in c._periodic_callbacks
