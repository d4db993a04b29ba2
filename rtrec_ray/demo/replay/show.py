"""The demonstration of a log on a running system, in the order in which it happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Final

import polars as pl
from rich.progress import TaskID

from rtrec_ray.app.system import System
from rtrec_ray.app.training import train_base
from rtrec_ray.clock import monotonic_s, wall_ms
from rtrec_ray.demo.background import Background, pause, wait_until
from rtrec_ray.demo.lineage import version_facts
from rtrec_ray.demo.observe import progress_points, time_line
from rtrec_ray.demo.record import TimeLine
from rtrec_ray.demo.replay.audience import audience
from rtrec_ray.demo.replay.log import Log
from rtrec_ray.demo.replay.news import News
from rtrec_ray.demo.replay.options import Base, ShowOptions
from rtrec_ray.demo.replay.record import DemoRecord, SpotFacts
from rtrec_ray.demo.replay.spotcheck import SpotChecks, compare, questions
from rtrec_ray.demo.replay.traffic import Traffic, TrafficOptions
from rtrec_ray.demo.replay.verify import Evidence, Stored, checks, read_click_rate, read_stored, settled
from rtrec_ray.demo.screen import Screen
from rtrec_ray.demo.timeline import Seen, Timeline, Watched
from rtrec_ray.errors import DemoFailed
from rtrec_ray.events import BEHAVIOR
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.notification import MODEL_DEPLOYED, MODEL_REJECTED
from rtrec_ray.registry.base import ModelVersion
from rtrec_ray.registry.mlflow import MlflowModelCenter, RegistryOptions
from rtrec_ray.simulate.replay import ReplayOptions, ReplaySummary, replay

_DAY_MS: Final = 86_400_000
_ONLINE_S: Final = 120.0
_COMPLETE_S: Final = 90.0


class Show:
    """One showing. `began_ms`: when the run began, wall time. `mend`: where to look when something does not happen."""

    def __init__(
        self, options: ShowOptions, system: System, log: Log, *, screen: Screen, began_ms: int, mend: str
    ) -> None:
        self._options = options
        self._system = system
        self._log = log
        self._screen = screen
        self._began_ms = began_ms
        self._mend = mend
        began_s = monotonic_s() - (wall_ms() - began_ms) / 1_000.0
        self._traffic = Traffic(
            TrafficOptions(seed=options.seed, requests_per_s=options.requests_per_s),
            url=system.http_url,
            clock=system.clock,
            audience=audience(log.records),
            began_s=began_s,
        )
        self._timeline = Timeline(
            Watched(kafka=system.kafka, postgres=system.postgres, clock=system.clock, partitions=system.partitions),
            began_s=began_s,
            watch=self._told,
        )
        self._spots = SpotChecks(
            questions(log.clicks, count=options.spot_checks),
            system.postgres,
            url=system.http_url,
            clock_ms=system.clock.now_ms,
        )
        self._news = News(log.facts, self._traffic.calls)
        self._replay: Background[ReplaySummary] = Background(self._write_log, name="replay")
        self._bar: TaskID | None = None
        self._over = threading.Event()

    def play(self) -> DemoRecord:
        """From the first event to the verdict. Raises DemoFailed and whatever a stage raises."""
        self._bar = self._screen.add_bar("the log", total=float(len(self._log)))
        parts = (self._timeline, self._traffic, self._spots, self._replay)
        for part in parts:
            part.start()
        try:
            return self._play()
        finally:
            self._over.set()
            for part in parts:
                part.stop()

    def _play(self) -> DemoRecord:
        for number, base in enumerate(self._options.bases):
            if number and self._replay.done():
                self._screen.say(f"the log is over already: no {base.family} model is trained")
                break
            self._let_pass(base)
            self._train(base)
        with self._screen.phase("learning on"):
            self._wait(self._replay.done, timeout_s=60.0 + 120.0 * self._options.minutes, what="the log did not end")
            self._replay.result()
            with suppress(DemoFailed):  # the checks will say so, with the report
                self._wait(self._learnt_on, timeout_s=_ONLINE_S, what="no increment went online")
        with self._screen.phase("completing, verifying"):
            return self._verify()

    def _let_pass(self, base: Base) -> None:
        """Wait until the samples have come to the moment at which this base is to be trained."""
        moment_ms = self._log.facts.first_ms + round(base.after_days * _DAY_MS)
        with self._screen.phase(f"{base.after_days:g} days of log"):
            self._wait(
                lambda: self._sampled_to_ms() >= moment_ms,
                timeout_s=60.0 + 120.0 * self._options.minutes,
                what=f"the samples of the log's first {base.after_days:g} days were not made",
            )

    def _sampled_to_ms(self) -> int:
        moments = self._timeline.moments()
        stage = moments[-1].stages.get("samples") if moments else None
        return 0 if stage is None or stage.watermark_ms is None else stage.watermark_ms

    def _train(self, base: Base) -> None:
        """Train on what there is by now, while the log goes on, and see what the gate says of it."""
        with self._screen.phase(f"base model ({base.family})"):
            version = train_base(self._system, family=base.family)
            self._wait(
                lambda: self._outcome(version) is not None,
                timeout_s=_ONLINE_S,
                what=f"model v{version.version} was neither put online nor rejected",
            )
        if self._outcome(version) == MODEL_REJECTED and not self._deployed():
            raise DemoFailed(
                f"the gate rejected model v{version.version}, so there is nothing to serve", mend=self._mend
            )

    def _outcome(self, version: ModelVersion) -> str | None:
        """What became of a version; one that a later one overtook on its way counts as deployed."""
        number = int(version.version)
        for event in self._timeline.events():
            if event.type == MODEL_DEPLOYED and int(event.value) >= number:
                return MODEL_DEPLOYED
            if event.type == MODEL_REJECTED and event.value == version.version:
                return MODEL_REJECTED
        return None

    def _learnt_on(self) -> bool:
        """Whether an increment has gone online, or was refused: on a slow machine the log may be over first."""
        events = self._timeline.events()
        increments = {event.value for event in events if event.context.get("kind") == "increment"}
        return any(event.value in increments and event.type in (MODEL_DEPLOYED, MODEL_REJECTED) for event in events)

    def _deployed(self) -> bool:
        return any(event.type == MODEL_DEPLOYED for event in self._timeline.events())

    def _verify(self) -> DemoRecord:
        self._traffic.stop()
        self._traffic.check()
        live, stored = self._traffic.facts(), self._complete()
        self._spots.stop()
        self._timeline.stop()
        center = MlflowModelCenter(RegistryOptions(url=self._system.mlflow_url))
        registered = center.list(limit=1_000)
        versions = version_facts(self._timeline.events(), registered, self._time)
        evidence = Evidence(
            log=self._log.facts,
            live=live,
            calls=self._traffic.calls(),
            last=self._timeline.moments()[-1],
            stored=stored,
            versions=versions,
            spots=self._compared(),
        )
        return self._record(evidence, registered)

    def _complete(self) -> Stored:
        """Let what is under way come to its end; what has not by then is for the checks to say."""
        stored = read_stored(self._system.postgres)
        deadline_s = monotonic_s() + _COMPLETE_S
        while not settled(stored, self._log.facts, self._traffic.facts()) and monotonic_s() < deadline_s:
            pause(1.0)
            stored = read_stored(self._system.postgres)
        pause(1.5)  # one more look of the timeline, at the state in which the stores are now
        return stored

    def _record(self, evidence: Evidence, registered: Sequence[ModelVersion]) -> DemoRecord:
        system, options = self._system, self._options
        stored, live = evidence.stored, evidence.live
        return DemoRecord(
            seed=options.seed,
            minutes=options.minutes,
            began_ms=self._began_ms,
            seconds=(wall_ms() - self._began_ms) / 1_000.0,
            log=self._log.facts,
            time=self._time,
            phases=self._screen.phases,
            moments=self._timeline.moments(),
            progress=progress_points(system.postgres, began_ms=self._began_ms),
            versions=tuple(evidence.versions),
            calls=tuple(evidence.calls),
            live=live,
            spots=tuple(evidence.spots),
            checks=checks(evidence),
            base_rates=self._base_rates(registered),
            bounds_ms={
                "disorder_ms": system.watermark.disorder_ms,
                "skew_ms": system.skew_ms,
                "wait_ms": system.samples.wait_ms,
            },
            counts={
                "samples_log": stored.samples_log,
                "positives_log": stored.positives_log,
                "samples_live": stored.samples_live,
                "positives_live": stored.positives_live,
                "misses": stored.misses,
                "on_kafka": evidence.last.on_log,
                "history_files": stored.history_files,
                "live_requests": live.requests,
                "live_failed": live.failed,
            },
        )

    def _compared(self) -> list[SpotFacts]:
        log = self._log.records[BEHAVIOR]
        live = pl.DataFrame(self._traffic.events(), schema=log.schema)
        return [compare(answer, log=log, live=live) for answer in self._spots.answers()]

    @property
    def _time(self) -> TimeLine:
        return time_line(self._system.clock, began_ms=self._began_ms)

    def _base_rates(self, registered: Sequence[ModelVersion]) -> dict[str, float]:
        """Clicks per impression of the samples before each base model, by its version."""
        bases = {version.version: version.draft.to_seq for version in registered if version.draft.kind == "base"}
        found = {number: read_click_rate(self._system.postgres, to_seq=to_seq) for number, to_seq in bases.items()}
        return {number: rate for number, rate in found.items() if rate is not None}

    def _write_log(self) -> ReplaySummary:
        options = ReplayOptions(pace="clock", skew_ms=self._system.skew_ms)
        with closing(connect_producer(self._system.kafka)) as producer:
            return replay(
                self._log.facts.source, producer, options, clock=self._system.clock, progress=self._on_written
            )

    def _on_written(self, done: int, total: int) -> None:
        if self._over.is_set():
            raise DemoFailed("the show is over")  # ends the replay's thread, which nobody waits for any more
        if self._bar is not None:
            self._screen.move(self._bar, done=float(done), state=f"{done:,} of {total:,} records")

    def _told(self, seen: Seen) -> None:
        for line in self._news.lines(seen):
            self._screen.say(line)

    def _wait(self, met: Callable[[], bool], *, timeout_s: float, what: str) -> None:
        checked = (self._replay.check, self._traffic.check)
        wait_until(met, timeout_s=timeout_s, what=what, mend=self._mend, checked=checked)
