"""Every default, in `dask.config` below the key ``tensair`` (see ``tensair.yaml``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import yaml
from dask.utils import parse_bytes, parse_timedelta

from tensair_dask.errors import ConfigurationError

__all__ = ["get", "get_bytes", "get_seconds", "load_defaults"]


def load_defaults() -> None:
    """Make the defaults known to `dask.config`; what a user has set stays."""
    text = (Path(__file__).parent / "tensair.yaml").read_text(encoding="utf-8")
    dask.config.update_defaults(yaml.safe_load(text))


def get(key: str, override: Any = None) -> Any:
    """Return ``override`` if it is not None, else the configured ``tensair.<key>``."""
    return dask.config.get(f"tensair.{key}") if override is None else override


def get_seconds(key: str, override: Any = None) -> float:
    """Like `get`, for a duration: ``"100ms"``, a number of seconds or a timedelta.

    Raises
    ------
    ConfigurationError
        If it is none of them.
    """
    value = get(key, override)
    try:
        return float(parse_timedelta(value, default="s"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{value!r} was given for tensair.{key}; allowed are a number of seconds "
            "(0.5), a text with a unit ('500ms'), and a timedelta."
        ) from error


def get_bytes(key: str, override: Any = None) -> int:
    """Like `get`, for a size in bytes: ``"8 MiB"`` or a number."""
    return int(parse_bytes(get(key, override)))
