"""What the confluent adapters share: settings of librdkafka, and its errors in our words."""

from __future__ import annotations

from typing import Any, Final, NoReturn

import confluent_kafka as rdkafka

from rtrec_ray.errors import ConfigInvalid, KafkaUnavailable, RecordTooLarge
from rtrec_ray.kafka.base import KafkaOptions

ERROR: Final = rdkafka.KafkaError
MEND: Final = "is Kafka running at kafka.bootstrap, and do kafka.client's security settings fit it?"


def common_settings(options: KafkaOptions) -> dict[str, Any]:
    """Settings of every client."""
    return {
        "bootstrap.servers": options.bootstrap,
        # A broker that stopped answering without closing its connections is noticed after this.
        "socket.timeout.ms": 10_000,
        "reconnect.backoff.max.ms": 1_000,
        "topic.metadata.refresh.interval.ms": 30_000,
        "log_level": 0,  # what librdkafka would print, our errors say
    }


def make_client(kind: Any, settings: dict[str, Any]) -> Any:
    """A client of this kind. Raises ConfigInvalid for settings that librdkafka refuses."""
    try:
        return kind(settings)
    except rdkafka.KafkaException as error:
        raise ConfigInvalid(
            f"kafka.client: {error.args[0].str()}", mend="its names and values are those of librdkafka"
        ) from error


def raise_refused(errors: list[Any]) -> None:
    """Raise the errors that acknowledgements brought, if any: RecordTooLarge, KafkaUnavailable."""
    if not errors:
        return
    if any(error.code() in (ERROR.MSG_SIZE_TOO_LARGE, ERROR.INVALID_MSG_SIZE) for error in errors):
        raise RecordTooLarge("the broker refused a record as too large", mend="raise the topic's max.message.bytes")
    raise KafkaUnavailable(f"{len(errors)} records refused, the first because: {errors[0].str()}", mend=MEND)


def raise_unavailable(what: str, error: Exception) -> NoReturn:
    """Raise a foreign error as KafkaUnavailable; `what` begins the sentence."""
    cause = error.args[0].str() if isinstance(error, rdkafka.KafkaException) else str(error)
    raise KafkaUnavailable(f"{what}: {cause}", mend=MEND) from error
