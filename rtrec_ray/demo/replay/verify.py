"""The claims of the demonstration on a log, each read back from the stores when the run is over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from rtrec_ray.demo.record import Check, Moment, VersionFacts
from rtrec_ray.demo.replay.audience import ARM
from rtrec_ray.demo.replay.figures import NO_MODEL, answered, switches
from rtrec_ray.demo.replay.record import Call, LiveFacts, LogFacts, SpotFacts
from rtrec_ray.events import BEHAVIOR, INFERENCE
from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the stores hold. `history`: topic → rows in Parquet files; `joined_versions`: model versions that the
    inference log names for live samples.
    """

    samples_log: int = 0
    positives_log: int = 0
    samples_live: int = 0
    positives_live: int = 0
    misses: int = 0
    joined_samples: int = 0
    joined_requests: int = 0
    joined_versions: frozenset[str] = frozenset()
    history: Mapping[str, int] = field(default_factory=dict)
    history_files: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that the checks look at."""

    log: LogFacts
    live: LiveFacts
    calls: Sequence[Call]
    last: Moment
    stored: Stored
    versions: Sequence[VersionFacts]
    spots: Sequence[SpotFacts]


def read_stored(postgres: PostgresOptions) -> Stored:
    """Ask the stores. Raises StoreUnavailable."""
    sql = load(__package__, "replay.sql")
    with closing(connect(postgres, application="rtrec-demo")) as connection, transaction(connection) as cursor:
        cursor.execute(sql["samples"], {"arm": ARM})
        samples = cursor.fetchone() or (0, 0, 0, 0)
        cursor.execute(sql["misses"])
        misses = cursor.fetchone() or (0,)
        cursor.execute(sql["joined"], {"arm": ARM})
        joined = cursor.fetchone() or (0, 0, None)
        cursor.execute(sql["history"])
        files = cursor.fetchall()
    return Stored(
        samples_log=samples[0],
        positives_log=samples[1],
        samples_live=samples[2],
        positives_live=samples[3],
        misses=misses[0],
        joined_samples=joined[0],
        joined_requests=joined[1],
        joined_versions=frozenset(joined[2] or ()),
        history={topic: rows for topic, rows, _ in files},
        history_files=sum(count for *_, count in files),
    )


def read_click_rate(postgres: PostgresOptions, *, to_seq: int) -> float | None:
    """Clicks per impression of the samples up to `to_seq`, None without any. Raises StoreUnavailable."""
    with closing(connect(postgres, application="rtrec-demo")) as connection, transaction(connection) as cursor:
        cursor.execute(load(__package__, "replay.sql")["click_rate"], {"to_seq": to_seq})
        row = cursor.fetchone()
    return None if row is None else row[0]


def settled(stored: Stored, log: LogFacts, live: LiveFacts) -> bool:
    """Whether every impression and every event has come to its end."""
    behaviour = log.impressions + log.clicks + live.accepted
    return (
        stored.samples_log >= log.impressions
        and stored.samples_live >= live.impressions
        and stored.history.get(BEHAVIOR, 0) >= behaviour
    )


def checks(seen: Evidence) -> tuple[Check, ...]:
    """Every claim with what was found."""
    return (
        _on_log(seen),
        _features(seen),
        _samples(seen),
        _live_samples(seen),
        _joined(seen),
        _history(seen),
        _nothing_lost(seen),
        _versions(seen),
        _validated(seen),
        _served(seen),
    )


def _on_log(seen: Evidence) -> Check:
    sent, unknown = _sent(seen), seen.live.unknown
    return Check(
        stage="input",
        claim="every event of the log and every event acknowledged over HTTP is on Kafka, once",
        ok=sent <= seen.last.on_log <= sent + unknown,
        figure=f"{seen.last.on_log:,} events, {sent:,} sent"
        + (f", {unknown:,} more without an answer" if unknown else ""),
    )


def _sent(seen: Evidence) -> int:
    return seen.log.impressions + seen.log.clicks + seen.live.accepted


def _features(seen: Evidence) -> Check:
    compared = [spot for spot in seen.spots if not spot.skipped]
    wrong = [spot for spot in compared if spot.found != spot.expected]
    skipped = Counter(spot.skipped for spot in seen.spots if spot.skipped)
    figure = f"{len(compared) - len(wrong):,} of {len(compared):,} equal"
    if wrong:
        figure += f"; {wrong[0].view} of {wrong[0].key} as of {wrong[0].as_of_ms} is not"
    if skipped:
        figure += "; left out: " + ", ".join(f"{count:,} ({why})" for why, count in skipped.most_common())
    return Check(
        stage="features",
        claim="values read over HTTP while the log went by equal a plain recount of its events",
        ok=bool(compared) and not wrong,
        figure=figure,
    )


def _samples(seen: Evidence) -> Check:
    stored, log = seen.stored, seen.log
    return Check(
        stage="samples",
        claim="every impression of the log is one sample, and its click the label",
        ok=(stored.samples_log, stored.positives_log) == (log.impressions, log.clicks),
        figure=f"{stored.samples_log:,} samples, {stored.positives_log:,} clicked",
    )


def _live_samples(seen: Evidence) -> Check:
    stored, live = seen.stored, seen.live
    found, sent = stored.samples_live + stored.positives_live, live.impressions + live.clicks
    return Check(
        stage="samples",
        claim="every live impression is one sample, and its click the label",
        ok=stored.samples_live >= live.impressions
        and stored.positives_live >= live.clicks
        and found <= sent + live.unknown,
        figure=f"{stored.samples_live:,} samples of {live.impressions:,} impressions,"
        f" {stored.positives_live:,} clicked of {live.clicks:,}",
    )


def _joined(seen: Evidence) -> Check:
    stored = seen.stored
    served = {call.version for call in answered(seen.calls)}
    return Check(
        stage="inference log",
        claim="what serving logged of a live request is joined to its samples: features, model version",
        ok=stored.joined_samples == stored.samples_live > 0 and stored.joined_versions <= served,
        figure=f"{stored.joined_samples:,} of {stored.samples_live:,} samples,"
        f" answered by {_of(len(stored.joined_versions - {NO_MODEL}), 'version')}",
    )


def _history(seen: Evidence) -> Check:
    requests, found = seen.log.impressions + len(answered(seen.calls)), seen.stored.history
    behaviour, records = found.get(BEHAVIOR, 0), found.get(INFERENCE, 0)
    return Check(
        stage="history",
        claim="every behaviour event and every inference record is in a Parquet file, once",
        ok=behaviour == seen.last.on_log and requests <= records <= requests + seen.live.failed,
        figure=f"{behaviour:,} + {records:,} rows in {seen.stored.history_files:,} files",
    )


def _nothing_lost(seen: Evidence) -> Check:
    dead = max((stage.counts.get("dead", 0) for stage in seen.last.stages.values()), default=0)
    return Check(
        stage="outcomes",
        claim="nothing was refused as a dead letter, and no impression lacks its inference record",
        ok=dead == 0 and seen.stored.misses == 0,
        figure=f"{dead:,} dead letters, {seen.stored.misses:,} join misses",
    )


def _versions(seen: Evidence) -> Check:
    kinds = Counter(version.kind for version in seen.versions)
    return Check(
        stage="training",
        claim="a base model was trained on the first days, and increments on the rest, each a version in MLflow",
        ok=kinds["base"] > 0 and kinds["increment"] > 0,
        figure=f"{_of(kinds['base'], 'base model')}, {_of(kinds['increment'], 'increment')}",
    )


def _validated(seen: Evidence) -> Check:
    online = [version for version in seen.versions if version.online_s is not None]
    rash = [version.version for version in online if version.outcome != "validated"]
    outcomes = Counter(version.outcome for version in seen.versions)
    return Check(
        stage="validation",
        claim="only a version that passed its examination went online",
        ok=bool(online) and not rash,
        figure=f"{outcomes['validated']:,} validated, {outcomes['rejected']:,} rejected, {len(online):,} online"
        + (f"; unexamined: {', '.join(rash)}" if rash else ""),
    )


def _served(seen: Evidence) -> Check:
    changes, failed = len(switches(seen.calls)), seen.live.failed
    return Check(
        stage="serving",
        claim="the model was exchanged while requests came, and none of them failed",
        ok=changes >= 2 and failed == 0,
        figure=f"{_of(changes, 'change')}, {failed:,} of {seen.live.requests:,} requests failed",
    )


def _of(count: int, what: str) -> str:
    """A count with its noun.

    >>> _of(1, "change"), _of(2_000, "change")
    ('1 change', '2,000 changes')
    """
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
