"""The client's half of a run: which replica learns what, and which replicas there are.

`scheduler_plugin` runs on Dask's scheduler, and imports no torch.
"""
