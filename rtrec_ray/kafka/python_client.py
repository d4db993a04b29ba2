"""What the kafka-python adapters share: librdkafka's property names in kafka-python's words, and its errors in ours."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from kafka import errors

from rtrec_ray.errors import ConfigInvalid, KafkaUnavailable, RecordTooLarge
from rtrec_ray.kafka.base import KafkaOptions

MEND: Final = "is Kafka running at kafka.bootstrap, and do kafka.client's security settings fit it?"

_NAMES: Final = {
    "client.id": "client_id",
    "security.protocol": "security_protocol",
    "sasl.mechanism": "sasl_mechanism",
    "sasl.mechanisms": "sasl_mechanism",
    "sasl.username": "sasl_plain_username",
    "sasl.password": "sasl_plain_password",
    "sasl.kerberos.service.name": "sasl_kerberos_service_name",
    "ssl.ca.location": "ssl_cafile",
    "ssl.certificate.location": "ssl_certfile",
    "ssl.key.location": "ssl_keyfile",
    "ssl.key.password": "ssl_password",
    "ssl.crl.location": "ssl_crlfile",
    "ssl.cipher.suites": "ssl_ciphers",
    "ssl.endpoint.identification.algorithm": "ssl_check_hostname",
}

_TO_VALUE: Final[dict[str, Callable[[str], object]]] = {
    "security_protocol": str.upper,
    "ssl_check_hostname": lambda algorithm: algorithm.lower() != "none",
}

_TOO_LARGE: Final = (errors.MessageSizeTooLargeError, errors.RecordListTooLargeError)


def translated(client: Mapping[str, str]) -> dict[str, object]:
    """Settings under kafka-python's names. Raises ConfigInvalid for one that it has no counterpart of.

    >>> translated({"security.protocol": "sasl_ssl", "ssl.endpoint.identification.algorithm": "none"})
    {'security_protocol': 'SASL_SSL', 'ssl_check_hostname': False}
    """
    settings: dict[str, object] = {}
    for name, value in client.items():
        own = _NAMES.get(name)
        if own is None:
            raise ConfigInvalid(
                f"kafka.client: {name} has no counterpart in kafka-python", mend="remove it, or use library: confluent"
            )
        settings[own] = _TO_VALUE.get(own, str)(value)
    return settings


def quiet() -> None:
    """Keep kafka-python from logging each attempt to connect: what matters of it, our errors say."""
    logging.getLogger("kafka").setLevel(logging.CRITICAL)


def common_settings(options: KafkaOptions) -> dict[str, object]:
    """Settings of every client."""
    return {
        "bootstrap_servers": options.bootstrap.split(","),
        "bootstrap_timeout_ms": round(options.timeout_s * 1000),
        "request_timeout_ms": 10_000,
        "reconnect_backoff_max_ms": 1_000,
        **translated(options.client),
    }


@contextmanager
def translating(what: str) -> Iterator[None]:
    """Raise kafka-python's errors as ours; `what` begins the sentence."""
    try:
        yield
    except errors.KafkaConfigurationError as error:
        raise ConfigInvalid(f"kafka.client: {error}", mend="see kafka-python's settings") from error
    except errors.KafkaError as error:
        raise in_our_words(what, error) from error
    except (OSError, ValueError, AssertionError) as error:
        raise KafkaUnavailable(f"{what}: {error}", mend=MEND) from error


def in_our_words(what: str, error: Any) -> KafkaUnavailable | RecordTooLarge:
    """Our error for one of kafka-python's."""
    if isinstance(error, _TOO_LARGE):
        return RecordTooLarge(f"{what}: {error}", mend="raise the topic's max.message.bytes")
    return KafkaUnavailable(f"{what}: {type(error).__name__} {error}".rstrip(), mend=MEND)
