"""Every exception that tensair_dask raises, in one tree below `TensairError`.

A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

__all__ = [
    "BatchError",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMissingError",
    "ClusterError",
    "ConfigurationError",
    "DriftError",
    "DtypeError",
    "ForwardError",
    "KilledReplicasError",
    "LossError",
    "MetricError",
    "ModelError",
    "NoReplicasError",
    "NoWorkersError",
    "NonFiniteError",
    "OptimizerError",
    "PackageMissingError",
    "RecordError",
    "ReplicaLeavingError",
    "ReplicaLostError",
    "SchedulerLostError",
    "ShapeError",
    "SourceError",
    "StreamError",
    "TensairError",
    "TensairTimeoutError",
    "TrainerClosedError",
]


class TensairError(Exception):
    """Base of all errors of this package."""


class ConfigurationError(TensairError, ValueError):
    """An argument or a configuration value is not allowed."""


class DriftError(TensairError, ValueError):
    """A drift detector was given a value that it cannot take."""


class TrainerClosedError(TensairError, RuntimeError):
    """The trainer (or the publisher, or the subscription) is closed."""


class TensairTimeoutError(TensairError, TimeoutError):
    """A bounded wait ended before what it waited for came."""


class ModelError(TensairError):
    """The model factory raised, or did not build a usable `torch.nn.Module`."""


class OptimizerError(TensairError):
    """The optimizer factory raised, or did not build a `torch.optim.Optimizer`."""


class CheckpointError(TensairError):
    """A checkpoint, or a state from one, cannot be written, read or taken over."""


class CheckpointMissingError(CheckpointError, FileNotFoundError):
    """There is no checkpoint at that path."""


class CheckpointDamagedError(CheckpointError):
    """What is at that path is no whole checkpoint: cut off, changed, something else."""


class ClusterError(TensairError):
    """The Dask cluster cannot do what is asked."""


class NoWorkersError(ClusterError):
    """The cluster has no workers, or fewer than were asked for."""


class NoReplicasError(ClusterError):
    """No replica is left that could take the work."""


class ReplicaLostError(ClusterError):
    """The replica that held the work is gone."""


class ReplicaLeavingError(ReplicaLostError):
    """The replica leaves the run, and has taken nothing of the work; ask another."""


class SchedulerLostError(ClusterError):
    """The Dask scheduler cannot be reached."""


class PackageMissingError(ClusterError):
    """The scheduler or a worker cannot import what it needs."""


class SourceError(TensairError):
    """A source, or a record of it, cannot be read."""


class StreamError(TensairError, RuntimeError):
    """A node of a stream has ended, or lost what it held, since something raised."""


class RecordError(SourceError):
    """One record was refused before it was part of a mini-batch; the stream goes on."""


class BatchError(TensairError):
    """One mini-batch was refused; the stream goes on."""


class ShapeError(BatchError):
    """The mini-batch has a shape that the model or the loss cannot take."""


class DtypeError(BatchError):
    """The mini-batch has a dtype that the model or the loss cannot take."""


class NonFiniteError(BatchError):
    """The mini-batch, or the loss computed from it, is NaN or infinite."""


class ForwardError(BatchError):
    """The model raised on the mini-batch, or returned what the loss cannot take."""


class KilledReplicasError(BatchError):
    """Replicas were lost, one after the other, while they learned the mini-batch."""


class LossError(BatchError):
    """The loss raised, or is not a scalar tensor that depends on the parameters."""


class MetricError(BatchError):
    """A metric raised, or did not return a scalar."""
