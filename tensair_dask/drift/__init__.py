"""Drift detectors: one a file, all with the interface of `Detector`."""

from __future__ import annotations

from tensair_dask.drift.adwin import ADWIN
from tensair_dask.drift.base import Detector, Shift
from tensair_dask.drift.ddm import DDM
from tensair_dask.drift.evaluation import evaluate
from tensair_dask.drift.kswin import KSWIN
from tensair_dask.drift.optwin import OPTWIN
from tensair_dask.drift.page_hinkley import PageHinkley
from tensair_dask.drift.registry import make

__all__ = [
    "ADWIN",
    "DDM",
    "KSWIN",
    "OPTWIN",
    "Detector",
    "PageHinkley",
    "Shift",
    "evaluate",
    "make",
]
