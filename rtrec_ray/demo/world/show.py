"""The demonstration in the world on a running system, in the order in which it happens."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Final

from rtrec_ray.app.system import System
from rtrec_ray.app.training import train_base
from rtrec_ray.clock import monotonic_s, wall_ms
from rtrec_ray.demo.background import Background, pause, wait_until
from rtrec_ray.demo.lineage import version_facts
from rtrec_ray.demo.news import of_model
from rtrec_ray.demo.observe import progress_points, time_line
from rtrec_ray.demo.record import TimeLine
from rtrec_ray.demo.screen import Screen
from rtrec_ray.demo.timeline import Seen, Timeline, Watched
from rtrec_ray.demo.world.day import arm_name, send
from rtrec_ray.demo.world.options import WorldDemoOptions
from rtrec_ray.demo.world.record import Asking, WorldRecord
from rtrec_ray.demo.world.verify import Evidence, Stored, checks, read_stored, settled
from rtrec_ray.errors import DemoFailed
from rtrec_ray.kafka.connect import connect_producer
from rtrec_ray.notification import MODEL_DEPLOYED, MODEL_REJECTED
from rtrec_ray.registry.mlflow import MlflowModelCenter, RegistryOptions
from rtrec_ray.simulate.recording import Recording
from rtrec_ray.simulate.replay import ReplaySummary
from rtrec_ray.simulate.world.experiment import Schedule, world_options
from rtrec_ray.simulate.world.live import Answered, ShopperOptions, Shoppers
from rtrec_ray.simulate.world.options import Drift
from rtrec_ray.simulate.world.world import World, make_world
from rtrec_ray.simulate.world.worth import worth

_STITCHED_S: Final = 120.0
_ONLINE_S: Final = 120.0


class WorldShow:
    """One showing. `began_ms`: when the run began, wall time. `mend`: where to look when something does not happen."""

    def __init__(self, options: WorldDemoOptions, system: System, *, screen: Screen, began_ms: int, mend: str) -> None:
        self._options = options
        self._system = system
        self._screen = screen
        self._began_ms = began_ms
        self._mend = mend
        self._began_s = monotonic_s() - (wall_ms() - began_ms) / 1_000.0
        self._asked: list[Asking] = []
        self._timeline = Timeline(
            Watched(kafka=system.kafka, postgres=system.postgres, clock=system.clock, partitions=system.partitions),
            began_s=self._began_s,
            watch=self._told,
        )

    def play(self, yesterday: Future[Recording]) -> WorldRecord:
        """From yesterday's log to the verdict. Raises DemoFailed and whatever a stage raises."""
        self._timeline.start()
        try:
            with self._screen.phase("yesterday"):
                recording = yesterday.result()
                evidence = Evidence(
                    yesterday=self._replay(recording),
                    shown_yesterday=_shown(recording),
                    stored=Stored(),
                    sent={},
                    asked=self._asked,
                )
            with self._screen.phase("base model"):
                self._train()
            live = self._live_schedule()
            world = make_world(world_options(live, seed=self._options.seed))
            shoppers = self._shoppers(world, live)
            with self._screen.phase("live"):
                self._let_pass(live, shoppers)
            with self._screen.phase("completing, verifying"):
                evidence = self._complete(replace(evidence, sent=shoppers.sent))
                self._judge(world)
        finally:
            self._timeline.stop()
        return self._record(live, evidence)

    def _replay(self, recording: Recording) -> ReplaySummary:
        bar = self._screen.add_bar("yesterday", total=float(len(recording)))

        def on_written(done: int, total: int) -> None:
            self._screen.move(bar, done=float(done), state=f"{done:,} of {total:,} records")

        with closing(connect_producer(self._system.kafka)) as producer:
            summary = send(recording, producer, progress=on_written)
        self._screen.say(f"{sum(summary.records.values()):,} records of yesterday on Kafka")
        shown = _shown(recording)
        wait_until(
            lambda: read_stored(self._system.postgres).samples >= shown,
            timeout_s=_STITCHED_S,
            what=f"yesterday's {shown:,} samples were not made",
            mend=self._mend,
        )
        return summary

    def _train(self) -> None:
        version = train_base(self._system)
        wait_until(
            lambda: self._outcome(version.version) is not None,
            timeout_s=_ONLINE_S,
            what=f"model v{version.version} was neither put online nor rejected",
            mend=self._mend,
        )
        if self._outcome(version.version) == MODEL_REJECTED:
            raise DemoFailed(f"the gate rejected the base model v{version.version}", mend=self._mend)

    def _outcome(self, version: str) -> str | None:
        outcomes = (MODEL_DEPLOYED, MODEL_REJECTED)
        found = (event.type for event in self._timeline.events() if event.value == version and event.type in outcomes)
        return next(found, None)

    def _live_schedule(self) -> Schedule:
        """The experiment's times, from now on."""
        return replace(self._options.schedule, from_ms=self._system.clock.now_ms())

    def _shoppers(self, world: World, live: Schedule) -> Shoppers:
        return Shoppers(
            world,
            ShopperOptions(per_wall_s=live.per_wall_s, seed=self._options.seed),
            url=self._system.http_url,
            connect=lambda: connect_producer(self._system.kafka),
            clock=self._system.clock,
            tell=self._on_answer,
        )

    def _let_pass(self, live: Schedule, shoppers: Shoppers) -> None:
        bar = self._screen.add_bar("live", total=60.0 * live.minutes)
        coming, stop = list(live.drifts), threading.Event()
        visits = Background(partial(shoppers.run, stop), name="shoppers")
        visits.start()
        try:
            while (now_ms := self._system.clock.now_ms()) < live.to_ms:
                visits.check()
                while coming and coming[0].at_ms <= now_ms:
                    self._screen.say(_tells(coming.pop(0)))
                past_s = (now_ms - live.from_ms) / (1_000.0 * live.speed)
                self._screen.move(bar, done=past_s, state=f"{len(self._asked):,} requests")
                pause(0.2)
        finally:
            stop.set()
            visits.join()
        visits.check()

    def _complete(self, evidence: Evidence) -> Evidence:
        """Let what is under way come to its end; what has not by then is for the checks to say."""
        deadline_s = monotonic_s() + self._options.settle_s
        evidence = replace(evidence, stored=read_stored(self._system.postgres))
        while not settled(evidence) and monotonic_s() < deadline_s:
            pause(1.0)
            evidence = replace(evidence, stored=read_stored(self._system.postgres))
        return evidence

    def _judge(self, world: World) -> None:
        """Hold every answer against the truth: only now, for it takes longer than to answer."""
        found = worth(world, [asking.answered.slate for asking in self._asked])
        self._asked[:] = [replace(asking, worth=each) for asking, each in zip(self._asked, found, strict=True)]

    def _record(self, live: Schedule, evidence: Evidence) -> WorldRecord:
        registered = MlflowModelCenter(RegistryOptions(url=self._system.mlflow_url)).list(limit=1_000)
        versions = version_facts(self._timeline.events(), registered, self._time)
        evidence = replace(evidence, versions=versions)
        return WorldRecord(
            seed=self._options.seed,
            minutes=live.minutes,
            began_ms=self._began_ms,
            seconds=(wall_ms() - self._began_ms) / 1_000.0,
            time=self._time,
            live_ms=(live.from_ms, live.to_ms),
            counted_from_ms=live.from_ms + round(self._options.warm_up_s * 1_000 * live.speed),
            drifts=live.drifts,
            first_drift_ms=live.first_drift_ms,
            phases=self._screen.phases,
            moments=self._timeline.moments(),
            progress=progress_points(self._system.postgres, began_ms=self._began_ms),
            versions=versions,
            asked=tuple(self._asked),
            checks=checks(evidence),
            counts=evidence.counts(),
        )

    @property
    def _time(self) -> TimeLine:
        return time_line(self._system.clock, began_ms=self._began_ms)

    def _on_answer(self, answered: Answered) -> None:
        asking = Asking(at_s=answered.at_s - self._began_s, arm=arm_name(answered.user_id), answered=answered)
        self._asked.append(asking)

    def _told(self, seen: Seen) -> None:
        for event in seen.events:
            if text := of_model(event):
                self._screen.say(text)


def _shown(recording: Recording) -> int:
    return sum(b'"event_type":"impression"' in value for value in recording.values)


def _tells(drift: Drift) -> str:
    return {
        "trend": "drift: the trend changes (men in China on page 100: ad 2002 → 2001)",
        "parting": "drift: cities part (Shanghai likes 2002 there, Beijing 2011)",
        "new_items": "drift: new ads appear, each liked by one age band",
    }[drift.kind]
