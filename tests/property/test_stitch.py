"""The labels are those that one look at the whole log gives, however it is cut, doubled, disordered or read again."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rtrec_ray.samples.columns import ACTION_SCHEMA, IMPRESSION_SCHEMA, REQUEST_SCHEMA
from rtrec_ray.samples.definition import CLICK, Label, PageRules, SampleDefinition
from rtrec_ray.samples.outcomes import draws
from rtrec_ray.samples.stitch import Stitcher
from rtrec_ray.samples.timeline import Applied, Timeline
from rtrec_ray.stores.samples.ledger import MemorySampleLedger, MemorySamples, settle

WAIT, HORIZON, LAST_MARK = 4, 31, 30
CHANGED_MS = 5

# Two clusters a horizon apart, so that waits, horizons and watermarks collide all the time. The horizon is longer than
# the watermark's whole way, so that no held action expires: that is another law.
times = st.one_of(st.integers(0, 8), st.integers(HORIZON - 3, HORIZON + 8))
keys = st.sampled_from([("r1", 1), ("r1", 2), ("r2", 1)])
kinds = st.sampled_from(["click", "click", "view"])
actions = st.lists(st.tuples(kinds, keys, times, st.integers(0, 3)), min_size=6, max_size=6)
# An event is an impression, the n-th action, or the retraction of the n-th.
happenings = st.one_of(
    st.tuples(st.just("impression"), keys, times),
    st.tuples(st.just("act"), st.integers(0, 5), st.just(False)),
    st.tuples(st.just("act"), st.integers(0, 5), st.just(False)),
    st.tuples(st.just("act"), st.integers(0, 5), st.just(True)),
)
behavior = st.lists(happenings, min_size=3, max_size=16)
inference = st.lists(st.sampled_from(["r1", "r2"]), min_size=1, max_size=4)
step = st.one_of(
    st.tuples(st.just("behavior"), st.integers(1, 4)),
    st.tuples(st.just("inference"), st.integers(1, 2)),
    st.tuples(st.just("watermark"), st.integers(0, LAST_MARK)),
    st.tuples(st.sampled_from(["commit", "crash"]), st.just(0)),
)
steps = st.lists(step, min_size=6, max_size=24)
LABELS = {
    CLICK: Label(event="click"),
    "seen": Label(event="view", field="dwell_ms", at_least=2),
    "dwell": Label(event="view", field="dwell_ms", summed=True),
}
VIEW, RULES = Label(event="view"), PageRules(labels={"dwell": Label(event="view")})
definitions = st.builds(
    SampleDefinition,
    labels=st.sampled_from([SampleDefinition().labels, LABELS]),
    wait_ms=st.just(WAIT),
    horizon_ms=st.just(HORIZON),
    emit=st.sampled_from(["on_click", "on_close"]),
    negative_rate=st.sampled_from([1.0, 0.5, 0.1]),
    pages=st.sampled_from(
        [
            {},
            {2: PageRules(wait_ms=7, horizon_ms=HORIZON - 2, emit="on_close")},
            {2: PageRules(labels={"seen": Label(event="view", field="dwell_ms", at_least=3), "more": VIEW}), 1: RULES},
        ]
    ),
    cached_requests=st.sampled_from([1, 100]),
    cached_actions=st.sampled_from([0, 1, 100]),
)


def later(definition: SampleDefinition) -> Timeline:
    """The definition, and from a time on one with more labels and another wait."""
    second = replace(definition, version=2, labels=LABELS, wait_ms=WAIT + 2)
    return Timeline(entries=(Applied(definition=definition), Applied(definition=second, from_ms=CHANGED_MS)))


timelines = st.one_of(definitions.map(Timeline.of), definitions.map(later))
# A clicked impression is a sample; a view comes while its repetition waits, and the repetition is not drawn.
REPEATED_AND_NOT_DRAWN = (
    Timeline.of(SampleDefinition(wait_ms=WAIT, horizon_ms=HORIZON, negative_rate=1e-9, labels=LABELS)),
    [(CLICK, ("r1", 1), 1, 0), ("view", ("r1", 1), 13, 3)],
    [("impression", ("r1", 1), 0), ("act", 0, False), ("impression", ("r1", 1), 12), ("act", 1, False)],
    ["r1"],
    [("behavior", 2), ("inference", 1), ("watermark", 10), ("commit", 0)],
)


@dataclass
class Run:
    """A sample task on one partition, the store in memory; a crash forgets all but the store and the positions."""

    rules: Timeline
    actions: list
    behavior: list
    inference: list
    samples: MemorySamples = field(default_factory=MemorySamples)
    committed: tuple[int, int] = (0, 0)
    counts: Counter = field(default_factory=Counter)
    watermark: int = -1
    partition: int = 0

    def __post_init__(self):
        self.crash(0)

    def crash(self, _):
        self.ledger = MemorySampleLedger(self.samples, partition=self.partition)
        restored = self.ledger.restore(None, applied_to=self.committed[0])
        self.stitcher = Stitcher(self.rules, restored)
        self.at, self.asked = restored.place.replay_from, self.committed[1]
        self.read_to = self.committed[0]
        if self.watermark >= 0:
            self.stitcher.advance(watermark_ms=self.watermark)

    def take_behavior(self, count):
        events = list(enumerate(self.behavior))[self.at : self.at + count]
        shown = [
            (request, item, 7, ts, item, item, None, offset)
            for offset, (what, (request, item), ts) in (e for e in events if e[1][0] == "impression")
        ]
        acted = []
        for offset, (what, number, back) in events:
            if what == "act" and offset >= self.committed_at_start:
                kind, key, ts, value = self.actions[number]
                acted.append((*key, number, kind, ts, value, back))
        self.stitcher.on_impressions(pl.DataFrame(shown, schema=IMPRESSION_SCHEMA, orient="row"))
        self.stitcher.on_actions(pl.DataFrame(acted, schema=ACTION_SCHEMA, orient="row"))
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
        self.counts.update(settle(self.ledger, None, self.stitcher, read_to=self.read_to))
        self.committed = (self.read_to, self.asked)

    def step(self, name, much):
        act = {
            "behavior": self.take_behavior,
            "inference": self.take_inference,
            "watermark": self.advance,
            "commit": self.commit,
            "crash": self.crash,
        }
        act[name](much)

    def go(self, steps, *, end_ms=10_000):
        for name, much in steps:
            self.step(name, much)
        self.take_behavior(len(self.behavior))
        self.take_inference(len(self.inference))
        self.advance(end_ms)
        self.commit(0)
        return self

    def labels(self):
        frames = list(self.samples.store.current())
        rows = pl.concat(frames).rows(named=True) if frames else []
        return {
            (row["request_id"], row["item_id"]): (
                row["event_time_ms"],
                row["label"],
                json.loads(row["labels"]),
                row["negative_rate"],
                row["definition_version"],
            )
            for row in rows
        }

    def keys_of(self, name):
        return {(row["request_id"], row["item_id"]) for row in getattr(self.samples, name).rows(named=True)}


def value_of(label, acted):
    found = [value for kind, _, _, value in acted if kind == label.event]
    if label.summed:
        return sum(found)
    return int(any(label.at_least is None or value >= label.at_least for value in found))


def recompute(timeline, actions, events, requests):
    """key → (time, label, labels, rate, version), keys not drawn and missed, from the whole log, in plain Python."""
    first: dict = {}
    for what, key, ts in events:
        if what == "impression":
            first.setdefault(key, ts)
    came = {number for what, number, back in events if what == "act" and not back}
    gone = {number for what, number, back in events if what == "act" and back}
    samples, out = {}, set()
    for key, ts in first.items():
        if key[0] not in requests:
            continue
        rules = [each.definition for each in timeline.entries if each.from_ms <= ts][-1].on_page(key[1])
        near = {n for n, (_, k, t, _) in enumerate(actions) if k == key and t - ts < rules.horizon_ms}
        acted = [actions[number] for number in near & (came - gone)]
        labels = {name: value_of(label, acted) for name, label in rules.labels.items()}
        clicked = any(actions[number][0] == CLICK for number in near & (came | gone))
        drawn = draws(pl.DataFrame([key], schema=["request_id", "item_id"], orient="row"))[0] < rules.negative_rate
        if clicked or drawn:
            samples[key] = (ts, labels[CLICK], labels, rules.negative_rate, rules.version)
        else:
            out.add(key)
    return samples, out, {key for key in first if key[0] not in requests}


# Memory has no room for a click that comes before its impression, and the owner that read it is gone.
LEFT_TO_THE_STORE = (
    Timeline.of(SampleDefinition(wait_ms=WAIT, horizon_ms=HORIZON, cached_actions=0)),
    [(CLICK, ("r1", 1), 1, 0)],
    [("act", 0, False), ("impression", ("r1", 1), 0)],
    ["r1"],
    [("behavior", 1), ("watermark", 0), ("commit", 0), ("crash", 0)],
)


@settings(max_examples=300)
@example(*REPEATED_AND_NOT_DRAWN)
@example(*LEFT_TO_THE_STORE)
@given(timelines, actions, behavior, inference, steps)
def test_labels_equal_the_batch_and_outcomes_add_up_whatever_the_order_cuts_repetitions_and_crashes(
    timeline, actions, events, requests, steps
):
    run = Run(timeline, actions, events, requests).go(steps)
    found = (run.labels(), run.keys_of("out"), run.keys_of("misses"))
    assert found == recompute(timeline, actions, events, requests)
    check_outcomes(run, shown=sum(what == "impression" for what, _, _ in events))
    check_chains(run)
    check_held(run)


SHOWN_MS = {("r1", 1): 0, ("r1", 2): 3, ("r2", 1): 8}
LONG, ALL_OVER = 100, 60  # no action is given up before every wait is over: an owner knows only its own event time
in_two = st.integers(0, 1)


@settings(max_examples=150)
@given(
    timelines,
    actions,
    st.lists(st.tuples(in_two, happenings), min_size=3, max_size=16),
    st.lists(st.tuples(in_two, st.sampled_from(["r1", "r2"])), min_size=1, max_size=4),
    st.lists(st.tuples(in_two, step), min_size=12, max_size=48),
)
def test_it_does_not_matter_which_partition_a_record_is_in(timeline, actions, events, requests, turns):
    timeline = Timeline(
        entries=tuple(
            replace(each, definition=replace(each.definition, horizon_ms=LONG, pages={})) for each in timeline.entries
        )
    )
    # The same record when it comes again, in whichever partition.
    events = [
        (where, (what, key, SHOWN_MS[key]) if what == "impression" else (what, key, more))
        for where, (what, key, more) in events
    ]
    samples = MemorySamples()
    runs = [
        Run(
            timeline,
            actions,
            [event for where, event in events if where == partition],
            [request for where, request in requests if where == partition],
            samples=samples,
            partition=partition,
        )
        for partition in (0, 1)
    ]
    for where, (name, much) in turns:
        runs[where].step(name, much)
    for end_ms in (LAST_MARK, ALL_OVER):
        for run in runs:
            run.go([], end_ms=end_ms)
    found = (run.labels(), run.keys_of("out"), run.keys_of("misses"))
    assert found == recompute(timeline, actions, [event for _, event in events], [request for _, request in requests])
    check_chains(run)
    check_held(run)


def check_outcomes(run, *, shown):
    """Every impression ends in exactly one."""
    counts = run.counts
    assert counts["impression"] == shown
    samples, misses, out = counts["sampled"], counts["missed"] - counts["completed"], counts["sampled_out"]
    assert samples + misses + out + counts["duplicate"] == shown
    assert (samples, out, misses) == (len(run.labels()), run.samples.out.height, run.samples.misses.height)
    assert run.stitcher.open_rows == 0


def check_chains(run):
    """Nothing is written twice, and a revision is written for nothing but other labels."""
    chains: dict = {}
    for frame in run.samples.store.scan(to_seq=run.samples.store.high_water()):
        for row in frame.rows(named=True):
            chains.setdefault((row["request_id"], row["item_id"]), []).append(row)
    for chain in chains.values():
        assert [row["revision"] for row in chain] == list(range(len(chain)))
        assert [row["old_label"] for row in chain] == [None, *(row["label"] for row in chain[:-1])]
        assert all(one["labels"] != other["labels"] for one, other in pairwise(chain))


def check_held(run):
    """No action waits on once its impression has an outcome."""
    held = run.samples.actions.filter("held")
    for outcome in (run.samples.outcomes, run.samples.out, run.samples.misses):
        assert held.join(outcome, on=["request_id", "item_id"], how="semi").is_empty()


@settings(max_examples=30)
@given(actions, st.lists(st.integers(0, 5), min_size=1, max_size=6), steps)
def test_an_action_without_an_impression_is_held_for_the_horizon_and_no_longer(actions, numbers, steps):
    events = [("act", number, False) for number in numbers]
    rules = Timeline.of(SampleDefinition(wait_ms=WAIT, horizon_ms=HORIZON))
    run = Run(rules, actions, events, []).go(steps, end_ms=LAST_MARK)
    waiting = len(set(numbers))
    assert int(run.samples.actions["held"].sum()) == waiting
    run.go([("commit", 0), ("crash", 0)], end_ms=1_000)
    assert run.samples.actions.is_empty()
    assert run.counts["expired"] == waiting
