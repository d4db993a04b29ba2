"""The sample task: impressions, actions and the inference log of one partition become labelled samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import polars as pl

from actors.operator import BatchOutcome
from rtrec_ray.events import BEHAVIOR, INFERENCE, RETRACT
from rtrec_ray.eventtime.retract import originals
from rtrec_ray.kafka.base import RecordBatch
from rtrec_ray.kafka.codec import LatestMs, decode
from rtrec_ray.notification.base import NewEvent
from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.keys import actions_of, impressions_of, keyed, requests_of
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.samples.timeline import Timeline
from rtrec_ray.stores.samples.ledger import SampleLedger, settle

SAMPLES_COMPLETE: Final = "SAMPLES_COMPLETE"
_NOTHING_CAME_MS: Final = 1 << 62

Send = Callable[[Cursor, NewEvent], object]


class SampleOperator:
    """Stitches one partition's samples. `latest_ms`: wall time of writing (ms) → the greatest event time allowed.

    `definition` holds until one is applied. `send` appends an event in the transaction of a commit.
    """

    topics: tuple[str, ...] = (BEHAVIOR, INFERENCE)
    timed: tuple[str, ...] = topics
    preload: tuple[str, ...] = ()

    def __init__(
        self, definition: SampleDefinition, *, ledger: SampleLedger, latest_ms: LatestMs, send: Send | None = None
    ) -> None:
        self._rules = Timeline.of(definition)
        self._ledger = ledger
        self._latest_ms = latest_ms
        self._send = send
        self._stitcher = Stitcher(self._rules)
        self._applied: dict[str, int] = {}
        self._read_to = 0
        self._watermark_ms: int | None = None
        self._first_ms: int | None = None
        self._resting = False
        self._waiting_rows = 0

    def restore(self, cursor: Cursor, *, committed: Mapping[str, int]) -> Mapping[str, int]:
        """See Operator: behaviour is read again from the oldest impression without an outcome."""
        self._applied = {topic: committed.get(topic, 0) for topic in self.topics}
        restored = self._ledger.restore(cursor, applied_to=self._applied[BEHAVIOR])
        self._stitcher = Stitcher(self._ledger.timeline(cursor) or self._rules, restored)
        self._read_to = self._applied[BEHAVIOR]
        return {BEHAVIOR: min(restored.place.replay_from, self._read_to), INFERENCE: self._applied[INFERENCE]}

    def apply(self, batch: RecordBatch) -> BatchOutcome:
        """See Operator."""
        self._resting = False
        return self._on_behavior(batch) if batch.topic == BEHAVIOR else self._on_inference(batch)

    def advance(self, *, watermark_ms: int) -> Mapping[str, int]:
        """See Operator: what is due is written with the next commit."""
        self._watermark_ms = watermark_ms
        self._stitcher.advance(watermark_ms=watermark_ms)
        return {}

    def rest(self) -> bool:
        """See Operator: a partition that nothing ever came to keeps nobody from being complete."""
        changed, self._resting = not self._resting, True
        return changed

    def pending_rows(self) -> int:
        """See Operator."""
        return self._waiting_rows

    def open_rows(self) -> int:
        """See Operator: impressions whose wait is not over, which grow while the inference log is stalled."""
        return self._stitcher.open_rows

    @staticmethod
    def prepare(operators: Sequence[SampleOperator]) -> None:
        """See Operator: nothing."""

    def write(self, cursor: Cursor) -> Mapping[str, int]:
        """See Operator."""
        counts = settle(self._ledger, cursor, self._stitcher, read_to=self._read_to)
        complete_ms = _NOTHING_CAME_MS if self._resting else self._stitcher.complete_ms
        minutes = self._ledger.complete(cursor, first_ms=self._first_ms, complete_ms=complete_ms)
        if self._send is not None:
            for minute_ms in minutes:
                self._send(cursor, NewEvent(key=SAMPLES_COMPLETE, value=str(minute_ms), type="samples"))
        return counts

    def look(self, cursor: Cursor) -> bool:
        """Nothing but records makes a commit."""
        return False

    def committed(self) -> None:
        """See Operator."""
        self._waiting_rows = 0

    def _on_behavior(self, batch: RecordBatch) -> BatchOutcome:
        decoded = decode(batch, latest_ms=self._latest_ms)
        events, anew = decoded.frame, self._is_new(BEHAVIOR)
        if self._first_ms is None and not events.is_empty():
            self._first_ms = int(events["ts"][0])
        shown = events.filter(pl.col("event_type") == "impression")
        new = events.filter(anew)
        retracts = new.filter(pl.col("event_type") == RETRACT)
        self._stitcher.on_impressions(impressions_of(shown.filter(keyed())))
        self._stitcher.on_actions(actions_of(new))
        counts = self._take_back(retracts) if not retracts.is_empty() else {}
        self._stitcher.read_to(batch.next_offset)
        self._read_to = max(self._read_to, batch.next_offset)
        unkeyed = shown.filter(anew & ~keyed().fill_null(False)).height
        counts = {
            **counts,
            **self._count(batch, decoded.frame, dead=[letter.offset for letter in decoded.dead]),
            "impression": unkeyed,
            "unkeyed": unkeyed,
        }
        return BatchOutcome(max_ts_ms=_latest(events), counts=counts)

    def _take_back(self, retracts: pl.DataFrame) -> dict[str, int]:
        carried = originals(retracts)
        self._stitcher.on_actions(actions_of(carried, taken_back=True))
        # An impression cannot be taken back: it was shown, whatever its sender says later.
        impressions = carried.filter(pl.col("event_type") == "impression").height
        return {"retract": retracts.height, "retracted_impression": impressions}

    def _on_inference(self, batch: RecordBatch) -> BatchOutcome:
        decoded = decode(batch, latest_ms=self._latest_ms)
        self._stitcher.on_requests(requests_of(decoded.frame))
        counts = self._count(batch, decoded.frame, dead=[letter.offset for letter in decoded.dead])
        return BatchOutcome(max_ts_ms=_latest(decoded.frame), counts=counts)

    def _count(self, batch: RecordBatch, frame: pl.DataFrame, *, dead: list[int]) -> dict[str, int]:
        """Records that came for the first time: all, the refused ones, those behind the watermark."""
        applied = self._applied.get(batch.topic, 0)
        came = int((batch.offsets >= applied).sum())
        self._waiting_rows += came
        late = pl.col("ts") < (-(2**63) if self._watermark_ms is None else self._watermark_ms)
        return {
            "in": came,
            "dead": sum(offset >= applied for offset in dead),
            "late": frame.filter(late & self._is_new(batch.topic)).height,
        }

    def _is_new(self, topic: str) -> pl.Expr:
        return pl.col("offset") >= self._applied.get(topic, 0)


def _latest(frame: pl.DataFrame) -> int | None:
    return frame["ts"].max()  # type: ignore[return-value]  # an Int64 column
