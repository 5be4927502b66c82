from __future__ import annotations

import copy

import dask
from distributed import utils_test

import tensair_dask  # noqa: F401  its defaults become known to dask.config

# gen_cluster puts back the configuration of when utils_test was imported, which may
# have been before the defaults of this package were loaded.
utils_test.original_config.setdefault(
    "tensair", copy.deepcopy(dask.config.get("tensair"))
)
