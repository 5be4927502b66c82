"""What is read from Kafka, and how: checked before a source is made of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tensair_dask._common.checks import is_whole
from tensair_dask.errors import ConfigurationError

__all__ = ["KafkaOptions"]

# What the source sets itself, and why nobody else may.
OWN_SETTINGS = {
    "enable.auto.commit": "it commits what was learned, not what was read",
    "enable.partition.eof": "it has to know where a topic ends",
    "error_cb": "its errors come out at ended()",
    "on_commit": "commits that fail are logged and made again",
}


@dataclass(frozen=True)
class KafkaOptions:
    """What is read from Kafka, and how.

    Parameters
    ----------
    topics
        Their names, or patterns.
    settings
        Of librdkafka.
    partitions, parse, follow
        As of `from_kafka_records`.
    commit_every
        Seconds between two commits.

    Raises
    ------
    ConfigurationError
        If it cannot be read like this.
    """

    topics: list[str]
    settings: Mapping[str, Any]
    partitions: list[int] | Literal["all"] | None
    parse: Callable[[bytes], Any] | None
    follow: bool
    commit_every: float

    def __post_init__(self) -> None:
        _check_settings(self.settings)
        _check_partitions(self.partitions, self.topics, self.settings)
        if self.parse is not None and not callable(self.parse):
            raise ConfigurationError(
                f"parse={self.parse!r} was given; a function of the bytes of a record "
                "is needed, or None to leave them."
            )

    @property
    def commits(self) -> bool:
        """Whether offsets are committed: in a group they are."""
        return "group.id" in self.settings

    @property
    def incremental(self) -> bool:
        """Whether partitions come and go one by one, not all at once."""
        if self.partitions is not None:
            return False
        strategy = self.settings.get("partition.assignment.strategy", "")
        protocol = self.settings.get("group.protocol", "classic")
        return "cooperative" in strategy or protocol == "consumer"


def _check_settings(settings: Any) -> None:
    if not isinstance(settings, Mapping):
        raise ConfigurationError(
            f"consumer={settings!r} was given; a dict of settings is needed: "
            "{'bootstrap.servers': '127.0.0.1:9092', 'group.id': 'mine'}."
        )
    if not settings.get("bootstrap.servers"):
        raise ConfigurationError(
            "The settings have no 'bootstrap.servers'. Give the address of a broker: "
            "{'bootstrap.servers': '127.0.0.1:9092', 'group.id': 'mine'}."
        )
    for name in sorted(OWN_SETTINGS.keys() & settings.keys()):
        if name != "enable.auto.commit" or settings[name] is not False:
            raise ConfigurationError(
                f"The setting {name!r} is the source's own: {OWN_SETTINGS[name]}. "
                "Leave it out."
            )


def _check_partitions(
    partitions: Any, topics: list[str], settings: Mapping[str, Any]
) -> None:
    if partitions is None:
        if "group.id" not in settings:
            raise ConfigurationError(
                "The settings have no 'group.id', and partitions is None. Give the "
                "group to join, or the partitions to read: partitions='all'."
            )
        return
    listed = isinstance(partitions, (list, tuple, range)) and partitions
    if partitions != "all" and not (
        listed and all(is_whole(each, 0) for each in partitions)
    ):
        raise ConfigurationError(
            f"partitions={partitions!r} was given; a list of numbers from 0 on is "
            "needed, such as [0, 1]; or 'all', or None to join the group."
        )
    if any(topic.startswith("^") for topic in topics):
        raise ConfigurationError(
            f"partitions={partitions!r} was given with a pattern of topics; give the "
            "names of the topics, or leave partitions out to join the group."
        )
