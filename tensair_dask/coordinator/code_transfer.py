"""Send users' functions and classes to workers that do not have them as they are here.

A factory from a notebook or from ``__main__`` travels by value anyway. One from a
module beside the script would travel as an import: it would fail where the module does
not exist, and bring other code where it was edited meanwhile. Such modules are found
out and sent by value too. This is the one place where that is decided.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import sys
import sysconfig
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import cloudpickle
import psutil

from tensair_dask._wording import in_words
from tensair_dask.errors import ConfigurationError, RaisedError

__all__ = ["UserModules", "by_value", "compare", "dumps", "user_modules"]

logger = logging.getLogger(__name__)

# Sent by value by cloudpickle itself, or on every worker.
_NEVER = ("__main__", "__mp_main__", "tensair_dask")

# Of each module the digests of its files, by their paths within it.
Sources: TypeAlias = dict[str, dict[str, str]]

_OWN = uuid.uuid4().hex


def _process() -> str:
    """Name this process: a fork of it has another name."""
    return f"{_OWN}-{os.getpid()}"


class UserModules:
    """Which modules of the user's travel by value, and which are imported by workers.

    A module is imported where that gives what is here: if each worker finds the same
    source, and if neither this process nor the worker's may have loaded it before it
    was last edited. All others travel by value, with those that depend on them. What
    lives in this very process is used as it is.
    """

    def __init__(self) -> None:
        self._looked_at: set[str] = set()
        self._other: set[str] = set()
        self._stale: set[str] = set()
        self._elsewhere = False

    def describe(self) -> tuple[Sources, str]:
        """Give what a worker needs to `compare`."""
        names = user_modules()
        self._looked_at.update(names)
        loaded = _loaded(names)
        return {name: _sources(name, loaded[name]) for name in names}, _process()

    def take(self, answer: tuple[list[str], list[str]] | None) -> None:
        """Take in what a worker has answered."""
        if answer is not None:
            self._elsewhere = True
            self._other.update(answer[0])
            self._stale.update(answer[1])

    def by_value(self) -> list[str]:
        """Name the modules that travel by value just now."""
        if not self._elsewhere:
            return []
        loaded = _loaded(user_modules())
        chosen = {
            name
            for name, modules in loaded.items()
            if name in self._other
            or name in self._stale
            or name not in self._looked_at
            or _was_edited(modules)
        }
        return _with_dependents(chosen, loaded)

    def dumps(self, obj: Any, what: str) -> bytes:
        """Pickle an object as the workers need it.

        Raises
        ------
        ConfigurationError
            If it cannot be pickled.
        """
        names = self.by_value()
        try:
            return dumps(obj, names, what)
        except ConfigurationError as error:
            here = (self._looked_at - self._other).intersection(names)
            if not here:
                raise
            payload = dumps(obj, set(names) - here, what)
            logger.warning(
                "Workers import %s, since it cannot be sent: restart them when it was "
                "edited while they ran. %s",
                ", ".join(sorted(here)),
                error,
            )
            return payload


def user_modules() -> list[str]:
    """Top-level names of the loaded modules that are not from an installed package."""
    installed = _installed_folders()
    names = set()
    for top in {name.partition(".")[0] for name in list(sys.modules)}:
        if top in _NEVER or top in sys.stdlib_module_names:
            continue
        place = _place(sys.modules.get(top))
        if place is not None and not str(place).startswith(installed):
            names.add(top)
    return sorted(names)


def compare(
    sources: Mapping[str, Mapping[str, str]], process: str
) -> tuple[list[str], list[str]] | None:
    """Compare the client's modules with those here; runs on the workers.

    Returns
    -------
    other
        Names of those that are not here, or not with the same source.
    stale
        Of those whose source is the same, but that may have been loaded before it was.
    None
        If this is the client's own process.
    """
    if process == _process():
        return None
    other, stale = [], []
    loaded = _loaded(sources)
    for name, theirs in sources.items():
        if _folder(name) is None or dict(theirs) != _sources(name, only=theirs):
            other.append(name)
        elif name in sys.modules and _was_edited(loaded[name]):
            stale.append(name)
    return other, stale


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
    except BaseException as error:
        raised = RaisedError.caught(error)
        raise ConfigurationError(
            f"{what} cannot be sent to the workers: {in_words(raised)}. "
            "It, and all that it refers to, must be picklable: build locks, files and "
            "connections inside the factory, not outside."
        ) from error


# ---- modules and their files ----------------------------------------------------


def _place(module: ModuleType | None) -> Path | None:
    """Where a module lies: its file, or the folder of a package without one."""
    file = getattr(module, "__file__", None)
    if file is None:
        file = next(iter(getattr(module, "__path__", ())), None)
    return None if file is None else Path(file)


def _loaded(names: Iterable[str]) -> dict[str, list[ModuleType]]:
    """Find the loaded modules of each package, in one pass over all that are loaded.

    There may be thousands of these, and hundreds of packages of the user's; and the
    event loop waits.
    """
    found: dict[str, list[ModuleType]] = {name: [] for name in names}
    for each, module in list(sys.modules.items()):
        modules = found.get(each.partition(".")[0])
        if modules is not None and module is not None:
            modules.append(module)
    return found


def _files(modules: Iterable[ModuleType]) -> Iterator[str]:
    for module in modules:
        file = getattr(module, "__file__", None)
        if file is not None:
            yield file


def _sources(
    name: str, modules: Iterable[ModuleType] = (), only: Iterable[str] | None = None
) -> dict[str, str]:
    """Digests of a package's files by their paths: of its modules, or of these only."""
    folder = _folder(name)
    if folder is None:
        return {}
    if only is None:
        files = [Path(file) for file in _files(modules)]
        files = [file for file in files if file.is_relative_to(folder)]
    else:
        files = [folder / each for each in only]
    return {str(file.relative_to(folder)): _digest(file) for file in files}


