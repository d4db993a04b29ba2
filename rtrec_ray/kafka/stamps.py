"""Who stamps the records of a topic: the broker, whose clock is believed, or each producer by its own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.kafka.base import KafkaOptions, TopicSpec

log = logging.getLogger(__name__)

STAMPS: Final = "message.timestamp.type"


def ensure(
    specs: Sequence[TopicSpec],
    *,
    is_there: Callable[[str], bool],
    make: Callable[[Sequence[TopicSpec]], list[str]],
    stamps: Callable[[str], str | None],
    options: KafkaOptions,
) -> list[str]:
    """Make the topics that are not there, and check how records of the others are stamped; answers which were made.

    `make` answers those that it made: what somebody else makes meanwhile, or a broker's list does not show yet, is
    there too. `stamps`: a topic's `message.timestamp.type`, see `check_stamps`. Raises ConfigInvalid.
    """

    def check(there: Sequence[TopicSpec]) -> None:
        asked = [spec for spec in there if STAMPS in spec.settings]
        check_stamps(asked, {spec.topic: stamps(spec.topic) for spec in asked}, options=options)

    missing = [spec for spec in specs if not is_there(spec.topic)]
    check([spec for spec in specs if spec not in missing])
    made = make(missing) if missing else []
    check([spec for spec in missing if spec.topic not in made])
    return made


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
