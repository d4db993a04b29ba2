"""The jars of Apache Kafka: which ones (pinned by SHA-256 in `kafka-jars.lock`), and where they lie."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from rtrec_ray.errors import EmbeddedFailure

LOCK = Path(__file__).with_name("kafka-jars.lock")
KAFKA = "org.apache.kafka:kafka_2.13"


@dataclass(frozen=True, slots=True, kw_only=True)
class Jar:
    """One file, by Maven coordinate (group:artifact:version) and SHA-256 in hexadecimal."""

    coordinate: str
    sha256: str

    @property
    def file_name(self) -> str:
        """Name on disk.

        >>> Jar(coordinate="org.yaml:snakeyaml:2.5", sha256="").file_name
        'snakeyaml-2.5.jar'
        """
        _, artifact, version = self.coordinate.split(":")
        return f"{artifact}-{version}.jar"

    def is_whole(self, path: Path) -> bool:
        """Whether the file is there with exactly the pinned content."""
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == self.sha256


def pinned() -> list[Jar]:
    """The jars of the lock file."""
    lines = [line.split() for line in LOCK.read_text().splitlines() if line and not line.startswith("#")]
    return [Jar(coordinate=coordinate, sha256=sha256) for coordinate, sha256 in lines]


def version() -> str:
    """The pinned version of Kafka."""
    return next(jar.coordinate.removeprefix(f"{KAFKA}:") for jar in pinned() if jar.coordinate.startswith(f"{KAFKA}:"))


def directory() -> Path:
    """Where the jars lie: inside the Python environment, so that they go when it goes."""
    return Path(sys.prefix) / "share" / "rtrec" / f"kafka-{version()}"


def missing() -> list[Jar]:
    """The pinned jars that are not on disk (by name only: content was checked when they were fetched)."""
    return [jar for jar in pinned() if not (directory() / jar.file_name).is_file()]


def class_path() -> str:
    """Java class path of all jars; EmbeddedFailure names the mend when some are missing."""
    absent = missing()
    if absent:
        raise EmbeddedFailure(
            f"{len(absent)} of {len(pinned())} jars of Kafka are missing from {directory()}", mend="run `make setup`"
        )
    return ":".join(str(directory() / jar.file_name) for jar in pinned())