def _folder(name: str) -> Path | None:
    """Where the files of a module lie; None if it cannot be found."""
    place = _place(sys.modules.get(name))
    if place is None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        folders = list(spec.submodule_search_locations or ())
        if folders:
            return Path(folders[0])
        return None if spec.origin is None else Path(spec.origin).parent
    return place if place.is_dir() else place.parent


def _digest(file: Path) -> str:
    try:
        found = file.stat()
        return _digest_of(file, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    except OSError:
        return ""


@functools.lru_cache(maxsize=4096)
def _digest_of(file: Path, *version: int) -> str:
    """Digest a file, again only when it has changed."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _was_edited(modules: Iterable[ModuleType]) -> bool:
    """Whether a file of these modules changed since this process began.

    It may then have been loaded before that, and not again since.
    """
    began = _began(os.getpid())
    return any(_changed(file) > began for file in _files(modules))


@functools.lru_cache(maxsize=1)
def _began(pid: int) -> float:
    """When this process began, in seconds since the epoch."""
    return float(psutil.Process(pid).create_time())


def _changed(file: str) -> float:
    try:
        found = os.stat(file)
    except OSError:
        return 0.0
    return max(found.st_mtime, found.st_ctime)


def _with_dependents(
    chosen: set[str], loaded: Mapping[str, Iterable[ModuleType]]
) -> list[str]:
    """Add those packages that use any of the chosen ones, directly or not."""
    if not chosen:
        return []
    uses = {name: _used_by(modules) for name, modules in loaded.items()}
    growing = True
    while growing:
        more = {name for name, used in uses.items() if used & chosen} - chosen
        chosen = chosen | more
        growing = bool(more)
    return sorted(chosen)


def _used_by(modules: Iterable[ModuleType]) -> set[str]:
    """Top-level names of the modules from which some modules have something."""
    found: set[str] = set()
    for module in modules:
        for value in list(vars(module).values()):
            of = (
                value.__name__
                if isinstance(value, ModuleType)
                else getattr(value, "__module__", None)
            )
            if isinstance(of, str):
                found.add(of.partition(".")[0])
    return found


def _installed_folders() -> tuple[str, ...]:
    """Where installed packages lie, each with the separator at its end."""
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(path for path in sys.path if path.endswith(("-packages",)))
    return tuple(os.path.join(folder, "") for folder in folders)
