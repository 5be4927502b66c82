"""Every exception that tensair_dask raises, in one tree below `TensairError`.

A message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import threading

from tensair_dask._wording import LONGEST, bounded, in_words

__all__ = [
    "BatchError",
    "CallError",
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointMissingError",
    "ClusterError",
    "ConfigurationError",
    "DriftError",
    "DtypeError",
    "EventLoopError",
    "ForwardError",
    "KilledReplicasError",
    "LossError",
    "MetricError",
    "ModelError",
    "NoReplicasError",
    "NoSuchMethodError",
    "NoWorkersError",
    "NonFiniteError",
    "OptimizerError",
    "PackageMissingError",
    "RaisedError",
    "RecordError",
    "RefusedError",
    "ReplicaFailedError",
    "ReplicaLeavingError",
    "ReplicaLostError",
    "SchedulerLostError",
    "ShapeError",
    "SourceError",
    "StepError",
    "StreamError",
    "TensairError",
    "TensairTimeoutError",
    "TrainerClosedError",
]


class TensairError(Exception):
    """Base of all errors of this package; the length of its message is bounded."""

    def __init__(self, *args: object) -> None:
        super().__init__(
            *(bounded(each) if isinstance(each, str) else each for each in args)
        )


class RaisedError(TensairError):
    """What user code raised, in words: itself it cannot be kept, sent or logged."""

    @classmethod
    def unless_fit(cls, error: BaseException) -> BaseException:
        """Give an exception that can be kept, sent and logged: itself, or one for it.

        Its text may be of any length, or cannot be had; no future takes a
        StopIteration; and what ends a program (SystemExit, KeyboardInterrupt) or a
        task (CancelledError) would do so to a worker, or to who waits for it.
        """
        if isinstance(error, TensairError) or _is_fit(error):
            return error
        return cls(in_words(error)).with_traceback(error.__traceback__)

    @classmethod
    def caught(cls, error: BaseException) -> Exception:
        """Give an `Exception` for what user code raised on an event loop.

        A SystemExit would end the loop, for all who use it. Ctrl-C of the main thread
        is raised again: nobody's code has raised it.
        """
        if isinstance(error, KeyboardInterrupt) and (
            threading.current_thread() is threading.main_thread()
        ):
            raise error
        if isinstance(error, Exception):
            return error
        return cls(in_words(error)).with_traceback(error.__traceback__)


def _is_fit(error: BaseException) -> bool:
    ends = not isinstance(error, Exception)
    if ends or isinstance(error, (StopIteration, StopAsyncIteration)):
        return False
    sized = (each for each in error.args if isinstance(each, (str, bytes, bytearray)))
    try:
        return all(len(each) <= LONGEST for each in (*sized, str(error)))
    except BaseException:  # of __str__
        return False


class ConfigurationError(TensairError, ValueError):
    """An argument or a configuration value is not allowed."""


class CallError(ConfigurationError, TypeError):
    """A call lacks an argument, or has one that there is not."""


class NoSuchMethodError(TensairError, AttributeError):
    """There is no such attribute; what it would be elsewhere is called otherwise."""


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


class ReplicaFailedError(ReplicaLostError):
    """Something raised in the replica with which it cannot go on; it has ended."""


class ReplicaLeavingError(ReplicaLostError):
    """The replica leaves the run, and has taken nothing of the work; ask another."""


class SchedulerLostError(ClusterError):
    """The Dask scheduler cannot be reached."""


class PackageMissingError(ClusterError):
    """The scheduler or a worker cannot import what it needs."""


class SourceError(TensairError):
    """A source, or a record of it, cannot be read."""


class EventLoopError(TensairError, RuntimeError):
    """A call would wait for the event loop that it holds up itself."""


class StreamError(TensairError, RuntimeError):
    """A node of a stream has ended, or lost what it held, since something raised."""


class RecordError(SourceError):
    """One record was refused before it was part of a mini-batch; the stream goes on."""


class RefusedError(TensairError):
    """More than half of a stream was refused, or all of it."""


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
    """Replicas were lost while they learned the mini-batch, or answered the call."""


class LossError(BatchError):
    """The loss raised, or is not a scalar tensor that depends on the parameters."""


class MetricError(BatchError):
    """A metric raised, or did not return a scalar."""


class StepError(BatchError):
    """The optimizer, or a hook of it, raised; the step was undone."""
