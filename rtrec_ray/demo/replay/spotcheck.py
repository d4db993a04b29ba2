"""Feature values read over HTTP while the log goes by, each compared with a plain recount of the log."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import httpx
import orjson
import polars as pl

from rtrec_ray.demo.replay.record import SpotFacts
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.features.keys import CATEGORY_TOP_ITEMS_10M, USER_BROWSE_5M
from rtrec_ray.postgres.connection import Connection, PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load

_TILE_MS: Final = 10_000
_AFTER_MS: Final = 60_000
_WINDOW_MS: Final = {USER_BROWSE_5M: 300_000, CATEGORY_TOP_ITEMS_10M: 600_000}
_KEY: Final = {USER_BROWSE_5M: "user_id", CATEGORY_TOP_ITEMS_10M: "category_id"}
_POLL_S: Final = 0.1
_COUNTED: Final = ("view", "click", "favorite", "cart", "consult", "comment", "search")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A value to be read: of `view` for `key`, as of `as_of_ms` (event time, on a tile's edge)."""

    view: str
    key: str
    as_of_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was read. `value`: None where the view has nothing; `refused`: the status when there was no value."""

    question: Question
    value: Any = None
    refused: int | None = None


def questions(clicks: pl.DataFrame, *, count: int) -> list[Question]:
    """About `count` questions spread over the log, each a minute after a click. clicks: the log's, ascending by ts.

    >>> clicks = pl.DataFrame({"ts": [5_000], "user_id": [7], "category_id": [3]})
    >>> [(q.view, q.key, q.as_of_ms) for q in questions(clicks, count=2)]
    [('user_browse_5m', '7', 60000)]
    """
    every = max(1, clicks.height // max(1, count))
    chosen = clicks.gather_every(every)
    views = tuple(_KEY)
    return [
        Question(
            view=views[index % 2],
            key=str(row[_KEY[views[index % 2]]]),
            as_of_ms=(row["ts"] + _AFTER_MS) // _TILE_MS * _TILE_MS,
        )
        for index, row in enumerate(chosen.iter_rows(named=True))
    ]


def compare(answer: Answer, *, log: pl.DataFrame, live: pl.DataFrame) -> SpotFacts:
    """An answer beside the recount of the log's events. A window that live events touch is left out: posted over HTTP,
    one of them may have come too late for its window, and rightly so. log, live: event_type, ts, user_id, item_id,
    category_id.
    """
    asked = answer.question
    facts = SpotFacts(view=asked.view, key=asked.key, as_of_ms=asked.as_of_ms)
    if answer.refused is not None:
        return replace(facts, skipped=f"status {answer.refused}")
    if not _clicks(live, asked).is_empty():
        return replace(facts, skipped="live clicks")
    return replace(facts, found=_text(answer.value), expected=_text(recount(log, asked)))


def recount(events: pl.DataFrame, question: Question) -> dict[str, Any] | None:
    """What the answer must say, None for nothing. events: as `compare` takes them.

    Only what the views make of impressions and clicks: the log has nothing else.
    """
    clicked = _clicks(events, question)
    if clicked.is_empty():
        return None
    if question.view == USER_BROWSE_5M:
        counts = {**dict.fromkeys(_COUNTED, 0), "click": clicked.height}
        return {**counts, "dwell_ms": 0, "view_by_type": {}, "last_items": []}
    items = Counter(clicked["item_id"].to_list())
    return {"top": [[item, n] for item, n in sorted(items.items(), key=lambda found: (-found[1], found[0]))[:50]]}


def _clicks(events: pl.DataFrame, question: Question) -> pl.DataFrame:
    start_ms = question.as_of_ms - _WINDOW_MS[question.view]
    return events.filter(
        pl.col("ts").is_between(start_ms, question.as_of_ms, closed="left"),
        pl.col("event_type") == "click",
        pl.col(_KEY[question.view]) == int(question.key),
    )


def _text(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()


class SpotChecks:
    """A thread that asks each question as soon as the features' watermark has passed its moment: every event of the
    window is in by then, and the window's tiles are not yet dropped. `clock_ms`: the time of events now.
    """

    def __init__(
        self, asked: Sequence[Question], postgres: PostgresOptions, *, url: str, clock_ms: Callable[[], int]
    ) -> None:
        self._asked = sorted(asked, key=lambda question: question.as_of_ms)
        self._postgres = postgres
        self._url = url
        self._clock_ms = clock_ms
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spot-checks", daemon=True)
        self._answers: list[Answer] = []

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Ask no more."""
        self._stopped.set()
        self._thread.join()

    def answers(self) -> tuple[Answer, ...]:
        """The answers so far."""
        return tuple(self._answers)

    def _run(self) -> None:
        with suppress(StoreUnavailable), self._connections() as (connection, client):
            for question in self._asked:
                while not self._passed(connection, question.as_of_ms):
                    if self._stopped.wait(_POLL_S):
                        return
                self._answers.append(_ask(client, question))

    @contextmanager
    def _connections(self) -> Iterator[tuple[Connection, httpx.Client]]:
        with (
            closing(connect(self._postgres, application="rtrec-demo")) as connection,
            httpx.Client(base_url=self._url, timeout=10.0) as client,
        ):
            yield connection, client

    def _passed(self, connection: Connection, moment_ms: int) -> bool:
        if self._clock_ms() < moment_ms:
            return False
        with transaction(connection) as cursor:
            cursor.execute(load(__package__, "replay.sql")["feature_watermark"])
            row = cursor.fetchone()
        return row is not None and row[0] is not None and row[0] >= moment_ms


def _ask(client: httpx.Client, question: Question) -> Answer:
    try:
        response = client.get(
            f"/v1/features/{question.view}", params={"key": question.key, "as_of_ms": question.as_of_ms}
        )
    except httpx.HTTPError:
        return Answer(question=question, refused=0)
    if response.status_code != 200:
        return Answer(question=question, refused=response.status_code)
    return Answer(question=question, value=response.json()["values"][question.key])
