"""Every default, in `dask.config` below the key ``tensair`` (see ``tensair.yaml``)."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta

from tensair_dask.errors import ConfigurationError

__all__ = ["check", "get", "get_bytes", "get_seconds", "load_defaults"]

# Whole numbers that may be less than 1.
_LEAST = {
    "dispatch.allowed-losses": 0,
    "exchange.stability-check": 0,
    "replicas.changes": 0,
    "history": 0,
    "dead-letters": 0,
    "dashboard.rows": 48,
}
# Between two looks at something: no pause at all would be a loop that never rests.
_PAUSES = {"curves.interval", "replicas.watch", "replicas.adapt", "sources.poll"}


def load_defaults() -> None:
    """Make the defaults known to `dask.config`; what a user has set stays."""
    dask.config.update_defaults(_read())


def get(key: str, override: Any = None) -> Any:
    """Return ``override`` if it is not None, else the configured ``tensair.<key>``.

    Raises
    ------
    ConfigurationError
        If what is configured is not allowed.
    """
    if override is not None:
        return override
    # Not there, if a user has set only some keys of a section.
    value = dask.config.get(f"tensair.{key}", _defaults()[key])
    _check_one(key, value)
    return value


def get_seconds(key: str, override: Any = None) -> float:
    """Like `get`, for a duration: ``"100ms"``, a number of seconds or a timedelta.

    Raises
    ------
    ConfigurationError
        If it is none of them.
    """
    value = get(key, override)
    try:
        return _seconds(value)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{value!r} was given for tensair.{key}; allowed are a number of seconds "
            "(0.5), a text with a unit ('500ms'), and a timedelta."
        ) from error


def get_bytes(key: str, override: Any = None) -> int:
    """Like `get`, for a size in bytes: ``"8 MiB"`` or a number.

    Raises
    ------
    ConfigurationError
        If it is neither.
    """
    value = get(key, override)
    try:
        return int(parse_bytes(value))
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{value!r} was given for tensair.{key}; allowed are a number of bytes, "
            "and a text with a unit ('8 MiB')."
        ) from error


# ---- the whole section --------------------------------------------------------------


def check() -> list[str]:
    """See that what is configured is allowed, before anything is made of it.

    Returns
    -------
    notices
        Keys that there are not, which have no effect, in sentences.

    Raises
    ------
    ConfigurationError
        If the value of a key is of another kind than its default, or out of range.
    """
    given = dask.config.get("tensair", {})
    if not isinstance(given, Mapping):
        raise _not_allowed("tensair", given, "a section")
    notices = [_dotted(name) for name in _names(given) if "." in name]
    for key, value in _flat(given):
        if key in _defaults():
            _check_one(key, value)
        elif key in _sections():
            raise _not_allowed(f"tensair.{key}", value, "a section")
        else:
            notices.append(_unknown(key))
    return notices


def _names(section: Mapping[str, Any]) -> Iterator[str]:
    for name, value in section.items():
        yield str(name)
        if isinstance(value, Mapping):
            yield from _names(value)


def _dotted(name: str) -> str:
    outer, _, inner = name.partition(".")
    return (
        f"{name!r} is configured below tensair, with a dot in its name, and has no "
        f"effect. In YAML, write {inner!r} on a line of its own, indented below "
        f"{outer + ':'!r}."
    )


def _unknown(key: str) -> str:
    near = difflib.get_close_matches(key, _defaults(), n=1, cutoff=0.5)
    hint = (
        f" Is tensair.{near[0]} meant?" if near else " See tensair.yaml for all keys."
    )
    return f"tensair.{key} is configured, which is no key, and has no effect.{hint}"


def _check_one(key: str, value: Any) -> None:
    """Refuse a value of another kind than the default, or one that is out of range."""
    default = _defaults()[key]
    fits, allowed = _rule(key, default)
    try:
        is_allowed = bool(fits(value))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        is_allowed = False
    if not is_allowed:
        shown = f"{allowed}, for example {default!r}"
        raise _not_allowed(f"tensair.{key}", value, shown)


def _rule(key: str, default: Any) -> tuple[Any, str]:
    """What the value of a key must fulfil, and how to say it."""
    if isinstance(default, bool):
        return lambda value: isinstance(value, bool), "true or false"
    if isinstance(default, int):
        least = _LEAST.get(key, 1)
        return lambda value: _is_whole(value, least), f"a whole number from {least}"
    if isinstance(default, float):
        return _is_share, "a number above 0 and at most 1"
    if key == "drift.cache":
        return (
            lambda value: value is None or isinstance(value, str),
            "a folder, or null",
        )
    if default.endswith("B"):
        return lambda value: parse_bytes(value) >= 1, "a size"
    if key in _PAUSES:
        return lambda value: 0 < _seconds(value) < math.inf, "a time above 0"
    return lambda value: 0 <= _seconds(value) < math.inf, "a time"


def _is_whole(value: Any, least: int) -> bool:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and value >= least


def _is_share(value: Any) -> bool:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return real and 0 < value <= 1


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or value is None:
        raise TypeError(f"{value} is no time")
    return float(parse_timedelta(value, default="s"))


def _not_allowed(key: str, value: Any, allowed: str) -> ConfigurationError:
    return ConfigurationError(
        f"{key}={value!r} is configured; {allowed} is allowed. Change it where it was "
        "set: dask.config.set, a DASK_TENSAIR__... variable, or a file in "
        "~/.config/dask."
    )


def _read() -> dict[str, Any]:
    text = (Path(__file__).parent / "tensair.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read


@functools.cache
def _defaults() -> dict[str, Any]:
    """All defaults, by their key below ``tensair``."""
    return dict(_flat(_read()["tensair"]))


@functools.cache
def _sections() -> set[str]:
    return {key.rpartition(".")[0] for key in _defaults()} - {""}


def _flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Give the values of a section by their whole keys, which may be written with _."""
    for name, value in section.items():
        key = f"{above}{str(name).replace('_', '-')}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value
