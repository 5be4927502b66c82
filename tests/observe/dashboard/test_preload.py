from __future__ import annotations

import json
import subprocess
import sys
import urllib.request

import pytest


@pytest.mark.processes
def test_a_scheduler_may_have_the_plugins_from_the_start(tmp_path):
    file = tmp_path / "scheduler.json"
    line = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    line += ["--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)]
    line += ["--dashboard-address", "127.0.0.1:0"]
    line += ["--preload", "tensair_dask.preload"]
    with subprocess.Popen(line, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        try:
            reported = b""
            for text in process.stderr:
                reported += text
                if b"Registering" in text:
                    break
            assert file.exists(), reported.decode()
            port = json.loads(file.read_text())["services"]["dashboard"]
            url = f"http://127.0.0.1:{port}/json/tensair.json"
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert json.load(answer)["trainers"] == []
        finally:
            process.kill()
