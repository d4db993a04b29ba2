"""The five topics, and how long each keeps its records."""

from __future__ import annotations

from typing import Final

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.events import BEHAVIOR, DEAD_LETTER, INFERENCE, ITEM, PROFILE
from rtrec_ray.kafka.base import MAX_DEAD_LETTER_BYTES, MAX_RECORD_BYTES, Admin, TopicSpec
from rtrec_ray.kafka.stamps import STAMPS

CO_PARTITIONED: Final = (BEHAVIOR, INFERENCE, PROFILE)
"""Joined by user within a partition: their numbers of partitions must be equal."""

_FRAMING: Final = 64 << 10  # the broker's limit is on a batch, with keys and headers
_DAY_MS: Final = 24 * 60 * 60 * 1000

# A restart replays impressions back to the correction horizon of 7 days; twice that leaves a week for an outage.
_EVENTS: Final = {"retention.ms": str(14 * _DAY_MS)}

# Every version is kept. Compaction would keep the newest only, but an event joins the profile of its own time: rebuilt
# from a compacted topic, old events would get today's profile, and stream and backfill would differ.
_VERSIONS: Final = {"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}

# The broker's time of writing decides whether an event came from the future; a producer's clock may be the fault.
_COMMON: Final = {
    STAMPS: "LogAppendTime",
    "max.message.bytes": str(MAX_RECORD_BYTES + _FRAMING),
}


def topic_specs(*, partitions: int) -> list[TopicSpec]:
    """The five topics as `rtrec up` makes them.

    >>> [spec.topic for spec in topic_specs(partitions=4)]
    ['behavior', 'inference-log', 'profile', 'item', 'dead-letter']
    """
    dead = {**_EVENTS, "max.message.bytes": str(MAX_DEAD_LETTER_BYTES + _FRAMING)}
    settings = {BEHAVIOR: _EVENTS, INFERENCE: _EVENTS, PROFILE: _VERSIONS, ITEM: _VERSIONS, DEAD_LETTER: dead}
    return [
        TopicSpec(topic=topic, partitions=partitions, settings={**_COMMON, **own}) for topic, own in settings.items()
    ]


def ensure_topics(admin: Admin, *, partitions: int) -> int:
    """Make the topics that are missing; answers the number of partitions of those that are joined.

    Raises ConfigInvalid when existing ones cannot be joined, or their producers stamp the records; KafkaUnavailable.
    """
    # A missing topic follows the ones that are there already.
    there = {topic: count for topic in CO_PARTITIONED if (count := admin.partitions(topic)) is not None}
    count = next(iter(there.values()), partitions)
    if len(set(there.values())) > 1:
        found = ", ".join(f"{topic} {number}" for topic, number in there.items())
        raise ConfigInvalid(
            f"topics that are joined by user differ in their number of partitions: {found}",
            mend="give them the same number, or take another kafka.suffix",
        )
    admin.ensure_topics(topic_specs(partitions=count))
    return count
