"""`rtrec features verify`: the history's requests compared with its events, a few minutes of each at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from typing import Final

import msgspec
import polars as pl
import pyarrow.compute as pc

from rtrec_ray.app.system import System
from rtrec_ray.errors import ConfigInvalid, VerifyImpossible
from rtrec_ray.events import (
    BEHAVIOR,
    INFERENCE,
    ITEM,
    PROFILE,
    CatalogItem,
    InferenceRecord,
    ProfileVersion,
)
from rtrec_ray.features.compute import concerns_some
from rtrec_ray.features.counted import EVENT_SCHEMA
from rtrec_ray.features.daily import DAY_MS
from rtrec_ray.features.definition import Definitions
from rtrec_ray.features.recount import VERSION_SCHEMA, Sample, once, sample_of
from rtrec_ray.features.request import FEATURE_VIEWS
from rtrec_ray.features.seen import MINUTE_MS
from rtrec_ray.features.served import Case, served_asks
from rtrec_ray.features.verify import (
    Difference,
    Report,
    by_late_profiles,
    cases_of,
    compare,
    items_behind,
    keys_by_view,
    values_of,
)
from rtrec_ray.features.versions import ITEM_VERSIONS, PROFILE_VERSIONS, Known, Versions
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features.postgres import PostgresFeatureStore
from rtrec_ray.stores.features.store import ProfileSource
from rtrec_ray.stores.history.files import ArrowHistoryFiles, HistoryFilesOptions
from rtrec_ray.stores.history.manifest import PostgresHistoryManifest
from rtrec_ray.stores.history.store import BEGINNING_MS, FOREVER_MS, History
from rtrec_ray.stores.progress import read_positions

HISTORY_TASK: Final = "history"
SLOT_MS: Final = 300_000  # whole minutes, so that an event and its duplicates are in one
# Requests compared together: each chunk groups the events behind it once, and holds them.
_CHUNK: Final = 4_096
_CHUNK_SLOTS: Final = 6

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What to compare. `share`: of each view's keys, in (0, 1], but one at least; times of requests in ms UTC, [from,
    to); `most` requests.

    >>> VerifyOptions(share=0.0)
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: the sample is a share above 0 and up to 1, not 0.0
    """

    share: float = 0.05
    from_ms: int | None = None
    to_ms: int | None = None
    most: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ConfigInvalid(f"the sample is a share above 0 and up to 1, not {self.share}", mend="as 0.05")


def verify_system(system: System, options: VerifyOptions, *, progress: Progress) -> Report:
    """Compare what the system served. Raises VerifyImpossible, NotRunning, StoreUnavailable."""
    files = ArrowHistoryFiles(HistoryFilesOptions(uri=system.history_uri))
    with (
        closing(Pool(system.postgres, size=1)) as pool,
        closing(PostgresHistoryManifest(system.postgres)) as manifest,
    ):
        store = PostgresFeatureStore(system.features, pool=pool)
        store.refresh()
        with pool.transaction() as cursor:
            reached = {
                topic: read_positions(cursor, task=HISTORY_TASK, topic=topic) for topic in (BEHAVIOR, PROFILE, ITEM)
            }
        history = History(files, manifest)
        return verify_history(store, history, options, reached=reached, ahead_ms=system.skew_ms, progress=progress)


def verify_history(
    store: ProfileSource,
    history: History,
    options: VerifyOptions,
    *,
    reached: Mapping[str, Mapping[int, int]],
    ahead_ms: int,
    progress: Progress = lambda done, total: None,
) -> Report:
    """Compare the requests of a history. `reached`: topic → partition → the first offset that it does not have;
    `ahead_ms`: how far ahead of the clock an event may be. Raises VerifyImpossible, StoreUnavailable.
    """
    report, chunks = Report(), _chunks(_requests(history, options, progress=progress))
    first = next(chunks, [])
    sample = _sample(first, options.share)
    events = EventSlots(history, store.definitions, sample=sample)
    for records in chain([first], chunks):
        cases = cases_of(records, store.definitions, report, sample=sample, reached=reached, most=options.most)
        if cases:
            _compare(cases, store, history, report, events=events.around(cases, ahead_ms=ahead_ms))
        if options.most is not None and report.compared >= options.most:
            break
    if not report.requests:
        raise VerifyImpossible(
            "no request of that time says which events were behind its features",
            mend="send requests to /v1/recommend, or choose another time; the history has them after some 10 s",
        )
    if report.not_yet and not report.compared:
        raise VerifyImpossible(
            f"of {report.not_yet:,} requests the history does not have the events behind their features yet",
            mend="it has them after some 10 s; `rtrec status` shows whether the stage history is up, and its lag",
        )
    return report


def _sample(first: Sequence[InferenceRecord], share: float) -> Sample:
    """By the first requests; the day of the first of all says whose turn it is where keys are few."""
    turn = first[0].ts // DAY_MS if first else 0
    return sample_of(keys_by_view(map(served_asks, first)), share, turn=turn)


