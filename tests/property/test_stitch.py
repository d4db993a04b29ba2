"""The labels are those that one look at the whole log gives, however it is cut, doubled, disordered or read again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from rtrec_ray.samples.columns import CLICK_SCHEMA, IMPRESSION_SCHEMA, REQUEST_SCHEMA
from rtrec_ray.samples.definition import SampleDefinition
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.stores.samples_ledger import MemorySampleLedger, MemorySamples

WAIT, HORIZON, LAST_MARK = 4, 31, 30

# Two clusters a horizon apart, so that waits, horizons and watermarks collide all the time. The horizon is longer than
# the watermark's whole way, so that no held click expires: that is another law.
times = st.one_of(st.integers(0, 8), st.integers(HORIZON - 3, HORIZON + 8))
keys = st.sampled_from([("r1", 1), ("r1", 2), ("r2", 1)])
behavior = st.lists(st.tuples(st.sampled_from(["impression", "click"]), keys, times), min_size=3, max_size=14)
inference = st.lists(st.sampled_from(["r1", "r2"]), min_size=1, max_size=4)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("behavior"), st.integers(1, 4)),
        st.tuples(st.just("inference"), st.integers(1, 2)),
        st.tuples(st.just("watermark"), st.integers(0, LAST_MARK)),
        st.tuples(st.sampled_from(["commit", "crash"]), st.just(0)),
    ),
    min_size=6,
    max_size=24,
)
definitions = st.builds(
    SampleDefinition,
    wait_ms=st.just(WAIT),
    horizon_ms=st.just(HORIZON),
    emit=st.sampled_from(["on_click", "on_close"]),
    cached_requests=st.sampled_from([1, 100]),
)


@dataclass
class Run:
    """A sample task on one partition, the store in memory; a crash forgets all but the store and the positions."""

    definition: SampleDefinition
    behavior: list
    inference: list
    samples: MemorySamples = field(default_factory=MemorySamples)
    committed: tuple[int, int] = (0, 0)
    counts: Counter = field(default_factory=Counter)
    watermark: int = -1

    def __post_init__(self):
        self.crash(0)

    def crash(self, _):
        self.ledger = MemorySampleLedger(self.samples, partition=0)
        restored = self.ledger.restore(None, applied_to=self.committed[0])
        self.stitcher = Stitcher(self.definition, restored)
        self.at, self.asked = restored.place.replay_from, self.committed[1]
        self.read_to = self.committed[0]
        if self.watermark >= 0:
            self.stitcher.advance(watermark_ms=self.watermark)

    def take_behavior(self, count):
        events = list(enumerate(self.behavior))[self.at : self.at + count]
        shown = [
            (request, item, 7, ts, None, item, None, offset)
            for offset, (kind, (request, item), ts) in events
            if kind == "impression"
        ]
        clicked = [
            (*key, ts) for offset, (kind, key, ts) in events if kind == "click" and offset >= self.committed_at_start
        ]
        self.stitcher.on_impressions(pl.DataFrame(shown, schema=IMPRESSION_SCHEMA, orient="row"))
        self.stitcher.on_clicks(pl.DataFrame(clicked, schema=CLICK_SCHEMA, orient="row"))
        self.at = min(self.at + count, len(self.behavior))
        self.read_to = max(self.read_to, self.at)
        self.stitcher.read_to(self.at)

    @property
    def committed_at_start(self):
        return self.stitcher._applied_to

    def take_inference(self, count):
        records = [
            (None, request, 7, 0, 3, "1", None, "{}", None, None)
            for request in self.inference[self.asked : self.asked + count]
        ]
        frame = pl.DataFrame(records, schema=REQUEST_SCHEMA, orient="row")
        self.stitcher.on_requests(frame.with_columns(event_day=pl.date(1970, 1, 1)))
        self.asked = min(self.asked + count, len(self.inference))

    def advance(self, mark):
        self.watermark = max(mark, self.watermark)
        self.stitcher.advance(watermark_ms=self.watermark)

    def commit(self, _):
        settled = self.stitcher.settle(self.ledger.answer(None, self.stitcher.ask()))
        existing = self.ledger.write(None, settled)
        self.counts.update(settled.counts)
        if not existing.is_empty():
            amended = self.stitcher.amend(existing)
            self.ledger.correct(None, amended.corrections)
            self.counts.update(amended.counts)
        self.ledger.remember(None, self.stitcher.place(), read_to=self.read_to)
        self.committed = (self.read_to, self.asked)

    def go(self, steps, *, end_ms=10_000):
        act = {
            "behavior": self.take_behavior,
            "inference": self.take_inference,
            "watermark": self.advance,
            "commit": self.commit,
            "crash": self.crash,
        }
        for name, much in steps:
            act[name](much)
        self.take_behavior(len(self.behavior))
        self.take_inference(len(self.inference))
        self.advance(end_ms)
        self.commit(0)
        return self

    def labels(self):
        frames = list(self.samples.store.current())
        rows = pl.concat(frames).rows(named=True) if frames else []
        return {(row["request_id"], row["item_id"]): (row["event_time_ms"], row["label"]) for row in rows}

    def missed(self):
        return {(row["request_id"], row["item_id"]) for row in self.samples.misses.rows(named=True)}


def recompute(events, requests):
    """(key → (time, label)) and missed keys from the whole log at once, in plain Python."""
    first: dict = {}
    for kind, key, ts in events:
        if kind == "impression":
            first.setdefault(key, ts)
    labels = {
        key: (ts, int(any(kind == "click" and k == key and t - ts < HORIZON for kind, k, t in events)))
        for key, ts in first.items()
    }
    known = {key for key in first if key[0] in requests}
    return {key: labels[key] for key in known}, set(first) - known


@settings(max_examples=200)
@given(behavior, inference, steps, definitions)
def test_labels_equal_the_batch_and_outcomes_add_up_whatever_the_order_cuts_repetitions_and_crashes(
    events, requests, steps, definition
):
    run = Run(definition, events, requests).go(steps)
    assert (run.labels(), run.missed()) == recompute(events, requests)
    check_outcomes(run, shown=sum(kind == "impression" for kind, _, _ in events))
    check_chains(run)
    check_held(run)


def check_outcomes(run, *, shown):
    """Every impression ends in exactly one."""
    counts = run.counts
    assert counts["impression"] == shown
    assert counts["sampled"] + counts["missed"] - counts["completed"] + counts["duplicate"] == shown
    assert counts["sampled"] == len(run.labels())
    assert run.stitcher.open_rows == 0


def check_chains(run):
    """Nothing is written twice, and a label only turns from 0 to 1."""
    chains: dict = {}
    for frame in run.samples.store.scan(to_seq=run.samples.store.high_water()):
        for row in frame.rows(named=True):
            chains.setdefault((row["request_id"], row["item_id"]), []).append((row["revision"], row["label"]))
    assert all(chain in ([(0, 0)], [(0, 1)], [(0, 0), (1, 1)]) for chain in chains.values())


def check_held(run):
    """No click waits on once its impression has an outcome."""
    held = run.samples.held[0]
    assert held.join(run.samples.outcomes, on=["request_id", "item_id"], how="semi").is_empty()


@settings(max_examples=30)
@given(st.lists(st.tuples(st.just("click"), keys, times), min_size=1, max_size=6), steps)
def test_a_click_without_an_impression_is_held_for_the_horizon_and_no_longer(clicks, steps):
    run = Run(SampleDefinition(wait_ms=WAIT, horizon_ms=HORIZON), clicks, []).go(steps, end_ms=LAST_MARK)
    waiting = len({key for _, key, _ in clicks})
    assert run.samples.held[0].height == waiting
    run.go([("commit", 0), ("crash", 0)], end_ms=1_000)
    assert run.samples.held[0].is_empty()
    assert run.counts["expired"] == waiting
