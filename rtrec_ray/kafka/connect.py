"""Which adapter carries the port, by `KafkaOptions.library`.

Connecting is lazy: a broker that is away shows at the first call.
"""

from __future__ import annotations

from rtrec_ray.kafka.base import Admin, Consumer, KafkaOptions, Producer


def connect_consumer(options: KafkaOptions) -> Consumer:
    """A consumer without partitions yet. Raises ConfigInvalid for settings that the client refuses."""
    # Imported here, so that a process loads only the client that it uses.
    if options.library == "kafka-python":
        from rtrec_ray.kafka.python_consumer import PythonConsumer

        return PythonConsumer(options)
    from rtrec_ray.kafka.confluent_consumer import ConfluentConsumer

    return ConfluentConsumer(options)


def connect_producer(options: KafkaOptions) -> Producer:
    """A producer. Raises ConfigInvalid for settings that the client refuses."""
    if options.library == "kafka-python":
        from rtrec_ray.kafka.python_producer import PythonProducer

        return PythonProducer(options)
    from rtrec_ray.kafka.confluent_producer import ConfluentProducer

    return ConfluentProducer(options)


def connect_admin(options: KafkaOptions) -> Admin:
    """An administrator. Raises ConfigInvalid for settings that the client refuses."""
    if options.library == "kafka-python":
        from rtrec_ray.kafka.python_producer import PythonAdmin

        return PythonAdmin(options)
    from rtrec_ray.kafka.confluent_producer import ConfluentAdmin

    return ConfluentAdmin(options)
