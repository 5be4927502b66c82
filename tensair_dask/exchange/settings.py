"""What is exchanged, in how many bytes, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tensair_dask import config
from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.compression import make_compressor

__all__ = ["ExchangeConfig", "Share"]

Share = Literal["gradient", "update"]


@dataclass(frozen=True)
class ExchangeConfig:
    """What replicas publish to each other, in how many bytes, and how often.

    Parameters
    ----------
    share
        What replicas publish. ``"gradient"``: each receiver puts it through its own
        optimizer, as in the paper; exact for plain SGD. ``"update"``: the change that
        the sender's optimizer made, which is a sum, so that replicas agree with any
        optimizer, at the price of one more copy of the parameters. None: gradients
        where that is exact (`torch.optim.SGD` without momentum, weight decay, hooks or
        a schedule, for a model without half precision and ``max_norm``), else updates;
        ``trainer.share`` tells which. ``"gradient"`` where it is not exact warns.
    compression
        Of what is published: ``"none"``, ``"bfloat16"`` or ``"float16"`` (half the
        bytes), ``"int8"`` (a quarter). What rounding leaves out is kept and sent
        later, and `Trainer.drain` sends all of it, exactly.
    staleness
        How long after it was computed a gradient is to be applied by the peers at
        the latest, in seconds or as ``"100ms"``; None for
        ``tensair.exchange.staleness``. Later means fewer messages.
    share_of_time
        Of a replica's time, what the exchange may cost, in CPU time: more means
        fresher gradients, and less time to learn. It wins over ``staleness``; a
        warning says where that does not hold. None for
        ``tensair.exchange.share-of-time``.

    Raises
    ------
    ConfigurationError
        If a value is not allowed.
    """

    share: Share | None = None
    compression: str = "none"
    staleness: Any = None
    share_of_time: Any = None

    def __post_init__(self) -> None:
        if self.share not in ("gradient", "update", None):
            raise ConfigurationError(
                f"share={self.share!r} was given; 'gradient' or 'update' is allowed, "
                "or None for what is exact."
            )
        make_compressor(self.compression)
        object.__setattr__(self, "staleness", _seconds(self.staleness))
        object.__setattr__(self, "share_of_time", _part(self.share_of_time))


def _seconds(staleness: Any) -> float:
    try:
        seconds = config.get_seconds("exchange.staleness", staleness)
    except (TypeError, ValueError, KeyError):
        seconds = -1.0
    if not seconds > 0:
        raise ConfigurationError(
            f"staleness={config.get('exchange.staleness', staleness)!r} was given; "
            "a positive number of seconds or a string such as '100ms' is allowed."
        )
    return seconds


def _part(share_of_time: Any) -> float:
    part = config.get("exchange.share-of-time", share_of_time)
    if (
        isinstance(part, bool)
        or not isinstance(part, (int, float))
        or not 0 < part <= 1
    ):
        raise ConfigurationError(
            f"share_of_time={part!r} was given; a number above 0 and at most 1 is "
            "allowed."
        )
    return float(part)
