from __future__ import annotations

import subprocess
import sys
import threading

import cloudpickle
import pytest

from tensair_dask.errors import ConfigurationError
from tensair_dask.transfer import dumps, missing_modules, user_modules


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


def test_missing_modules_are_those_that_cannot_be_imported():
    assert missing_modules(["json", "torch", "no_such_module"]) == ["no_such_module"]


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
