"""Who stamps the records of a topic: the broker, whose clock is believed, or each producer by its own."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.kafka.base import KafkaOptions, TopicSpec

log = logging.getLogger(__name__)

STAMPS: Final = "message.timestamp.type"


def check_stamps(specs: Sequence[TopicSpec], found: Mapping[str, str | None], *, options: KafkaOptions) -> None:
    """Refuse existing topics whose records are stamped otherwise than their specs say.

    `found`: topic → its `message.timestamp.type`; None where the cluster does not let us ask, which is logged. Raises
    ConfigInvalid.

    >>> specs = [TopicSpec(topic="item", partitions=4, settings={STAMPS: "LogAppendTime"})]
    >>> check_stamps(specs, {"item": "CreateTime"}, options=KafkaOptions(suffix="-tiny"))
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: message.timestamp.type must be LogAppendTime, and it is CreateTime for item-tiny
    """
    unknown = [options.physical(spec.topic) for spec in specs if found[spec.topic] is None]
    if unknown:
        log.warning("topic_stamps_not_known", extra={"setting": STAMPS, "topics": unknown})
    wrong = [spec for spec in specs if found[spec.topic] not in (None, spec.settings[STAMPS])]
    if wrong:
        have = ", ".join(f"{found[spec.topic]} for {options.physical(spec.topic)}" for spec in wrong)
        raise ConfigInvalid(
            f"{STAMPS} must be {wrong[0].settings[STAMPS]}, and it is {have}",
            mend=" && ".join(_alter(spec, options) for spec in wrong),
        )


def _alter(spec: TopicSpec, options: KafkaOptions) -> str:
    return (
        f"kafka-configs --bootstrap-server {options.bootstrap} --alter --entity-type topics"
        f" --entity-name {options.physical(spec.topic)} --add-config {STAMPS}={spec.settings[STAMPS]}"
    )
