"""What is exchanged, in how many bytes, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from tensair_dask import config
from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.compression import make_compressor

__all__ = ["Settings", "Share"]

Share = Literal["gradient", "update"]


@dataclass(frozen=True)
class Settings:
    """Settings of the exchange; the client's hold for all replicas of a run.

    Attributes
    ----------
    share
        ``"gradient"`` or ``"update"``: what is published; None for what is exact, as
        the replicas find when their optimizer is built.
    compression
        Of what is published; one of `COMPRESSIONS`.
    share_of_time, staleness
        How often is published; see `Pacer`.
    """

    share: Share | None
    compression: str
    share_of_time: float
    staleness: float

    @classmethod
    def configured(
        cls,
        share: Share | None = None,
        compression: str = "none",
        staleness: Any = None,
    ) -> Settings:
        """Take what is not given from the configuration.

        Raises
        ------
        ConfigurationError
            If a value is not allowed.
        """
        if share not in ("gradient", "update", None):
            raise ConfigurationError(
                f"share={share!r} was given; 'gradient' or 'update' is allowed, or "
                "None for what is exact."
            )
        make_compressor(compression)
        try:
            seconds = config.get_seconds("exchange.staleness", staleness)
        except (TypeError, ValueError, KeyError):
            seconds = -1.0
        if not seconds > 0:
            raise ConfigurationError(
                f"staleness={config.get('exchange.staleness', staleness)!r} was given; "
                "a positive number of seconds or a string such as '100ms' is allowed."
            )
        return cls(
            share, compression, float(config.get("exchange.share-of-time")), seconds
        )
