"""Records of the inference log that impressions may still ask for."""

from __future__ import annotations

import msgspec
import polars as pl

from rtrec_ray.samples.columns import KEY, KNOWN_SCHEMA, RANKED_SCHEMA, empty, within, without


class RequestCache:
    """The newest requests in memory. All of them are in the store as well, so forgetting one only costs a look-up."""

    def __init__(self, *, keep_ms: int, most: int) -> None:
        self._keep_ms = keep_ms
        self._most = most
        self._frame = empty(KNOWN_SCHEMA)

    def admit(self, records: pl.DataFrame) -> pl.DataFrame:
        """Take records (n, at least KNOWN_SCHEMA) in log order; answers those that were not known, the first of each.

        The first record of a request wins, here as in the store.
        """
        if records.is_empty():
            return records
        first = records.unique("request_id", keep="first", maintain_order=True)
        new = without(first, self._frame, "request_id")
        self._frame = pl.concat([self._frame, new.select(KNOWN_SCHEMA.names())])
        return new

    def of(self, rows: pl.DataFrame) -> pl.DataFrame:
        """What is known of the requests of `rows`: (at most n, KNOWN_SCHEMA)."""
        return within(self._frame, rows, "request_id")

    def forget(self, *, watermark_ms: int | None) -> None:
        """Drop what is old by event time, then what is too much, oldest arrival first."""
        if watermark_ms is not None:
            self._frame = self._frame.filter(pl.col("event_time_ms") + self._keep_ms > watermark_ms)
        self._frame = self._frame.tail(self._most)


class _Ranked(msgspec.Struct, frozen=True):
    item_id: int
    position: int | None = None
    score: float | None = None
    propensity: float | None = None
    features: msgspec.Raw = msgspec.Raw()  # no union: msgspec then takes it for null only


def _text(raw: msgspec.Raw) -> str | None:
    """An absent value and JSON's null are both no features."""
    text = bytes(raw).decode()
    return None if text in {"", "null"} else text


_DECODER = msgspec.json.Decoder(list[list[_Ranked]])


def ranked_items(known: pl.DataFrame) -> pl.DataFrame:
    """The items of each answer, from their JSON: (n, KNOWN_SCHEMA) → (items, RANKED_SCHEMA), each item once.

    >>> known = pl.DataFrame({"request_id": ["r"], "items": ['[{"item_id": 7, "score": 0.5, "features": {"a": 1}}]']})
    >>> ranked_items(known).rows()
    [('r', 7, None, 0.5, None, '{"a": 1}')]
    """
    some = known.filter(pl.col("items").is_not_null())
    if some.is_empty():
        return empty(RANKED_SCHEMA)
    lists = _DECODER.decode("[" + ",".join(some["items"].to_list()) + "]")
    flat = [item for items in lists for item in items]
    counts = pl.Series([len(items) for items in lists], dtype=pl.Int64)
    return pl.DataFrame(
        {
            "request_id": some.select(pl.col("request_id").repeat_by(counts).explode())["request_id"].drop_nulls(),
            "item_id": [item.item_id for item in flat],
            "ranked_position": [item.position for item in flat],
            "score": [item.score for item in flat],
            "propensity": [item.propensity for item in flat],
            "item_features": [_text(item.features) for item in flat],
        },
        schema=RANKED_SCHEMA,
    ).unique(["request_id", "item_id"], keep="first")


def with_requests(candidates: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Impressions split into those whose request is known, with its columns, and those that have waited in vain.

    `candidates`: (n, IMPRESSION_SCHEMA + over); `known`: (m, KNOWN_SCHEMA).
    """
    asked = known.select("request_id", "event_day", pl.col("page_id").alias("request_page_id"))
    found = candidates.join(asked, on="request_id", how="inner", maintain_order="left")
    missing = without(candidates, asked, "request_id").filter("over")
    found = found.join(ranked_items(known), on=KEY, how="left", maintain_order="left").with_columns(
        page_id=pl.coalesce("page_id", "request_page_id"), position=pl.coalesce("position", "ranked_position")
    )
    return found, missing
