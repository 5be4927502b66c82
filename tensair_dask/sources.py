"""The sources, under their public name."""

from tensair_dask.streams.sources import *  # noqa: F403
from tensair_dask.streams.sources import __all__  # noqa: F401
