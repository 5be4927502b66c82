"""The methods that `streamz.Stream` gets, each loaded when it is first called.

Their modules import torch, which the scheduler, where this package is loaded as well,
must not pay for. Entry points tell streamz of them (see pyproject.toml), but only if
the package is installed with these; so ``import tensair_dask`` sees to it itself.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["NODES", "SOURCES", "add"]

STREAMZ = "streamz"

# Where they are defined. Methods of a stream, and of the class.
NODES = {
    "predict": "tensair_dask.streams.predict_node",
    "predict_then_train": "tensair_dask.streams.predict_then_train_node",
    "train": "tensair_dask.streams.train_node",
    "try_map": "tensair_dask.streams.try_map_node",
}
SOURCES = {
    "from_batches": "tensair_dask.streams.sources",
    "from_csv_chunks": "tensair_dask.streams.sources",
    "from_kafka_records": "tensair_dask.streams.sources",
    "from_lines": "tensair_dask.streams.sources",
}


def add() -> None:
    """Add the methods to streamz, now, or when somebody imports it."""
    streamz = sys.modules.get(STREAMZ)
    if streamz is None:
        sys.meta_path.insert(0, _Finder())
    elif hasattr(streamz, "Stream"):
        _add_to(streamz.Stream)


def _add_to(stream: Any) -> None:
    # What is changed in streamz is so before a stream is built.
    importlib.import_module("tensair_dask.streams.streamz_patches")
    for name, module in (NODES | SOURCES).items():
        if not hasattr(stream, name):  # else by an entry point
            method = _loading(stream, name, module)
            setattr(stream, name, method if name in NODES else staticmethod(method))


def _loading(stream: Any, name: str, module: str) -> Any:
    def load(*args: Any, **kwargs: Any) -> Any:
        # Importing it puts the method itself in the place of this one.
        importlib.import_module(module)
        return getattr(stream, name)(*args, **kwargs)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = f"See `{module}.{name}`, which is loaded when this is called."
    return load


class _Finder(MetaPathFinder):
    """Finds streamz as ever, and has the methods added when it was loaded."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Find only streamz, once."""
        if fullname != STREAMZ or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """Loads a module with its own loader, then adds the methods."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Create the module as its loader does."""
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Execute it, and leave no trace of this loader."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        add()
