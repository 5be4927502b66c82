"""The command as people use it: in a terminal, in a pipe, against real schedulers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from click.testing import CliRunner
from terminals import in_terminal, read_until

from tensair_dask.cli import tensair
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.terminal.program import find_scheduler

MONITOR = [sys.executable, "-m", "tensair_dask", "monitor"]


def test_the_scheduler_is_what_was_given_or_configured_or_usual(tmp_path):
    file = tmp_path / "scheduler.json"
    file.write_text(json.dumps({"address": "tcp://file:1", "workers": {}}))
    with dask.config.set({"scheduler-address": "tcp://configured:1"}):
        assert find_scheduler("tcp://given:1", file) == "tcp://given:1"
        assert find_scheduler(None, file) == "tcp://file:1"
        assert find_scheduler(None) == "tcp://configured:1"
    with dask.config.set({"scheduler-address": None}):
        assert find_scheduler(None) == "tcp://127.0.0.1:8786"


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json"])
def test_a_file_that_names_no_scheduler_is_refused(tmp_path, text):
    file = tmp_path / "scheduler.json"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match="does not say where a scheduler is"):
        find_scheduler(None, file)


@pytest.mark.parametrize(
    ("arguments", "reported"),
    [
        (["tcp://host:1", "--scheduler-file", __file__], "not both"),
        (["--scheduler-file", "/nowhere"], "does not exist"),
        (["-n", "0"], "'-n'"),
        (["--interval", "0"], "'--interval'"),
    ],
)
def test_wrong_usage_exits_2(arguments, reported):
    result = CliRunner().invoke(tensair, ["monitor", *arguments])
    assert result.exit_code == 2
    assert reported in result.output


# Trains and then waits until somebody closes its standard input.
TRAINING = """
import sys
from distributed import Client, LocalCluster
from helpers import class_data, classes
import tensair_dask as ta

if __name__ == "__main__":
    address = "127.0.0.1:0"
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            dashboard_address=address,
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, name="flowers", **classes()) as trainer,
    ):
        for x, y in class_data(30):
            trainer.train(x, y)
        print(cluster.scheduler_address, trainer.run_id, flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """Address of a cluster and run of a trainer on it, in a process of their own."""
    file = tmp_path_factory.mktemp("training") / "training.py"
    file.write_text(TRAINING)
    tests = str(Path(__file__).parents[2])
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=file.parent,
    ) as process:
        address, run_id = process.stdout.readline().split()
        wait_until_it_is_shown_as_open(address)
        yield address, run_id
        process.stdin.close()


