"""A view's features for past samples: requests that lack them, some thousand at a time, each such portion committed.

Killed and started again it goes on with the requests that have none. What was logged stays as it was.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import polars as pl

from rtrec_ray.errors import BackfillImpossible
from rtrec_ray.events import InferenceRecord, RankedItem
from rtrec_ray.features.as_of import ROW_SCHEMA, value_of
from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.past_requests import RequestFeatures, request_features_of
from rtrec_ray.postgres.connection import Pool
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.features.as_of import AsOfReader, Progress, reached_ms
from rtrec_ray.stores.history.store import BEGINNING_MS, FOREVER_MS

PORTION: Final = 10_000
"""Requests that are computed and committed together."""

_decode_items = msgspec.json.Decoder(list[RankedItem] | None).decode
_decode_features = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesBackfillSummary:
    """What a run did. `requests` got the view's features now, `already` had them; `ahead` are of times that the system
    has not reached yet.
    """

    view: str
    features: tuple[str, ...]
    requests: int
    already: int
    ahead: int


class SamplesBackfill:
    """Adds features of a view to past requests. `portion`: requests in a commit."""

    def __init__(self, reader: AsOfReader, *, pool: Pool, portion: int = PORTION) -> None:
        self._reader = reader
        self._pool = pool
        self._portion = portion
        self._sql = load("rtrec_ray.stores.samples", "backfilled.sql")

    def fill(
        self, name: str, *, from_ms: int | None, to_ms: int | None, progress: Progress = lambda done, total: None
    ) -> SamplesBackfillSummary:
        """Do what is to do for requests of [from_ms, to_ms); None is no bound. `progress` gets requests (done, total).

        Raises UnknownView, BackfillImpossible when no request has keys of the view, StoreUnavailable.
        """
        view = self._reader.store.definitions.view(name)
        source = request_features_of(view)
        asked = (BEGINNING_MS if from_ms is None else from_ms, FOREVER_MS if to_ms is None else to_ms)
        reached_ms = self._reached_ms(view)
        wanted = {"from_ms": asked[0], "to_ms": min(asked[1], reached_ms)}
        which = {**wanted, "view": view.name, "version": view.version}
        days = self._rows("list_days", which)
        already, total, done = sum(n for *_, n in days), sum(n for _, n, _ in days), 0
        progress(done, total)
        for day, missing, _ in days:
            ids = (
                [request_id for (request_id,) in self._rows("list_requests", {**which, "day": day})] if missing else []
            )
            for start in range(0, len(ids), self._portion):
                done += self._fill(view, source, day, ids[start : start + self._portion])
                progress(done, total)
        ahead = self._rows("count_ahead", {"from_ms": asked[0], "to_ms": asked[1], "reached_ms": reached_ms})
        return SamplesBackfillSummary(
            view=view.id, features=source.names, requests=done, already=already, ahead=ahead[0][0]
        )

    def _fill(self, view: FeatureView, source: RequestFeatures, day: dt.date, request_ids: Sequence[str]) -> int:
        read = self._rows("read_requests", {"day": day, "request_ids": list(request_ids)})
        records = [_record(row) for row in read]
        keys = [source.keys(record) for record in records]
        asks = [(key, record.ts) for record, own in zip(records, keys, strict=True) for key in own]
        rows = pl.DataFrame(asks, schema=ROW_SCHEMA, orient="row").unique()
        answered = self._reader.read(view.id, rows)
        values = {(row["key"], row["time_ms"]): value_of(view, row) for row in answered.to_dicts()}
        found = [
            source.features(record, {key: values[key, record.ts] for key in own})
            for record, own in zip(records, keys, strict=True)
        ]
        with self._pool.transaction() as cursor:
            cursor.execute(
                self._sql["put_backfilled"],
                {
                    "day": day,
                    "view": view.name,
                    "version": view.version,
                    "request_ids": [record.request_id for record in records],
                    "features": [_json(features) for features, _ in found],
                    "items": [_json(items) for _, items in found],
                },
            )
        return len(records)

    def _reached_ms(self, view: FeatureView) -> int:
        """Up to where the events are there, ms of event time."""
        with self._pool.transaction() as cursor:
            watermark_ms = reached_ms(cursor, view)
        if watermark_ms is None:
            raise BackfillImpossible(
                "not all is there yet that the values are out of: events in the history, profiles in the feature store",
                mend="`rtrec status` shows how far the stages history and features are; try again then",
            )
        return watermark_ms

    def _rows(self, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql[statement], values)
            return cursor.fetchall()


def _record(row: tuple[Any, ...]) -> InferenceRecord:
    request_id, user_id, ts, page_id, features, items = row
    return InferenceRecord(
        request_id=request_id,
        user_id=user_id,
        ts=ts,
        page_id=page_id,
        model_version="",
        features=_decode_features(features),
        items=None if items is None else _decode_items(items),
    )


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
