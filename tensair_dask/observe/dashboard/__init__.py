"""Training on the dashboard of Dask's scheduler: pages, Prometheus series, JSON.

Loaded by the scheduler: imports no torch, and bokeh only where pages are made.
"""
