"""The pipeline's state in Prometheus' words: what `rtrec status` says of its stages, for whoever scrapes a replica."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rtrec_ray.postgres.connection import Pool
from rtrec_ray.stores.features.sizes import ViewSize, read_sizes
from rtrec_ray.stores.progress import Stage, read_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineState:
    """Stage → how far it is; live view (NAME@VERSION) → what it keeps. `now_ms`: of the system's clock."""

    now_ms: int
    stages: Mapping[str, Stage] = field(default_factory=dict)
    sizes: Mapping[str, ViewSize] = field(default_factory=dict)

    def text(self) -> bytes:
        """Prometheus' text format.

        >>> print(PipelineState(now_ms=0).text().decode().splitlines()[1])
        # TYPE rtrec_stage_up gauge
        """
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_State(self))
        return generate_latest(registry)


class _State(Collector):
    def __init__(self, state: PipelineState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        yield from self._stages()
        yield from self._views()

    def _stages(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("rtrec_stage_up", "1 while every partition of the stage has an owner.", labels=["stage"])
        lag = GaugeMetricFamily("rtrec_stage_lag_records", "Records on the log not taken yet.", labels=["stage"])
        behind = GaugeMetricFamily(
            "rtrec_stage_behind_seconds", "Clock now less the stage's watermark.", labels=["stage"]
        )
        counts = CounterMetricFamily("rtrec_stage_records", "Records, by their outcome.", labels=["stage", "outcome"])
        for name, stage in self._state.stages.items():
            up.add_metric([name], stage.up)
            lag.add_metric([name], stage.lag)
            if stage.watermark_ms is not None:
                behind.add_metric([name], (self._state.now_ms - stage.watermark_ms) / 1_000)
            for outcome, n in sorted(stage.counts.items()):
                counts.add_metric([name, outcome], n)
        yield from (up, lag, behind, counts)

    def _views(self) -> Iterator[Metric]:
        rows = GaugeMetricFamily("rtrec_view_rows", "Rows of tiles that a feature view keeps.", labels=["view"])
        size = GaugeMetricFamily("rtrec_view_bytes", "Bytes of their keys and states.", labels=["view"])
        lists = GaugeMetricFamily("rtrec_view_lists", "Lists of it that serving reads.", labels=["view"])
        oldest = GaugeMetricFamily("rtrec_view_oldest_seconds", "Clock now less its oldest hour kept.", labels=["view"])
        for view, each in self._state.sizes.items():
            rows.add_metric([view], each.rows)
            size.add_metric([view], each.bytes)
            lists.add_metric([view], each.lists)
            if each.oldest_ms is not None:
                oldest.add_metric([view], (self._state.now_ms - each.oldest_ms) / 1_000)
        yield from (rows, size, lists, oldest)


def read_pipeline(pool: Pool, *, now_ms: int) -> PipelineState:
    """The state of this moment. Raises StoreUnavailable."""
    with pool.transaction() as cursor:
        return PipelineState(now_ms=now_ms, stages=read_stages(cursor), sizes=read_sizes(cursor))
