"""One copy of the model: the Dask actor on a worker that learns."""
