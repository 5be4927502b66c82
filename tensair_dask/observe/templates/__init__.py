"""Templates of the HTML that this package shows, and how they are filled in."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["render"]


@functools.cache
def _environment() -> Environment:
    from dask.widgets import FILTERS
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Not Dask's own environment, which does not escape: names and errors of users
    # stand in these pages.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    return environment


def render(name: str, **values: Any) -> str:
    """Fill in a template; every value is escaped unless the template says ``safe``.

    Parameters
    ----------
    name
        Of a file in this folder.
    values
        By the names that the template has for them; all are needed.
    """
    return _environment().get_template(name).render(**values)
