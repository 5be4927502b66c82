"""Sources that know their position, so that nothing is lost in a restart.

Importing this package adds ``from_batches``, ``from_lines``, ``from_csv_chunks`` and
``from_kafka_records`` to `streamz.Stream`. The last one needs ``confluent-kafka``,
which is imported when it is first used.
"""

from __future__ import annotations

import tensair_dask.streams.streamz_patches  # noqa: F401  flatten keeps references
from tensair_dask.streams.sources.files import from_csv_chunks, from_lines
from tensair_dask.streams.sources.iterables import from_batches
from tensair_dask.streams.sources.kafka import from_kafka_records
from tensair_dask.streams.sources.kafka_records import Record
from tensair_dask.streams.sources.positions import Mark, Tracker
from tensair_dask.streams.sources.source import Reference, Source
from tensair_dask.streams.sources.unreadable import PoisonLine, PoisonRecord

__all__ = [
    "Mark",
    "PoisonLine",
    "PoisonRecord",
    "Record",
    "Reference",
    "Source",
    "Tracker",
    "from_batches",
    "from_csv_chunks",
    "from_kafka_records",
    "from_lines",
]
