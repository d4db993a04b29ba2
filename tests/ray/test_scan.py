"""A range of samples through Ray Data and tf.data, out of one moment of the table."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest
import ray
from ray.exceptions import RayTaskError

from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.samples.columns import SAMPLE_SCHEMA
from rtrec_ray.stores.samples.postgres import PostgresSampleStore
from rtrec_ray.stores.samples.scan import ScanAsk, ScanPart, ScanPlan
from rtrec_ray.stores.samples.scan_postgres import PostgresSampleScan
from tests.scanned_samples import DAY_MS, FIRST_MS, PostgresPuts, clicked, sample
from training.scan import open_dataset

pytestmark = [pytest.mark.server, pytest.mark.ray]

COLUMNS = ("commit_seq", "request_id", "item_id", "label", "revision", "page_id", "model_version")
ASK = ScanAsk(from_ms=FIRST_MS, to_ms=FIRST_MS + 3 * DAY_MS, columns=COLUMNS)


class Dying(PostgresSampleScan):
    """A scan whose readers end their process at the second part, once, after others have committed."""

    def __init__(self, options: PostgresOptions, mark: Path) -> None:
        super().__init__(options, part_blocks=1)
        self.options = options
        self.mark = mark

    def read(self, plan: ScanPlan, part: ScanPart, /) -> pl.DataFrame:
        if part == plan.parts[1] and not self.mark.exists():
            self.mark.touch()
            PostgresPuts(self.options).put([clicked(row) for row in rows()[::2]])
            os._exit(1)
        return super().read(plan, part)


def rows() -> list[dict]:
    return [sample(f"r{n // 5}", n % 5, ts=FIRST_MS + n * DAY_MS // 250) for n in range(600)]


@pytest.fixture
def options(dsn) -> PostgresOptions:
    options = PostgresOptions(dsn=dsn)
    PostgresPuts(options).put(rows())
    return options


def current(options, **how) -> list[tuple]:
    frames = PostgresSampleStore(options).current(columns=COLUMNS, **how)
    return pl.concat([SAMPLE_SCHEMA.to_frame().select(COLUMNS), *frames]).sort("commit_seq").rows()


def test_a_killed_reader_is_begun_again_within_the_same_moment(options, tmp_path, ray_local):
    before = current(options)
    with open_dataset(Dying(options, tmp_path / "died"), ASK) as (dataset, plan):
        found = pl.concat(pl.from_arrow(ray.get(ref)) for ref in dataset.to_arrow_refs())
    assert (tmp_path / "died").exists()
    assert found.select(COLUMNS).sort("commit_seq").rows() == before == current(options, to_seq=plan.to_seq)
    assert current(options) != before


def test_a_dataset_read_after_its_scan_says_so(options, ray_local):
    with open_dataset(PostgresSampleScan(options), ASK) as (dataset, _):
        pass
    with pytest.raises(RayTaskError) as ended:
        dataset.count()
    assert "SnapshotEnded" in str(ended.value)
    assert "no longer open" in str(ended.value)


def test_tf_data_gets_batches_of_one_size_and_the_same_rows_at_each_pass(options):
    from training.scan_tf import tf_dataset  # TensorFlow takes seconds to import

    scan = PostgresSampleScan(options, part_blocks=1)
    with scan.open(ASK) as plan:
        batches = tf_dataset(scan, plan, batch_rows=64)
        PostgresPuts(options).put([clicked(row) for row in rows()])
        passes = [[batch["item_id"].numpy() for batch in batches] for _ in range(2)]
        whole = tf_dataset(scan, plan, batch_rows=64, rest=True)
        first = {name: column.numpy() for name, column in next(iter(whole)).items()}
        seqs = [int(seq) for batch in whole for seq in batch["commit_seq"].numpy()]
    assert [len(batch) for batch in passes[0]] == [64] * (600 // 64)
    assert all((one == two).all() for one, two in zip(*passes, strict=True))
    assert sorted(seqs) == list(range(1, 601))
    assert (first["page_id"][0], first["model_version"][0], first["label"].sum()) == (0, b"v1", 0)
