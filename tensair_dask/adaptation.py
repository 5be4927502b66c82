"""Modes: when a model trains, and what happens when its stream drifts."""

from tensair_dask.drift.convergence import Convergence
from tensair_dask.drift.modes import MODES, PREDICTING, TRAINING, Drift, Modes
from tensair_dask.drift.policies import (
    POLICIES,
    Call,
    KeepTraining,
    Policy,
    RaiseLearningRate,
    Reinitialise,
    RestoreLastGood,
    as_policy,
)

__all__ = [
    "MODES",
    "POLICIES",
    "PREDICTING",
    "TRAINING",
    "Call",
    "Convergence",
    "Drift",
    "KeepTraining",
    "Modes",
    "Policy",
    "RaiseLearningRate",
    "Reinitialise",
    "RestoreLastGood",
    "as_policy",
]
