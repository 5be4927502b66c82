"""Real processes: kills, signals, and modules that only the client has."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import psutil
import pytest
import torch
from distributed import Client, LocalCluster
from helpers import class_data, classes, expected_weight, linear, linear_data
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors

pytestmark = pytest.mark.processes


@pytest.fixture
def client() -> Iterator[Client]:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def pids(client: Client) -> dict[str, int]:
    return client.run(os.getpid)


def wait_until(predicate, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


def test_a_mini_batch_in_flight_on_a_killed_worker_is_learned_by_another(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        victim, pid = next(iter(pids(client).items()))
        for number, item in enumerate(class_data(3000)):
            if number == 1000:
                os.kill(pid, signal.SIGKILL)
            source.emit(item)
        trainer.drain()
        assert sorted(report.index for report in reports) == list(range(3000))
        assert all(report.error is None for report in reports)
        alive = {info.address: info.alive for info in trainer.replicas}
        assert alive[victim] is False
        assert sum(alive.values()) >= 1
        assert trainer.session.dispatcher.redispatched > 0


def test_a_killed_replica_comes_back_and_nothing_is_lost_or_learned_twice(client):
    data = linear_data(4000)
    with ta.Trainer(client, **linear(replicas=2)) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        victim, pid = next(iter(pids(client).items()))
        for number, item in enumerate(data[:2000]):
            if number == 1000:
                os.kill(pid, signal.SIGKILL)
            source.emit(item)
        # Dask's nanny starts a worker, and that gets a replica.
        wait_until(lambda: sum(info.alive for info in trainer.replicas) == 2)
        for item in data[2000:]:
            source.emit(item)
        trainer.drain()
        assert sorted(report.index for report in reports) == list(range(4000))
        alive = [info for info in trainer.replicas if info.alive]
        assert victim not in {info.address for info in alive}
        assert all(info.samples > 0 for info in alive)
        states = trainer.state_dicts()
        assert len(states) == 2
        for state in states.values():
            weight = state["weight"].double()
            assert torch.allclose(weight, expected_weight(data), atol=1e-3)
        assert {"lost", "joined"} <= set(trainer.events["kind"])


def test_a_worker_that_is_killed_while_it_has_nothing_to_do_delays_no_call(client):
    with ta.Trainer(client, **classes()) as trainer:
        for item in class_data(20):
            trainer.train(*item)
        victim, pid = next(iter(pids(client).items()))
        survivor = next(i.address for i in trainer.replicas if i.address != victim)
        os.kill(pid, signal.SIGKILL)
        begin = time.monotonic()
        trainer.drain()
        assert survivor in trainer.state_dicts()
        assert victim not in trainer.state_dicts()
        assert trainer.predict(class_data(1)[0][0]).shape == (16, 3)
        assert trainer.evaluate(class_data(2))["samples"] == 32
        assert time.monotonic() - begin < 10
        alive = {info.address: info.alive for info in trainer.replicas}
        assert alive[victim] is False
        assert alive[survivor] is True


def test_a_restarted_cluster_refuses_work_instead_of_hanging(client):
    trainer = ta.Trainer(client, **classes())
    (item,) = class_data(1)
    trainer.train(*item)
    client.restart()
    for call in (
        lambda: trainer.train(*item),
        lambda: trainer.predict(item[0]),
        lambda: trainer.evaluate([item]),
        trainer.state_dict,
    ):
        with pytest.raises(errors.NoReplicasError, match="Start workers, and go on"):
            call()
    trainer.close()
    with ta.Trainer(client, **classes()) as another:
        assert another.train(*item).error is None


def test_a_stopped_worker_stops_the_source_and_memory_stays_bounded(client):
    with ta.Trainer(client, **classes(replicas=1, max_in_flight=8)) as trainer:
        (info,) = trainer.replicas
        process = psutil.Process(pids(client)[info.address])
        for item in class_data(5):
            trainer.train(*item)
        source = Stream()
        source.train(trainer).sink(lambda report: None)
        data = class_data(1, samples=1000)[0]
        process.suspend()
        try:
            import threading

            feeding = threading.Thread(
                target=lambda: [source.emit(data) for _ in range(100)]
            )
            feeding.start()
            wait_until(lambda: trainer.session.dispatcher.waiting)
            assert trainer.backlog <= 8 + 1
            held = sum(lane.nbytes for lane in trainer.session.dispatcher.lanes)
            assert held <= 8 * (data[0].nbytes + data[1].nbytes)
            assert feeding.is_alive()
        finally:
            process.resume()
        feeding.join(60)
        assert not feeding.is_alive()
        trainer.drain()
        assert trainer.history.shape[0] == 105


def deadly():
    """A classifier whose process ends on inputs of 666."""
    model = classes()["model"]()

    def end_on(module, inputs):
        if (inputs[0] == 666).any():
            os._exit(9)

    model.register_forward_pre_hook(end_on)
    return model


def test_a_mini_batch_that_kills_its_worker_is_refused_before_all_are_killed(client):
    client.cluster.scale(3)
    client.wait_for_workers(3)
    data = class_data(100)
    data[50][0][0, 0] = 666
    with ta.Trainer(client, **classes(model=deadly)) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        for item in data:
            source.emit(item)
        trainer.drain()
        assert sorted(report.index for report in reports) == list(range(100))
        (refused,) = (report for report in reports if report.error is not None)
        (letter,) = trainer.dead_letters
        assert refused.index == letter.index == 50
        assert type(letter.error) is errors.KilledReplicasError
        assert trainer.train(*data[0]).error is None
        assert trainer.events["kind"].tolist().count("lost") <= 3


def test_a_prediction_that_kills_its_worker_leaves_one_replica_alive(client):
    client.cluster.scale(3)
    client.wait_for_workers(3)
    (item,) = class_data(1)
    deadly_input = item[0].copy()
    deadly_input[0, 0] = 666
    with ta.Trainer(client, **classes(model=deadly)) as trainer:
        trainer.train(*item)
        with pytest.raises(errors.KilledReplicasError, match="call again"):
            trainer.predict(deadly_input)
        source = Stream()
        answers = source.predict(trainer, on_error="dead-letter").sink_to_list()
        wait_until(lambda: sum(info.alive for info in trainer.replicas) == 3)
        for x in (item[0], deadly_input, item[0]):
            source.emit(x)
        assert len(answers) == 2
        (letter,) = trainer.dead_letters
        assert type(letter.error) is errors.KilledReplicasError
        assert trainer.train(*item).error is None
        # The model lives on: no replica began anew.
        assert all(version > 0 for version in versions(trainer))


def versions(trainer):
    trainer.drain()
    return [info.version for info in trainer.replicas if info.alive]


def test_ctrl_c_while_it_starts_leaves_no_replica_behind(client):
    tasks = client.cluster.scheduler.tasks

    def slowly():
        time.sleep(1)
        return classes()["model"]()

    def interrupt():
        wait_until(lambda: any(key.startswith("tensair-") for key in list(tasks)))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        ta.Trainer(client, **classes(model=slowly))
    thread.join()
    wait_until(lambda: not any(client.run(actors).values()))
    wait_until(lambda: not any(key.startswith("tensair-") for key in list(tasks)))


def actors(dask_worker) -> list[str]:
    return list(dask_worker.state.actors)


def test_a_killed_client_leaves_no_replica_behind(client):
    code = textwrap.dedent(
        """
        import functools, sys, torch
        from distributed import Client
        import tensair_dask as ta
        client = Client(sys.argv[1])
        trainer = ta.Trainer(
            client,
            model=lambda: torch.nn.Linear(3, 2),
            loss=torch.nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.05),
        )
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    address = client.scheduler.address
    with subprocess.Popen(
        [sys.executable, "-c", code, address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout.readline() == b"ready\n"

        def replicas(dask_worker) -> tuple[int, int]:
            import threading

            names = [thread.name for thread in threading.enumerate()]
            return len(dask_worker.state.actors), sum("tensair-" in n for n in names)

        assert set(client.run(replicas).values()) == {(1, 1)}
        process.kill()
    wait_until(lambda: set(client.run(replicas).values()) == {(0, 0)})


@pytest.fixture
def cluster_elsewhere(tmp_path) -> Iterator[str]:
    """A scheduler and two workers started by hand, in a folder of their own."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    start = functools.partial(
        subprocess.Popen, cwd=folder, stdout=subprocess.DEVNULL, text=True
    )
    dask = [sys.executable, "-m", "dask"]
    local = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
    scheduler = start(
        [*dask, "scheduler", "--port", "0", *local], stderr=subprocess.PIPE
    )
    address = ""
    while not address:
        line = scheduler.stderr.readline()
        assert line, "the scheduler did not start"
        if "Scheduler at:" in line:
            address = line.rpartition(" ")[2].strip()
    workers = start(
        [*dask, "worker", address, "--nthreads", "1", "--nworkers", "2", *local],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        for process in (workers, scheduler):
            process.terminate()
            process.wait(30)
        scheduler.stderr.close()


def test_training_does_not_make_the_scheduler_import_torch(cluster_elsewhere):
    with Client(cluster_elsewhere) as client:
        client.wait_for_workers(2, timeout=30)
        with ta.Trainer(client, **linear()) as trainer:
            for x, y in linear_data(4):
                trainer.train(x, y).raise_for_error()
            assert len(trainer.replicas) == 2
            assert not client.run_on_scheduler(lambda: "torch" in sys.modules)


SCRIPT = """
import functools, sys
import numpy as np
import torch
from distributed import Client
import tensair_dask as ta
import my_model

def build():
    return my_model.Net()

if __name__ == "__main__":
    client = Client(sys.argv[1])
    client.wait_for_workers(2, timeout=30)
    for factory in (build, my_model.Net, lambda: my_model.Net()):
        with ta.Trainer(
            client,
            model=factory,
            loss=my_model.loss,
            optimizer=functools.partial(torch.optim.SGD, lr=0.05),
        ) as trainer:
            x = np.zeros((4, 3), "float32")
            report = trainer.train(x, np.zeros(4, int)).raise_for_error()
            assert len(trainer.replicas) == 2
    print("learned")
"""


def test_factories_of_main_and_of_modules_that_only_the_client_has_reach_the_workers(
    cluster_elsewhere, tmp_path
):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "my_layers.py").write_text("CLASSES = 2\n")
    (mine / "my_model.py").write_text(
        "import torch\nimport my_layers\n"
        "class Net(torch.nn.Linear):\n"
        "    def __init__(self):\n        super().__init__(3, my_layers.CLASSES)\n"
        "def loss(prediction, y):\n"
        "    return torch.nn.functional.cross_entropy(prediction, y)\n"
    )
    script = mine / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), cluster_elsewhere],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=100,
    )
    assert done.stdout == "learned\n", done.stderr
