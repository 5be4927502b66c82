from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from tensair_dask.coordinator import code_transfer
from tensair_dask.coordinator.code_transfer import (
    UserModules,
    compare,
    dumps,
    user_modules,
)
from tensair_dask.errors import ConfigurationError


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Two modules beside a script, one of which imports the other."""
    (tmp_path / "my_layers.py").write_text(
        "WIDTH = 7\ndef width():\n    return WIDTH\n"
    )
    (tmp_path / "my_model.py").write_text(
        "import my_layers\nfrom my_layers import width\n"
        "class Model:\n    def size(self):\n        return width() + my_layers.WIDTH\n"
        "def build():\n    return Model()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_model

    yield my_model
    del sys.modules["my_model"], sys.modules["my_layers"]


def load_elsewhere(payload: bytes, tmp_path) -> str:
    code = (
        "import sys, cloudpickle; "
        "print(cloudpickle.loads(sys.stdin.buffer.read())().size())"
    )
    return subprocess.run(
        [sys.executable, "-c", code], input=payload, capture_output=True, cwd=tmp_path
    ).stdout.decode()


def test_users_modules_are_found_and_installed_ones_are_not(modules):
    names = user_modules()
    assert {"my_model", "my_layers"} <= set(names)
    assert not {"torch", "numpy", "tensair_dask", "os", "__main__"} & set(names)


def test_a_package_without_an_init_file_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_models").mkdir()
    (tmp_path / "my_models" / "net.py").write_text("def build():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("my_models.net")

    assert "my_models" in user_modules()
    sources, _ = UserModules().describe()
    assert list(sources["my_models"]) == ["net.py"]
    del sys.modules["my_models.net"], sys.modules["my_models"]


def test_modules_are_compared_by_their_source(modules, tmp_path, monkeypatch):
    sources, process = UserModules().describe()
    assert compare(sources, process) is None  # this very process
    # As if both were loaded by a worker that began after they were last edited.
    monkeypatch.setattr(code_transfer, "_began", lambda pid: time.time() + 60)
    mine = {name: sources[name] for name in ("my_layers", "my_model")}
    assert compare(mine, "another") == ([], [])
    assert compare({**mine, "no_such_module": {}}, "another") == (
        ["no_such_module"],
        [],
    )
    (tmp_path / "my_layers.py").write_text("WIDTH = 8\n")
    assert compare(mine, "another") == (["my_layers"], [])


def test_a_file_is_read_again_only_when_it_was_edited(modules, tmp_path, monkeypatch):
    read: list[str] = []

    def counted(file: Path, as_ever=Path.read_bytes) -> bytes:
        read.append(file.name)
        return as_ever(file)

    monkeypatch.setattr(Path, "read_bytes", counted)
    first, _ = UserModules().describe()
    assert read.count("my_layers.py") == read.count("my_model.py") == 1
    read.clear()
    assert UserModules().describe()[0] == first
    assert read == []
    (tmp_path / "my_layers.py").write_text("WIDTH = 70\n")
    second, _ = UserModules().describe()
    assert read == ["my_layers.py"]
    assert second["my_layers"] != first["my_layers"]


def test_what_may_have_been_loaded_before_it_was_edited_is_stale(modules):
    sources, _ = UserModules().describe()
    mine = {"my_layers": sources["my_layers"]}
    assert compare(mine, "another") == ([], ["my_layers"])


def reported(*answers: Any) -> list[str]:
    mine = UserModules()
    mine.describe()
    for answer in answers:
        mine.take(answer)
    return [each for each in mine.by_value() if each.startswith("my_")]


def test_modules_that_depend_on_an_edited_module_travel_with_it(modules, monkeypatch):
    monkeypatch.setattr(code_transfer, "_began", lambda pid: time.time() + 60)
    assert reported(([], [])) == []
    assert reported(([], []), (["my_layers"], [])) == ["my_layers", "my_model"]
    assert reported(([], ["my_model"])) == ["my_model"]
    assert reported(None, None) == []


def test_an_edit_here_counts_without_a_word_of_the_workers(modules):
    assert reported(([], [])) == ["my_layers", "my_model"]
    assert reported(None) == []  # workers within this process use what is here


def test_a_module_that_was_loaded_later_travels_by_value(modules, monkeypatch):
    monkeypatch.setattr(code_transfer, "_began", lambda pid: time.time() + 60)
    mine = UserModules()
    mine.take(([], []))
    assert "my_model" in mine.by_value()
    mine.describe()
    assert "my_model" not in mine.by_value()


WORKER = """
import pickle, sys, cloudpickle
import my_model
from tensair_dask.coordinator.code_transfer import compare
say = lambda answer: (pickle.dump(answer, sys.stdout.buffer), sys.stdout.buffer.flush())
say(my_model.build().size())
say(compare(*pickle.load(sys.stdin.buffer)))
say(cloudpickle.loads(pickle.load(sys.stdin.buffer))().size())
"""


@pytest.mark.parametrize("edited", ["my_model", "my_layers"])
def test_a_worker_that_has_the_old_module_gets_the_edited_one(
    modules, tmp_path, edited
):
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env=environment,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        assert pickle.load(worker.stdout) == 14
        file = tmp_path / f"{edited}.py"
        file.write_text(file.read_text().replace("7", "70").replace("+", "+ 1 +"))
        for name in ("my_layers", "my_model"):
            importlib.reload(sys.modules[name])
        expected = modules.build().size()
        assert expected != 14
        mine = UserModules()
        pickle.dump(mine.describe(), worker.stdin)
        worker.stdin.flush()
        mine.take(pickle.load(worker.stdout))
        pickle.dump(mine.dumps(modules.build, "The model"), worker.stdin)
        worker.stdin.flush()
        assert pickle.load(worker.stdout) == expected


def test_what_cannot_travel_by_value_is_imported_with_a_word(modules, tmp_path, caplog):
    modules.lock = threading.Lock()
    exec("def build():\n    return lock\n", vars(modules))
    mine = UserModules()
    mine.describe()
    mine.take(([], ["my_model"]))
    assert cloudpickle.loads(mine.dumps(modules.build, "The model")) is modules.build
    assert "restart them" in caplog.text
    mine.take((["my_model", "my_layers"], []))
    with pytest.raises(ConfigurationError, match="inside the factory"):
        mine.dumps(modules.build, "The model")


def test_a_factory_of_a_missing_module_arrives_by_value_with_what_it_imports(
    modules, tmp_path
):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    payload = dumps(modules.build, ["my_layers", "my_model"], "The model")
    assert load_elsewhere(payload, elsewhere) == "14\n"
    assert load_elsewhere(cloudpickle.dumps(modules.build), elsewhere) == ""


def test_nothing_stays_registered(modules):
    dumps(modules.build, ["my_layers", "my_model"], "The model")
    assert not cloudpickle.list_registry_pickle_by_value()


def test_what_cannot_be_pickled_says_what_to_do():
    lock = threading.Lock()
    with pytest.raises(ConfigurationError, match=r"inside the factory, not outside"):
        dumps(lambda: lock, [], "The model")
