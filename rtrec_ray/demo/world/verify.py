"""What the system did in the world, read back from the stores when the run is over: claims about it, not about arms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from rtrec_ray.demo.record import Check, VersionFacts
from rtrec_ray.demo.world.record import Asking
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load
from rtrec_ray.simulate.replay import ReplaySummary
from rtrec_ray.simulate.world.experiment import ARMS, MODEL_OF


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the stores hold. `realtime`: (arm, realtime) → live requests; `versions`: arm → models that answered live;
    `history`: topic → rows in Parquet files.
    """

    samples: int = 0
    positives: int = 0
    misses: int = 0
    realtime: Mapping[tuple[str | None, str | None], int] = field(default_factory=dict)
    versions: Mapping[str | None, int] = field(default_factory=dict)
    history: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the checks look at. `sent`: event type → live events reported; `yesterday_clicks`: of its samples."""

    yesterday: ReplaySummary
    shown_yesterday: int
    stored: Stored
    sent: Mapping[str, int]
    asked: Sequence[Asking]
    versions: Sequence[VersionFacts] = ()

    def counts(self) -> dict[str, int]:
        """Figures for the report."""
        return {
            "requests": len(self.asked),
            "failed": sum(asking.answered.status != 200 for asking in self.asked),
            "degraded": sum(bool(asking.answered.degraded) for asking in self.asked),
            "yesterday_behavior": self.yesterday.records.get(BEHAVIOR, 0),
            "yesterday_requests": self.yesterday.records.get(INFERENCE, 0),
            "yesterday_impressions": self.shown_yesterday,
            "live_events": sum(self.sent.values()),
            **{f"live_{kind}": number for kind, number in sorted(self.sent.items())},
            "samples": self.stored.samples,
            "positives": self.stored.positives,
            "misses": self.stored.misses,
            "history_rows": self.stored.history.get(BEHAVIOR, 0),
            "versions_online": sum(version.online_s is not None for version in self.versions),
            "versions_rejected": sum(version.outcome == "rejected" for version in self.versions),
        }


def read_stored(postgres: PostgresOptions) -> Stored:
    """Ask the stores. Raises StoreUnavailable."""
    sql = load(__package__, "world.sql")
    with closing(connect(postgres, application="rtrec-demo")) as connection, transaction(connection) as cursor:
        cursor.execute(sql["samples"])
        samples = cursor.fetchone() or (0, 0)
        cursor.execute(sql["misses"])
        misses = cursor.fetchone() or (0,)
        cursor.execute(sql["realtime"])
        realtime = {(arm, known): requests for arm, known, requests in cursor.fetchall()}
        cursor.execute(sql["versions"])
        versions = dict(cursor.fetchall())
        cursor.execute(sql["history"])
        history = dict(cursor.fetchall())
    return Stored(
        samples=samples[0],
        positives=samples[1],
        misses=misses[0],
        realtime=realtime,
        versions=versions,
        history=history,
    )


def settled(seen: Evidence) -> bool:
    """Whether every impression and every event has come to its end."""
    return seen.stored.samples >= _shown(seen) and seen.stored.history.get(BEHAVIOR, 0) >= _reported(seen)


def checks(seen: Evidence) -> tuple[Check, ...]:
    """Every claim with what was found."""
    return (_answered(seen), _samples(seen), _history(seen), _realtime(seen), _versions(seen), _validated(seen))


def _answered(seen: Evidence) -> Check:
    failed = sum(asking.answered.status != 200 for asking in seen.asked)
    return Check(
        stage="serving",
        claim="every request was answered, whatever was exchanged meanwhile",
        ok=bool(seen.asked) and failed == 0,
        figure=f"{len(seen.asked):,} requests, {failed:,} failed",
    )


def _samples(seen: Evidence) -> Check:
    stored, shown = seen.stored, _shown(seen)
    return Check(
        stage="samples",
        claim="every impression of yesterday and of the live part is one sample, joined to its inference record",
        ok=(stored.samples, stored.misses) == (shown, 0),
        figure=f"{stored.samples:,} samples of {shown:,} impressions, {stored.misses:,} without a record",
    )


def _history(seen: Evidence) -> Check:
    kept, reported = seen.stored.history.get(BEHAVIOR, 0), _reported(seen)
    return Check(
        stage="history",
        claim="every event is in a Parquet file, once",
        ok=kept == reported,
        figure=f"{kept:,} of {reported:,} events",
    )


def _realtime(seen: Evidence) -> Check:
    """A request that the store did not answer in time is without real-time features in any arm, and says so."""
    degraded = dict.fromkeys(ARMS, 0)
    for asking in seen.asked:
        degraded[asking.arm] += bool(asking.answered.degraded)
    wrong = {
        (arm, known): number
        for (arm, known), number in seen.stored.realtime.items()
        if arm not in ARMS or (known == "on") != ARMS[arm]
    }
    unexcused = {pair: number for pair, number in wrong.items() if number > degraded.get(pair[0] or "", 0)}
    return Check(
        stage="arms",
        claim="the record of every request names its arm, and says whether it had real-time features, as the arm is to",
        ok=bool(seen.stored.realtime) and not unexcused,
        figure=", ".join(f"{arm} {known}: {n:,}" for (arm, known), n in sorted(seen.stored.realtime.items(), key=str)),
    )


def _versions(seen: Evidence) -> Check:
    found = seen.stored.versions
    frozen = all(found.get(arm, 0) == 1 for arm, model in MODEL_OF.items() if model == "base")
    return Check(
        stage="arms",
        claim="the arms without training kept the base model; the arm with it was given every increment online",
        ok=frozen and found.get("training", 0) > 1,
        figure=", ".join(
            f"{arm}: {number} version{'s' if number != 1 else ''}" for arm, number in sorted(found.items(), key=str)
        ),
    )


def _validated(seen: Evidence) -> Check:
    online = [version for version in seen.versions if version.online_s is not None]
    unexamined = [version.version for version in online if version.outcome != "validated"]
    rejected = sum(version.outcome == "rejected" for version in seen.versions)
    return Check(
        stage="models",
        claim="no version went online unvalidated",
        ok=bool(online) and not unexamined,
        figure=f"{len(online)} versions online, {rejected} rejected, {len(unexamined)} unvalidated",
    )


def _shown(seen: Evidence) -> int:
    return seen.shown_yesterday + seen.sent.get("impression", 0)


def _reported(seen: Evidence) -> int:
    return seen.yesterday.records.get(BEHAVIOR, 0) + sum(seen.sent.values())
