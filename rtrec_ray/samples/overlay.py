"""A sample's features: those of its request, overridden by the item's own."""

from __future__ import annotations

from typing import Any, Final

import orjson
import polars as pl

_STRING: Final = r'"(?:[^"\\]|\\.)*"\s*:?'  # every string of a JSON text, and the colon that makes it a key


def overlay(request: pl.Series, item: pl.Series) -> pl.Series:
    """JSON objects as text, (n,) and (n,), null for none → (n,): both in one; on equal names the item's value.

    >>> overlay(pl.Series(['{"a": 1, "b": 0}', '{}', None]), pl.Series(['{"b": 2}', '{"c": 3}', None])).to_list()
    ['{"a":1,"b":2}', '{"c": 3}', '{}']
    """
    frame = pl.DataFrame({"request": request.fill_null("{}"), "item": item.fill_null("{}")})
    both = frame.select(
        pl.when(pl.col("item") == "{}")
        .then("request")
        .when(pl.col("request") == "{}")
        .then("item")
        .otherwise(
            pl.concat_str(pl.col("request").str.strip_suffix("}"), pl.lit(", "), pl.col("item").str.strip_prefix("{"))
        )
    ).to_series()
    clash = _may_clash(frame)
    if not clash.any():
        return both
    # Text put after text would name a feature twice: where names may meet, the objects are read.
    merged = [_merged(*row) for row in frame.filter(clash).iter_rows()]
    return both.scatter(clash.arg_true(), merged)


def _may_clash(frame: pl.DataFrame) -> pl.Series:
    names = frame["item"].str.extract_all(_STRING).explode().drop_nulls().unique()
    keys = names.filter(names.str.ends_with(":")).str.strip_suffix(":").str.strip_chars_end()
    if keys.is_empty():
        return pl.repeat(False, frame.height, dtype=pl.Boolean, eager=True)
    requests = frame["request"].unique()
    clashing = requests.filter(requests.str.contains_any(keys.to_list()))
    return frame["request"].is_in(clashing.implode())


def _merged(request: str, item: str) -> str:
    return orjson.dumps({**_object(request), **_object(item)}).decode()


def _object(text: str) -> dict[str, Any]:
    found = orjson.loads(text)
    return found if isinstance(found, dict) else {}
