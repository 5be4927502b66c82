"""What is done with input that cannot be learned: the policies by name."""

from __future__ import annotations

from tensair_dask.errors import ClusterError, ConfigurationError

__all__ = ["POLICIES", "check_on_error", "is_raised", "policy_for"]

# Keep it as a dead letter; only count it; raise its error to who feeds the stream.
POLICIES = ("dead-letter", "skip", "raise")


def check_on_error(on_error: str) -> str:
    """Give the name of a policy back.

    Raises
    ------
    ConfigurationError
        If there is none of that name.
    """
    if on_error not in POLICIES:
        raise ConfigurationError(
            f"on_error={on_error!r} was given; allowed are "
            f"{', '.join(map(repr, POLICIES))}."
        )
    return on_error


def policy_for(error: Exception, on_error: str) -> str:
    """Say what is done: what the cluster failed to learn is no bad input, and kept."""
    return "dead-letter" if isinstance(error, ClusterError) else on_error


def is_raised(error: Exception | None, on_error: str) -> bool:
    """Whether an error is raised to who feeds the stream."""
    return error is not None and policy_for(error, on_error) == "raise"
