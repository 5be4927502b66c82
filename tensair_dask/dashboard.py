"""`tensair_dask.preload` by its earlier name: ``tensair_dask.dashboard.preload``."""

import sys

from tensair_dask import preload

# `import tensair_dask.dashboard.preload` finds it here, once this module is loaded.
sys.modules[f"{__name__}.preload"] = preload
