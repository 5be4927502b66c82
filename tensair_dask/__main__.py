"""Make ``python -m tensair_dask`` the same as ``tensair``."""

from tensair_dask.cli import main

main()