def wait_until_it_is_shown_as_open(address: str) -> None:
    """Wait for what the trainer tells the scheduler from time to time."""
    line = [*MONITOR, address, "--json", "--interval", "0.1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE) as watching:
        for page in watching.stdout:
            if json.loads(page)["trainers"][0]["state"] == "open":
                break
        watching.kill()


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MONITOR, *arguments], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.processes
@pytest.mark.xdist_group("monitor")  # one cluster for all of them
class TestWhileItTrains:
    def test_a_pipe_gets_a_json_object_a_line(self, training):
        address, run_id = training
        done = run(address, "--json", "-n", "3", "--interval", "0.2")
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(lines) == 3
        assert lines[0]["time"] < lines[1]["time"] < lines[2]["time"]
        assert lines[2]["scheduler"] == address
        assert lines[2]["trainers"][0]["run_id"] == run_id
        assert done.stderr == ""

    def test_what_is_learned_comes_down_the_pipe(self, training):
        address, _ = training
        line = [*MONITOR, address, "--json", "--interval", "0.1"]
        with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
            for reported in process.stdout:
                if json.loads(reported)["trainers"][0]["totals"]["steps"] == 30:
                    break
            process.send_signal(signal.SIGINT)
            process.stdout.read()
        assert process.returncode == 130

    def test_a_file_gets_plain_pages(self, training):
        address, _ = training
        done = run(address, "-n", "2", "--interval", "0.2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("flowers  open") == 2
        assert done.stdout.count("replica-1 127.0.0.1:") == 2
        assert "\x1b" not in done.stdout

    def test_a_terminal_without_unicode_gets_ascii(self, training):
        address, _ = training
        done = run(address, "-n", "1", env={**os.environ, "PYTHONIOENCODING": "ascii"})
        assert done.returncode == 0, done.stderr
        assert "flowers  open" in done.stdout
        assert done.stdout.isascii()

    @pytest.mark.parametrize("option", ["--json", "--interval=0.2"])
    def test_a_reader_that_has_seen_enough_ends_it_quietly(self, training, option):
        address, _ = training
        line = [*MONITOR, address, "--interval", "0.1", option]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        with process:
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 0

    def test_it_is_a_command_of_dask_and_finds_the_configured_scheduler(self, training):
        address, _ = training
        done = subprocess.run(
            [sys.executable, "-m", "dask", "tensair", "monitor", "--json", "-n", "1"],
            capture_output=True,
            text=True,
            env={**os.environ, "DASK_SCHEDULER_ADDRESS": address},
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trainers"][0]["name"] == "flowers"

    def test_torch_is_not_imported(self, training):
        address, _ = training
        line = [sys.executable, "-X", "importtime", *MONITOR[1:], address, "-n", "1"]
        done = subprocess.run(line, capture_output=True, text=True, check=True)
        assert "flowers  open" in done.stdout
        imported = set(re.findall(r"\| +(\S+)$", done.stderr, re.MULTILINE))
        assert "tensair_dask.observe.terminal.drawing" in imported
        assert not imported & {"torch", "pandas", "bokeh", "streamz"}

    @pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 50)])
    def test_ctrl_c_gives_the_terminal_back(self, training, columns, lines):
        address, _ = training
        command = [*MONITOR, address, "--interval", "0.2"]
        with in_terminal(command, columns, lines) as (process, screen):
            shown = read_until(screen, r"(?s)(flowers.*){2}learning|waiting")
            assert "\x1b[?1049h" in shown  # the other screen of the terminal
            os.killpg(process.pid, signal.SIGINT)
            rest = read_until(screen, None)
            assert process.wait() == 130
        left, last = rest.rsplit("\x1b[?1049l", 1)
        assert "\x1b[?25h" in left + last  # the cursor
        assert "flowers" in last
        assert "Traceback" not in rest
        assert "Error" not in rest


@pytest.mark.processes
def test_where_nobody_listens_that_is_one_line():
    done = run("tcp://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error: No scheduler answers at tcp://127.0.0.1:1.")
    assert done.stderr.count("\n") == 1


@contextlib.contextmanager
def scheduler(tmp_path, **environment: str) -> Iterator[tuple[psutil.Popen, str]]:
    """A scheduler in a process of its own, and the file that names its address."""
    file = tmp_path / "scheduler.json"
    line = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    line += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
    line += ["--dashboard-address", "127.0.0.1:0"]
    process = psutil.Popen(
        line,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        cwd=tmp_path,
    )
    try:
        for reported in process.stderr:
            if b"Registering" in reported:
                break
        assert file.exists()
        yield process, str(file)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.mark.processes
def test_it_waits_for_a_trainer_and_reports_when_the_scheduler_goes(tmp_path):
    with scheduler(tmp_path) as (process, file):
        done = run("--scheduler-file", file, "--json", "-n", "1")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["trainers"] == []
        command = [*MONITOR, "--scheduler-file", file, "--interval", "0.2"]
        with in_terminal(command, 80, 24) as (monitor, screen):
            read_until(screen, "No trainer and no worker yet")
            process.kill()
            rest = read_until(screen, None)
            assert monitor.wait() == 1
    assert re.search(r"\x1b\[\?1049l(?s:.)*Error:.* has gone\s+away", rest)
    assert "Traceback" not in rest


@pytest.mark.processes
def test_the_error_for_a_scheduler_without_the_package_says_what_to_install(tmp_path):
    shadow = tmp_path / "shadow" / "tensair_dask"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tensair_dask'\")"
    )
    with scheduler(tmp_path, PYTHONPATH=str(shadow.parent)) as (_, file):
        done = run("--scheduler-file", file, "-n", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: The scheduler at tcp://127.0.0.1:")
    assert "No module named 'tensair_dask'" in done.stderr
    assert "pip install tensair-dask" in done.stderr
    assert done.stderr.count("\n") == 1
