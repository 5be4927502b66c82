"""Options of a command, described by the fields of the dataclass that holds them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import click

from tensair_dask.checkpoints.schedule import parse_every
from tensair_dask.errors import ConfigurationError

__all__ = [
    "FILE",
    "FOLDER",
    "FROM_ZERO",
    "PATH",
    "POSITIVE",
    "Every",
    "Number",
    "Rate",
    "option",
    "options_of",
]

POSITIVE = click.IntRange(min=1)
FROM_ZERO = click.IntRange(min=0)
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)

OPTION = "option"  # in the metadata of a field


@dataclasses.dataclass(frozen=True)
class _Description:
    text: str
    flags: tuple[str, ...]
    shown: str | None
    settings: dict[str, Any]

    def option(self, kind: Any, name: str, default: Any) -> click.Option:
        settings = {
            "default": default,
            "help": self.text.format(records=kind.records),
            "show_default": self.shown if default is None and self.shown else True,
            "is_flag": isinstance(default, bool),
            "multiple": isinstance(default, tuple),
        }
        flags = self.flags or (f"--{name.replace('_', '-')}",)
        return click.Option([*flags, name], **settings | self.settings)


def option(
    default: Any, text: str, *flags: str, shown: str | None = None, **settings: Any
) -> Any:
    """Make a field of a run that is an option of its command as well.

    Parameters
    ----------
    default
        Of both. True and False make a flag; a tuple makes an option that may be
        repeated.
    text
        For ``--help``. In it ``{records}`` stands for what the records are called.
    *flags
        Of the option, if they are not the name of the field with ``--`` before it.
    shown
        Default that ``--help`` shows if ``default`` is None.
    **settings
        Of `click.Option`, such as ``type`` and ``metavar``.
    """
    description = _Description(text, flags, shown, settings)
    return dataclasses.field(default=default, metadata={OPTION: description})


def options_of(kind: Any) -> list[click.Option]:
    """Make the options of a run; those of the most derived class come first.

    Parameters
    ----------
    kind
        Of the run: a dataclass. A class below it that only gives a field another
        default leaves the option as described. A field that is not given to the
        constructor (``init=False``) is no option.
    """
    described: dict[str, dataclasses.Field[Any]] = {}
    for base in filter(dataclasses.is_dataclass, reversed(kind.__mro__)):
        own = {
            field.name: field
            for field in dataclasses.fields(base)
            if OPTION in field.metadata and described.get(field.name) is not field
        }
        new = {name: own[name] for name in own if name not in described}
        described = new | described | own
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.init}
    return [
        field.metadata[OPTION].option(kind, name, defaults[name])
        for name, field in described.items()
        if name in defaults
    ]


class Number(click.FloatRange):
    """A finite number within bounds: click lets NaN pass all of them."""

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        """Take it, unless it is NaN or infinite."""
        number = super().convert(value, param, context)
        if not math.isfinite(number):
            self.fail(f"{value} is not allowed; give a finite number.", param, context)
        return number


class Rate(click.ParamType):
    """A number of records per second, or "max" for no limit (None)."""

    name = "RATE|max"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float | None:
        """Take a number above 0, or "max"."""
        if value == "max":
            return None
        with contextlib.suppress(TypeError, ValueError):
            rate = float(value)
            if 0 < rate < math.inf:
                return rate
        self.fail(
            f"{value!r} is not allowed; give a number of records per second above 0, "
            "for example 5000, or max",
            param,
            context,
        )


class Every(click.ParamType):
    """A number of mini-batches, or a time with its unit."""

    name = "BATCHES|TIME"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> int | str:
        """Take what `parse_every` takes."""
        every = int(value) if str(value).isdecimal() else str(value)
        try:
            parse_every(every)
        except ConfigurationError:
            self.fail(
                f"{value!r} is not allowed; give a number of mini-batches, for example "
                "1000, or a time with its unit, for example 10s",
                param,
                context,
            )
        return every
