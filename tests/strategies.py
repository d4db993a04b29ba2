"""Records as the world sends them: good ones, and the many ways of being bad. For property tests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from rtrec_ray.events import BEHAVIOR, INFERENCE, ITEM, PROFILE

START_MS = 1_767_225_600_000
"""2026-01-01 UTC, a multiple of every tile."""

INT64 = st.integers(-(2**63), 2**63 - 1)
IDS = st.one_of(st.integers(0, 5), INT64)  # small ones collide, which is where faults hide
# PostgreSQL stores neither NUL nor half of a surrogate pair.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
TIMES_MS = st.integers(START_MS, START_MS + 30)

SCALARS = st.one_of(st.none(), st.booleans(), INT64, st.floats(allow_nan=False, allow_infinity=False), TEXTS)
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3))
FEATURES = st.dictionaries(TEXTS, st.one_of(INT64, TEXTS, st.lists(INT64 | TEXTS, max_size=3)), max_size=4)

EVENT_TYPES = ("impression", "click", "view", "favorite", "cart", "consult", "comment", "search", "retract")
ITEM_TYPES = ("product", "article", "video", "ad")


def _record(required: dict[str, Any], optional: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A record whose optional fields may be absent or null."""
    return st.fixed_dictionaries(required, optional={name: st.none() | of for name, of in optional.items()})


_PLAIN = _record(
    {"event_id": TEXTS, "event_type": st.sampled_from(EVENT_TYPES[:-1]), "ts": TIMES_MS, "user_id": IDS},
    {
        "item_id": IDS,
        "item_type": st.sampled_from(ITEM_TYPES),
        "category_id": IDS,
        "page_id": IDS,
        "request_id": TEXTS,
        "position": IDS,
        "dwell_ms": st.one_of(st.integers(0, 5), st.integers(0, 2**63 - 1)),
        "query": TEXTS,
        "arm": TEXTS,
        "retracts": st.dictionaries(TEXTS, SCALARS, max_size=3),
    },
)


def _taken_back(event: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    carried = {**original, "user_id": event["user_id"], "ts": min(original["ts"], event["ts"])}
    return {**event, "event_type": "retract", "retracts": carried}


BEHAVIORS = st.one_of(_PLAIN, _PLAIN, _PLAIN, st.builds(_taken_back, _PLAIN, _PLAIN))

RANKED_ITEMS = _record(
    {"item_id": IDS, "position": IDS, "score": st.floats(-1e9, 1e9)},
    {"propensity": st.floats(0.01, 1.0), "features": FEATURES},
)

INFERENCES = _record(
    {"request_id": TEXTS, "user_id": IDS, "ts": TIMES_MS, "model_version": TEXTS, "features": FEATURES},
    {
        "page_id": IDS,
        "arm": TEXTS,
        "items": st.lists(RANKED_ITEMS, max_size=3),
        "as_of": st.dictionaries(TEXTS, st.dictionaries(st.sampled_from("0123"), IDS, max_size=2), max_size=2),
    },
)

PROFILES = _record({"user_id": IDS, "ts": TIMES_MS}, dict.fromkeys(("country", "gender", "city", "age_band"), TEXTS))

ITEMS = _record(
    {"item_id": IDS, "ts": TIMES_MS},
    {"item_type": st.sampled_from(ITEM_TYPES), "category_id": IDS, "title": TEXTS},
)

RECORDS = {BEHAVIOR: BEHAVIORS, INFERENCE: INFERENCES, PROFILE: PROFILES, ITEM: ITEMS}

UNKNOWN_FIELDS = st.dictionaries(TEXTS.map(lambda text: f"x_{text}"), JSON, max_size=2)


@st.composite
def topics_with_records(draw: st.DrawFn, *, max_size: int = 8) -> tuple[str, list[dict[str, Any]]]:
    """A topic and good records of it."""
    topic = draw(st.sampled_from(sorted(RECORDS)))
    return topic, draw(st.lists(RECORDS[topic], max_size=max_size))


@st.composite
def written(draw: st.DrawFn, record: dict[str, Any]) -> bytes:
    """The record as some program may write it: fields in any order, spread over lines, with fields of its own."""
    fields = draw(st.permutations(list({**draw(UNKNOWN_FIELDS), **record}.items())))
    indent = draw(st.sampled_from([None, 0, 2]))
    return json.dumps(dict(fields), indent=indent, ensure_ascii=draw(st.booleans())).encode()


GARBAGE = st.one_of(
    st.none(),
    st.binary(max_size=20),
    # Pieces that would make one good record out of two bad ones, or swallow a good one, if records were glued together.
    st.sampled_from([
        b"", b" ", b"\n", b"null", b"[]", b"{}", b"1", b'"', b"{", b"}", b"[", b"]", b",", b"\0", b"NaN",
        b"\xef\xbb\xbf{}",
        b'{"event_id":"a","event_type":"click","ts":1767225600000,"user_id":1},{"event_id":"b"',
        b'{"event_id":"a","event_type":"click","ts":1767225600000,"user_id":1,"x":[1',
        b'"event_type":"click","ts":1767225600000,"user_id":1}',
        b"]}", b'{"event_id":"a\\u0000","event_type":"click","ts":1767225600000,"user_id":1}',
        b'{"event_id":"a","event_type":"click","ts":NaN,"user_id":1}',
        b'{"event_id":"a","event_type":"click","ts":1767225600000,"user_id":1,"arm":"\\u0000"}',
        b'{"event_id":"a","event_type":"click","ts":1767225600000,"user_id":1,"position":9223372036854775808}',
        b'{"event_id":"a","event_type":"view","ts":1767225600000,"user_id":1,"dwell_ms":-1}',
        b'{"event_id":"a","event_type":"retract","ts":1767225600000,"user_id":1,"retracts":{"n":18446744073709551616}}',
    ]),
)  # fmt: skip
"""Values that are no record of any topic."""
