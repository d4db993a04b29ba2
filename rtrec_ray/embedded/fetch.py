"""Fetch the pinned jars of Kafka: `python -m rtrec_ray.embedded.fetch`, a part of `make setup`.

What is there and whole is kept, so a second run needs no network.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import requests
from jgo.maven import MavenContext

from rtrec_ray import clock
from rtrec_ray.embedded import jars
from rtrec_ray.embedded.jars import Jar
from rtrec_ray.errors import EmbeddedFailure, RtrecError

_AT_ONCE = 6
_ATTEMPTS = 3
_TIMEOUT_S = 60
_LOGGING = "org.apache.logging.log4j:log4j-slf4j-impl:2.25.5"


def fetch(*, on_step: Callable[[int, int, str], None]) -> int:
    """Bring what is missing or damaged; answer how many came. `on_step(done, of, name)` is told of each.

    Raises EmbeddedFailure when one cannot be had, or does not have the pinned SHA-256.
    """
    target = jars.directory()
    target.mkdir(parents=True, exist_ok=True)
    wanted = [jar for jar in jars.pinned() if not jar.is_whole(target / jar.file_name)]
    with tempfile.TemporaryDirectory(dir=target, prefix=".fetch-") as cache, ThreadPoolExecutor(_AT_ONCE) as threads:
        context = MavenContext(repo_cache=Path(cache), timeout=_TIMEOUT_S)
        waiting = {threads.submit(_bring, context, jar, target): jar for jar in wanted}
        for done, future in enumerate(as_completed(waiting), start=1):
            future.result()
            on_step(done, len(wanted), waiting[future].file_name)
    for left in {path.name for path in target.glob("*.jar")} - {jar.file_name for jar in jars.pinned()}:
        (target / left).unlink()
    return len(wanted)


def relock(coordinate: str) -> None:
    """Resolve a version of Kafka anew and write the lock file from what came."""
    with tempfile.TemporaryDirectory() as cache:
        context = MavenContext(repo_cache=Path(cache), timeout=_TIMEOUT_S)
        asked, needed = context.resolver.resolve([context.create_dependency(coordinate)])
        # The logging backend by itself: resolved together, its wishes would override Kafka's own versions.
        backend = context.create_dependency(_LOGGING)
        artifacts = [each.artifact for each in [*asked, *needed, backend] if each.scope in (None, "compile", "runtime")]
        lines = {
            f"{found.groupId}:{found.artifactId}:{found.version} {_sha256(Path(found.resolve()))}"
            for found in artifacts
        }
    notes = [line for line in jars.LOCK.read_text().splitlines() if line.startswith("#")]
    jars.LOCK.write_text("\n".join([*notes, *sorted(lines), ""]))


def _bring(context: MavenContext, jar: Jar, target: Path) -> None:
    path = _download(context, jar)
    if not jar.is_whole(path):
        raise EmbeddedFailure(
            f"{jar.coordinate} came with SHA-256 {_sha256(path)}, pinned is {jar.sha256}",
            mend="do not use it: check the network's proxy, then run `make setup` again",
        )
    path.replace(target / jar.file_name)


def _download(context: MavenContext, jar: Jar) -> Path:
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return Path(context.create_dependency(jar.coordinate).artifact.resolve())
        except (OSError, RuntimeError, requests.RequestException) as error:
            if attempt == _ATTEMPTS:
                raise EmbeddedFailure(
                    f"{jar.coordinate} cannot be fetched: {error}",
                    mend="check the network, then run `make setup` again",
                ) from error
    raise AssertionError


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _report(done: int, of: int, name: str) -> None:
    ends_line = not sys.stderr.isatty() or done == of
    width = shutil.get_terminal_size().columns - 1
    text = f"kafka {jars.version()}: {done}/{of} {name}"
    sys.stderr.write(text + "\n" if not sys.stderr.isatty() else "\r" + text[:width].ljust(width) + "\n" * ends_line)
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 1 with one line on failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--relock", metavar="COORDINATE", help="write the lock file for this version of Kafka")
    options = parser.parse_args(arguments)
    started_s = clock.monotonic_s()
    try:
        if options.relock:
            relock(options.relock)
        count = fetch(on_step=_report)
    except RtrecError as error:
        sys.stderr.write(f"\n{error.line()}\n")
        return 1
    if count:
        sys.stderr.write(f"kafka {jars.version()}: {count} jars in {clock.monotonic_s() - started_s:.0f} s\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
