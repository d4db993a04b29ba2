"""The change log over PostgreSQL: a slot's stream, scans by commit_seq where it has a gap, or scans alone."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import polars as pl

from rtrec_ray.clock import monotonic_s
from rtrec_ray.errors import StoreUnavailable, UnknownSlot
from rtrec_ray.postgres.connection import Connection, PostgresOptions, connect, transaction
from rtrec_ray.postgres.statements import load
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.changes import slots
from rtrec_ray.stores.changes.bell import LedgerBell
from rtrec_ray.stores.changes.log import Changes, LogHealth, LogPlace
from rtrec_ray.stores.changes.revisions import REQUEST_SCHEMA, attached, revisions, wants_request
from rtrec_ray.stores.changes.stream import SlotStream
from rtrec_ray.stores.samples.postgres import PostgresSampleStore

__all__ = ["PostgresChangeLog"]

log = logging.getLogger(__name__)

_AGAIN_S = 60.0  # between two tries at a server that gave no stream
_VISIBLE_S = 0.002


class PostgresChangeLog:
    """A consumer. `name`: a-z, 0-9 and _; `columns`: of SAMPLE_SCHEMA, all by default, commit_seq among them.

    A slot that is new, or acknowledged beyond the checkpoint, has a gap behind it: what the ledger holds *after* the
    slot is there is scanned by number, and what the stream repeats of that is left out. Nothing is missed, since a
    number that the ledger did not show by then is committed later, and so in the stream.
    """

    def __init__(self, options: PostgresOptions, *, name: str, columns: Sequence[str] | None = None) -> None:
        self._options = options
        self._name = name
        self._columns = list(columns or SAMPLE_SCHEMA.names())
        self._store = PostgresSampleStore(options)
        self._bell = LedgerBell(options)
        self._reader: Connection | None = None
        self._slot: str | None = None
        self._stream: SlotStream | None = None
        self._scan_to = 0
        self._begin_at = 0  # LSN
        self._try_at_s = 0.0
        self._pause = threading.Event()
        self._taken: list[tuple[pl.DataFrame, int]] = []  # rows not yet delivered, by transaction, with its end
        self._place = LogPlace()
        self._health = LogHealth()

    @property
    def place(self) -> LogPlace:
        """See ChangeLog."""
        if self._stream is None or self._taken or self._scan_to > self._place.commit_seq:
            return self._place
        return replace(self._place, lsn=self._stream.lsn)

    @property
    def health(self) -> LogHealth:
        """See ChangeLog."""
        return self._health

    def begin(self, place: LogPlace) -> None:
        """See ChangeLog."""
        self._disconnect()
        self._place = place

    def poll(self, *, max_rows: int, timeout_s: float) -> Changes | None:
        """See ChangeLog."""
        try:
            if self._slot is None and monotonic_s() >= self._try_at_s:
                self._reach()
            if self._slot is None:
                return self._follow(max_rows, timeout_s)
            if self._scan_to > self._place.commit_seq:
                return self._scan(self._scan_to, max_rows)
            return self._take(max_rows, timeout_s)
        except BaseException:
            self._disconnect()
            raise

    def acknowledge(self, place: LogPlace) -> None:
        """See ChangeLog."""
        if self._stream is None or place.lsn is None:
            return
        try:
            self._stream.acknowledge(place.lsn)
        except StoreUnavailable:
            self._disconnect()  # the next one says as much, and the slot only keeps more until then

    def close(self) -> None:
        """See ChangeLog."""
        self._disconnect()

    def remove(self) -> None:
        """See ChangeLog."""
        self._disconnect()
        with suppress(UnknownSlot):
            slots.drop_slot(self._options, self._named())

    def _named(self) -> str:
        with transaction(self._read()) as cursor:
            name = slots.slot_name(cursor, self._name)
        return name

    def _disconnect(self) -> None:
        """Forget all but the place: what is not delivered comes again."""
        for held in (self._stream, self._reader, self._bell):
            if held is not None:
                held.close()
        self._stream = self._reader = self._slot = None
        self._taken, self._scan_to = [], 0
        # The place may be a slice's: the log of the rest begins where the transaction before it ended, as it says.

    def _reach(self) -> None:
        name = self._named()
        reached = slots.reach_slot(self._options, name)
        if isinstance(reached, slots.Refusal):
            self._try_at_s = monotonic_s() + _AGAIN_S
            self._say_scanning(reached.reason)
            return
        gap = self._place.lsn is None or reached.slot.lsn > self._place.lsn
        # Read after the slot is there: what is numbered later is in its stream.
        self._scan_to = self._store.high_water() if gap else 0
        self._begin_at = max(reached.slot.lsn, self._place.lsn or 0)
        self._slot = name
        self._say_streaming(reached)

    def _say_streaming(self, reached: slots.Reached) -> None:
        fell = reached.missing and self._place.lsn is not None
        known = self._health
        self._health = LogHealth(
            followed_by="stream",
            fallbacks=known.fallbacks + fell,
            reason=reached.reason if fell else known.reason if known.followed_by == "stream" else "",
        )
        at = {"slot": self._slot, "from_seq": self._place.commit_seq, "scan_to": self._scan_to}
        if fell:
            log.warning("change_log_fell_back", extra={**at, "reason": reached.reason})
        else:
            log.info("change_log_streams", extra=at)

    def _say_scanning(self, reason: str) -> None:
        if (self._health.followed_by, self._health.reason) != ("scan", reason):
            log.warning("change_log_not_streamed", extra={"consumer": self._name, "reason": reason})
        self._health = LogHealth(followed_by="scan", fallbacks=self._health.fallbacks, reason=reason)

    def _follow(self, max_rows: int, timeout_s: float) -> Changes | None:
        """Without a stream: by number, woken by the bell."""
        # Without a stream no place in its log is known, whatever the checkpoint says of an earlier one.
        self._place = replace(self._place, lsn=None)
        high = self._store.high_water()
        if high <= self._place.commit_seq:
            self._bell.wait(timeout_s)
            high = self._store.high_water()
        return self._scan(high, max_rows) if high > self._place.commit_seq else None

    def _scan(self, high: int, max_rows: int) -> Changes | None:
        """The next rows up to `high`; None where the numbers have no rows (any more)."""
        low = self._place.commit_seq
        upto = min(low + max_rows, high)
        frames = list(self._store.scan(from_seq_exclusive=low, to_seq=upto, columns=self._columns))
        whole = self._slot is not None and upto == self._scan_to
        self._place = LogPlace(commit_seq=upto, lsn=self._begin_at if whole else None)
        return Changes(rows=pl.concat(frames), place=self._place) if frames else None

    def _take(self, max_rows: int, timeout_s: float) -> Changes | None:
        stream = self._open_stream()
        held = sum(rows.height for rows, _ in self._taken)
        while held < max_rows:
            # Only the first is waited for: what is there is given at once.
            came = stream.next(timeout_s=0.0 if self._taken else timeout_s, session=self._read())
            if came is None:
                break
            rows = revisions(came, self._columns).filter(pl.col("commit_seq") > self._place.commit_seq)
            if rows.height:
                self._taken.append((rows, came.end_lsn))
                held += rows.height
        if not self._taken or not self._visible(timeout_s):
            return None
        return self._deliver(max_rows)

    def _open_stream(self) -> SlotStream:
        if self._stream is None:
            assert self._slot is not None
            self._stream = SlotStream(self._options, self._slot, from_lsn=self._begin_at)
            if self._place.lsn is None or self._place.lsn < self._begin_at:
                self._place = replace(self._place, lsn=self._begin_at)
        return self._stream

    def _visible(self, timeout_s: float) -> bool:
        """Whether others see the last transaction taken. The stream may be ahead of that: a commit is in the log before
        it is done, for long where a standby must confirm it, and its requests are not readable before.
        """
        wanted = max(int(rows["commit_seq"][-1]) for rows, _ in self._taken)
        deadline_s = monotonic_s() + timeout_s
        while (high := self._high_water()) < wanted and monotonic_s() < deadline_s:
            self._pause.wait(_VISIBLE_S)
        return high >= wanted

    def _high_water(self) -> int:
        with transaction(self._read()) as cursor:
            cursor.execute(_sql("high_water"))
            row = cursor.fetchone()
        return 0 if row is None else int(row[0])

    def _deliver(self, max_rows: int) -> Changes:
        parts, left, lsn = [], max_rows, self._place.lsn
        while self._taken and left:
            rows, end_lsn = self._taken[0]
            parts.append(rows.head(left))
            if rows.height > left:
                self._taken[0] = (rows.slice(left), end_lsn)
                break
            left -= rows.height
            lsn = end_lsn
            self._taken.pop(0)
        rows = self._attach(pl.concat(parts, how="diagonal"))
        self._place = LogPlace(commit_seq=int(rows["commit_seq"][-1]), lsn=lsn)
        return Changes(rows=rows, place=self._place)

    def _attach(self, rows: pl.DataFrame) -> pl.DataFrame:
        if not wants_request(self._columns):
            return attached(rows, pl.DataFrame(schema=REQUEST_SCHEMA), self._columns)
        keys = rows.select("request_id", "event_day").unique()
        with transaction(self._read()) as cursor:
            named = {"request_ids": keys["request_id"].to_list(), "days": keys["event_day"].to_list()}
            cursor.execute(_sql("attach"), named)
            found = cursor.fetchall()
        return attached(rows, pl.DataFrame(found, schema=REQUEST_SCHEMA, orient="row"), self._columns)

    def _read(self) -> Connection:
        if self._reader is None or self._reader.closed:
            self._reader = connect(self._options, application="rtrec-change-log-requests")
        return self._reader


def _sql(name: str) -> str:
    return load("rtrec_ray.stores.changes", "changes.sql")[name]
