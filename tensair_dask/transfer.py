"""Send users' functions and classes to workers that cannot import their modules.

A factory from a notebook or from ``__main__`` travels by value anyway. One from a
module beside the script would travel as an import, and fail where the module does
not exist: such modules are found out and sent by value too. This is the one place
where that is decided.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle

from tensair_dask.errors import ConfigurationError
from tensair_dask.wording import in_words

__all__ = ["by_value", "dumps", "missing_modules", "user_modules"]


# Sent by value by cloudpickle itself, or on every worker.
_NEVER = ("__main__", "__mp_main__", "tensair_dask")


def user_modules() -> list[str]:
    """Top-level names of the loaded modules that are not from an installed package."""
    installed = _installed_folders()
    names = set()
    for top in {name.partition(".")[0] for name in list(sys.modules)}:
        if top in _NEVER or top in sys.stdlib_module_names:
            continue
        file = getattr(sys.modules.get(top), "__file__", None)
        if file is None or any(Path(file).is_relative_to(each) for each in installed):
            continue
        names.add(top)
    return sorted(names)


def missing_modules(names: Iterable[str]) -> list[str]:
    """Which of these modules cannot be imported here; runs on the workers."""
    import importlib.util

    missing = []
    for name in names:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):
            found = name in sys.modules
        if not found:
            missing.append(name)
    return missing


@contextmanager
def by_value(names: Iterable[str]) -> Iterator[None]:
    """Pickle what comes from these modules by value, within the context."""
    registered: list[ModuleType] = []
    try:
        for name in names:
            module = sys.modules.get(name)
            if module is None or name in cloudpickle.list_registry_pickle_by_value():
                continue
            cloudpickle.register_pickle_by_value(module)
            registered.append(module)
        yield
    finally:
        for module in registered:
            cloudpickle.unregister_pickle_by_value(module)


def dumps(obj: Any, names: Iterable[str], what: str) -> bytes:
    """Pickle an object, with what comes from the named modules by value.

    Raises
    ------
    ConfigurationError
        If the object cannot be pickled.
    """
    try:
        with by_value(names):
            return cloudpickle.dumps(obj)
    except Exception as error:
        raise ConfigurationError(
            f"{what} cannot be sent to the workers: {in_words(error)}. "
            "It, and all that it refers to, must be picklable: build locks, files and "
            "connections inside the factory, not outside."
        ) from error


def _installed_folders() -> list[Path]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(path for path in sys.path if path.endswith(("-packages",)))
    return [Path(folder) for folder in folders]
