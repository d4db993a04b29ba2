"""The history's files, on anything pyarrow.fs reaches: a local or mounted folder, S3, GCS, HDFS."""

from __future__ import annotations

import datetime as dt
import os
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rtrec_ray.clock import wall_ms
from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.stores.history.store import HOUR_MS, HistoryFile, arrow_schema

if TYPE_CHECKING:
    import pyarrow.dataset as ds

_LAST_HOUR: Final = 253_402_300_800_000 // HOUR_MS - 1  # of the year 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryFilesOptions:
    """`uri`: a path, or a URI that pyarrow.fs knows (file, s3, gs, hdfs). `threads`: files written at the same time."""

    uri: str
    threads: int = 4
    compression: str = "zstd"


class ArrowHistoryFiles:
    """HistoryFiles below a pyarrow.fs URI. Raises StoreUnavailable where it is away or full."""

    def __init__(self, options: HistoryFilesOptions) -> None:
        self._options = options
        self._uri = options.uri
        with self._translated():
            self._fs, self._root = resolve(options.uri)

    def write(self, topic: str, frame: pl.DataFrame, /, *, partition: int) -> list[HistoryFile]:
        """Write records of one partition, a file for each event hour in them; durable when it returns."""
        # Times that no date can name lie in the first or last folder: the manifest is asked by time, not the name.
        hour = (pl.col("ts") // HOUR_MS).clip(0, _LAST_HOUR)
        hours = frame.with_columns(_hour=hour).partition_by("_hour", as_dict=True, include_key=False)
        with self._translated(), ThreadPoolExecutor(self._options.threads) as pool:
            return list(pool.map(lambda item: self._write_hour(topic, partition, *item), sorted(hours.items())))

    def open(self, topic: str, files: Sequence[HistoryFile], /) -> ds.Dataset:
        """The files' records as one dataset of `arrow_schema(topic)`."""
        import pyarrow.dataset as ds  # it brings pandas, which takes a second: only who reads waits

        schema = arrow_schema(topic)
        if not files:
            return ds.dataset(schema.empty_table())
        paths = [self._full(file.path) for file in files]
        with self._translated():
            return ds.dataset(paths, schema=schema, format="parquet", filesystem=self._fs)

    def frames(
        self, dataset: ds.Dataset, /, *, columns: Sequence[str] | None, batch_rows: int
    ) -> Iterator[pl.DataFrame]:
        """Read an opened dataset in portions, none of them empty. `columns`: None is all."""
        # By default 16 batches of each of 4 files are read ahead, which is not bounded memory with raw bytes in them.
        read = dataset.scanner(
            columns=None if columns is None else list(columns),
            batch_size=batch_rows,
            batch_readahead=2,
            fragment_readahead=2,
        )
        with self._translated():
            for batch in read.to_batches():
                if batch.num_rows:
                    yield pl.DataFrame(pl.from_arrow(batch))

    def paths(self, topic: str, /, *, min_age_s: float = 0.0) -> Iterator[str]:
        """Every file of the topic that lies there for at least `min_age_s` seconds, visible or not."""
        newest_ns = (wall_ms() - round(min_age_s * 1_000)) * 1_000_000
        selector = fs.FileSelector(self._full(_folder(topic)), recursive=True, allow_not_found=True)
        with self._translated():
            found = self._fs.get_file_info(selector)
        return (
            info.path.removeprefix(self._root + "/")
            for info in found
            if info.is_file and (min_age_s <= 0 or info.mtime_ns <= newest_ns)
        )

    def remove(self, paths: Sequence[str], /) -> None:
        """Remove files; one that is gone already is no error."""
        with self._translated():
            for path in paths:
                with suppress(FileNotFoundError):
                    self._fs.delete_file(self._full(path))

    def _write_hour(self, topic: str, partition: int, key: tuple[object, ...], frame: pl.DataFrame) -> HistoryFile:
        start = dt.datetime.fromtimestamp(int(str(key[0])) * HOUR_MS / 1_000, tz=dt.UTC)
        low, high = _range(frame["offset"])
        min_ts_ms, max_ts_ms = _range(frame["ts"])
        # A random part, because a failed commit's records come again with the same offsets.
        name = f"p{partition:03}-{low:012}-{high:012}-{uuid.uuid4().hex[:12]}.parquet"
        path = f"{_folder(topic)}/date={start:%Y-%m-%d}/hour={start:%H}/{name}"
        table = frame.to_arrow().cast(arrow_schema(topic))
        return HistoryFile(
            path=path,
            topic=topic,
            partition=partition,
            event_date=start.date(),
            event_hour=start.hour,
            row_count=frame.height,
            byte_count=self._write_table(table, self._full(path)),
            min_offset=low,
            max_offset=high,
            min_ts_ms=min_ts_ms,
            max_ts_ms=max_ts_ms,
        )

    def _write_table(self, table: pa.Table, path: str) -> int:
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        try:
            with self._fs.open_output_stream(path) as stream:
                pq.write_table(table, stream, compression=self._options.compression)
                size = int(stream.tell())
            if self._fs.type_name == "local":
                _make_durable(Path(path))
        except OSError:
            # Each new attempt has a new name: what failed attempts leave must not fill the disk for good.
            with suppress(OSError):
                self._fs.delete_file(path)
            raise
        return size

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise StoreUnavailable(
                f"the history at {self._uri} cannot be used: {error}",
                mend="look at the folder's rights and free space, or at the object store; the caller tries again",
            ) from error


def resolve(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or a URI, and the path on it."""
    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    filesystem, path = fs.FileSystem.from_uri(uri)
    return filesystem, path.rstrip("/")


def _range(column: pl.Series) -> tuple[int, int]:
    values = column.to_numpy()
    return int(values.min()), int(values.max())


def _folder(topic: str) -> str:
    return f"topic={topic}"


def _make_durable(path: Path) -> None:
    # Or a power cut after the commit leaves a row in the manifest and an empty file.
    for place in (path, path.parent):
        handle = os.open(place, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