class EventSlots:
    """The events of the sample by slots of time, each read once as long as requests go on with time."""

    def __init__(self, history: History, definitions: Definitions, *, sample: Sample) -> None:
        self._history = history
        self._views = [view for view in definitions.views if view.name in FEATURE_VIEWS]
        self._sample = sample
        self._slots: dict[int, pl.DataFrame] = {}

    def around(self, cases: Iterable[Case], *, ahead_ms: int) -> pl.DataFrame:
        """EVENT_SCHEMA: what may be behind the cases' values, and the retractions that may have come until then."""
        spans = {(each.span.from_ms, each.span.to_ms) for case in cases for each in case.questions.values()}
        wanted = {
            slot
            for from_ms, to_ms in spans
            for slot in range(from_ms // SLOT_MS, (to_ms + ahead_ms - 1) // SLOT_MS + 1)
        }
        self._slots = {slot: self._slots[slot] if slot in self._slots else self._read(slot) for slot in sorted(wanted)}
        return pl.concat([EVENT_SCHEMA.to_frame(), *self._slots.values()])

    def _read(self, slot: int) -> pl.DataFrame:
        of_time = self._history.portions(
            BEHAVIOR,
            from_ms=slot * SLOT_MS,
            to_ms=(slot + 1) * SLOT_MS,
            step_ms=MINUTE_MS,
            columns=EVENT_SCHEMA.names(),
        )
        kept = [once(events, self._views, sample=self._sample) for _, _, events in of_time]
        return pl.concat([EVENT_SCHEMA.to_frame(), *kept])


def _compare(
    cases: Sequence[Case], store: ProfileSource, history: History, report: Report, *, events: pl.DataFrame
) -> None:
    of_profiles = concerns_some(view for view in store.definitions.views if view.needs_profile)
    users = events.filter(of_profiles)["user_id"].unique().to_list()
    profiles = store.profile_versions(users)
    values = values_of(cases, events, profiles, tile_ms=store.definitions.tile_ms)
    equal, differences = compare(cases, values, _known(history, cases, items_behind(cases, values)))
    report.add(equal, differences, late=_explained(differences, history, events, users))


def _known(history: History, cases: Sequence[Case], items: Collection[int]) -> Known:
    """All versions of these items, and of the profiles that the cases ask for."""
    users = {case.record.user_id for case in cases if case.upto(PROFILE) is not None}
    return Known(
        profiles=Versions(_sent(history, PROFILE, PROFILE_VERSIONS, users), ProfileVersion),
        items=Versions(_sent(history, ITEM, ITEM_VERSIONS, items), CatalogItem),
    )


def _sent(history: History, topic: str, schema: pl.Schema, numbers: Collection[int]) -> pl.DataFrame:
    """Every record of the topic about these; the schema's first column is what they are known by."""
    names = schema.names()
    found = history.scan(topic, columns=names, where=pc.field(names[0]).isin(list(numbers))) if numbers else ()
    frames: list[pl.DataFrame] = [schema.to_frame(), *found]
    return pl.concat(frames)


def _explained(
    differences: Sequence[Difference], history: History, events: pl.DataFrame, users: Sequence[int]
) -> list[Difference]:
    if not any(each.question is not None and each.question.view.needs_profile for each in differences):
        return []
    # Only the history knows when a version was written; it is asked for that when something differs.
    sent = history.scan(PROFILE, columns=VERSION_SCHEMA.names(), where=pc.field("user_id").isin(users))
    return by_late_profiles(differences, events, pl.concat([VERSION_SCHEMA.to_frame(), *sent]))


def _requests(history: History, options: VerifyOptions, *, progress: Progress) -> Iterator[InferenceRecord]:
    """The requests of the chosen time that say what was behind their features, by slots of time."""
    low = BEGINNING_MS if options.from_ms is None else options.from_ms
    high = FOREVER_MS if options.to_ms is None else options.to_ms
    files = history.files(INFERENCE, from_ms=low, to_ms=high)
    if not files:
        raise VerifyImpossible(
            "the history has no requests of that time",
            mend="`rtrec up` writes it; `rtrec status` shows whether the stage history is up, and its lag",
        )
    slots = sorted({slot for file in files for slot in range(file.min_ts_ms // SLOT_MS, file.max_ts_ms // SLOT_MS + 1)})
    decoder = msgspec.json.Decoder(InferenceRecord)
    for done, slot in enumerate(slots):
        progress(done, len(slots))
        from_ms, to_ms = max(slot * SLOT_MS, low), min((slot + 1) * SLOT_MS, high)
        seen: set[str] = set()
        told = pc.field("as_of").is_valid()
        for frame in history.scan(INFERENCE, from_ms=from_ms, to_ms=to_ms, columns=("raw",), where=told):
            # The log has a request twice when its producer was not sure.
            for record in map(decoder.decode, frame["raw"]):
                if record.request_id not in seen:
                    seen.add(record.request_id)
                    yield record
    progress(len(slots), len(slots))


def _chunks(records: Iterator[InferenceRecord]) -> Iterator[list[InferenceRecord]]:
    chunk: list[InferenceRecord] = []
    for record in records:
        if chunk and (len(chunk) == _CHUNK or record.ts // SLOT_MS - chunk[0].ts // SLOT_MS >= _CHUNK_SLOTS):
            yield chunk
            chunk = []
        chunk.append(record)
    if chunk:
        yield chunk
