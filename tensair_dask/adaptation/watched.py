"""What a detector is given, by a name that is the same after a restart."""

from __future__ import annotations

import functools
import types
import zlib
from typing import Any

__all__ = ["name_of"]


def name_of(watch: Any) -> str:
    """Tell what ``watch=`` is: a name as it was given; of a function also its code.

    Parameters
    ----------
    watch
        As a `Trainer` is given it.
    """
    if isinstance(watch, str):
        return watch
    while isinstance(watch, functools.partial):
        watch = watch.func
    named = watch if hasattr(watch, "__qualname__") else type(watch)
    code = getattr(watch, "__code__", None)
    if not isinstance(code, types.CodeType):
        return str(named.__qualname__)
    return f"{named.__qualname__} ({_digest(code):08x})"


def _digest(code: types.CodeType) -> int:
    """Of what it does: lambdas have no names that would tell them apart."""
    values = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
    told = repr((code.co_names, values)).encode()
    return zlib.crc32(told, zlib.crc32(code.co_code))
