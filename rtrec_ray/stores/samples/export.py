"""Samples as Parquet, for tools that do not speak to PostgreSQL.

    OUT/event_date=2026-01-01/part-00000.parquet, ...    one or more files an event day (UTC) of the impressions
    OUT/_manifest.json                                   what was asked for, as of which number, files and rows

The files are written below OUT/_unfinished and get their names at the end, the manifest last: where it lies, the export
is whole. One that was killed is begun anew, for its moment of the table is over; what it left is removed first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from rtrec_ray.errors import ExportRefused, StoreUnavailable
from rtrec_ray.stores.history.files import resolve
from rtrec_ray.stores.samples.scan import SampleScan, ScanAsk, ScanPart, ScanPlan

MANIFEST: Final = "_manifest.json"
_UNFINISHED: Final = "_unfinished"
_STARTED: Final = f"{_UNFINISHED}/started.json"

_Write = Callable[[int, pl.DataFrame], Iterable["ExportedFile"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A file of the export; `path` is below OUT."""

    path: str
    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What was written, as in the manifest. Times in ms UTC; `to_seq`: the table is that of this number; None
    of samples that were stitched from the history.
    """

    from_ms: int
    to_ms: int
    to_seq: int | None
    columns: tuple[str, ...]
    rows: int
    files: tuple[ExportedFile, ...] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def export_samples(
    scan: SampleScan, ask: ScanAsk, uri: str, *, readers: int, progress: Callable[[int, int], None]
) -> Export:
    """Write what `ask` says below `uri` (a path, or what pyarrow.fs knows), by `readers` threads. `progress` gets
    (done, total) parts.

    Raises ExportRefused, AsOfUnknown, StoreUnavailable.
    """
    with _translated(uri):
        folder = _Folder(*resolve(uri))
        # Cut by the day of event_time_ms, which is read in any case.
        with scan.open(replace(ask, columns=tuple(dict.fromkeys((*ask.columns, "event_time_ms"))))) as plan:
            folder.begin(ask)
            write = partial(folder.write, columns=ask.columns)
            files = _write_parts(scan, plan, write, readers=readers, progress=progress)
        return _finished(folder, ask, files, to_seq=plan.to_seq)


def write_export(frames: Iterable[tuple[int, pl.DataFrame]], uri: str, ask: ScanAsk) -> Export:
    """Write numbered frames, which have the columns of `ask` and event_time_ms, as an export of no number.

    Raises ExportRefused, StoreUnavailable.
    """
    with _translated(uri):
        folder = _Folder(*resolve(uri))
        folder.begin(ask)
        write = partial(folder.write, columns=ask.columns)
        files = [file for number, frame in frames for file in write(number, frame)]
        return _finished(folder, ask, files, to_seq=None)


def _finished(folder: _Folder, ask: ScanAsk, files: list[ExportedFile], *, to_seq: int | None) -> Export:
    done = Export(
        from_ms=ask.from_ms,
        to_ms=ask.to_ms,
        to_seq=to_seq,
        columns=ask.columns,
        rows=sum(file.rows for file in files),
        files=tuple(files),
    )
    folder.finish(done)
    return done


def _write_parts(
    scan: SampleScan, plan: ScanPlan, write_part: _Write, *, readers: int, progress: Callable[[int, int], None]
) -> list[ExportedFile]:
    total, stop, files = len(plan.parts), threading.Event(), list[ExportedFile]()
    progress(0, total)

    def write(numbered: tuple[int, ScanPart]) -> list[ExportedFile]:
        number, part = numbered
        return [] if stop.is_set() else list(write_part(number, scan.read(plan, part)))

    with ThreadPoolExecutor(readers) as pool:
        try:
            for done, written in enumerate(pool.map(write, enumerate(plan.parts)), start=1):
                files += written
                progress(done, total)
        except BaseException:
            stop.set()  # or the parts that wait would be written before the error is told
            raise
    return files


class _Folder:
    """The place of an export."""

    def __init__(self, filesystem: fs.FileSystem, root: str) -> None:
        self._fs = filesystem
        self._root = root

    def begin(self, ask: ScanAsk) -> None:
        """Make room: nothing is removed but what an unfinished export wrote."""
        found = self._fs.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        names = {info.base_name for info in found}
        if _UNFINISHED in names:
            if MANIFEST in names:  # it came to its end, but for this
                self._fs.delete_dir(self._full(_UNFINISHED))
            else:
                self._remove([info for info in found if info.base_name.startswith("event_date=")])
                self._fs.delete_dir(self._full(_UNFINISHED))
                names = {name for name in names if not name.startswith("event_date=")} - {_UNFINISHED}
        if names:
            what = "a finished export" if MANIFEST in names else f"something else ({min(names)})"
            raise ExportRefused(f"{what} lies in {self._root}", mend="give --out an empty or a new folder")
        self._put(_STARTED, orjson.dumps(asdict(ask)))

    def write(self, number: int, rows: pl.DataFrame, *, columns: Sequence[str]) -> Iterator[ExportedFile]:
        """A part's rows, by the day of their event time."""
        date = pl.from_epoch("event_time_ms", time_unit="ms").dt.date()
        for (day,), frame in rows.with_columns(_day=date).partition_by("_day", as_dict=True, include_key=False).items():
            path = f"event_date={day}/part-{number:05}.parquet"
            full = self._full(f"{_UNFINISHED}/{path}")
            self._fs.create_dir(full.rpartition("/")[0], recursive=True)
            with self._fs.open_output_stream(full) as stream:
                pq.write_table(frame.select(columns).to_arrow(), stream, compression="zstd")
                size = int(stream.tell())
            yield ExportedFile(path=path, rows=frame.height, bytes=size)

    def finish(self, done: Export) -> None:
        """Give the files their names, then say that all are there."""
        for folder in {file.path.rpartition("/")[0] for file in done.files}:
            self._fs.create_dir(self._full(folder), recursive=True)
        for file in done.files:
            self._fs.move(self._full(f"{_UNFINISHED}/{file.path}"), self._full(file.path))
        text = orjson.dumps(done.as_dict(), option=orjson.OPT_INDENT_2)
        self._put(f"{_UNFINISHED}/{MANIFEST}", text)
        self._fs.move(self._full(f"{_UNFINISHED}/{MANIFEST}"), self._full(MANIFEST))
        self._fs.delete_dir(self._full(_UNFINISHED))

    def _put(self, path: str, content: bytes) -> None:
        full = self._full(path)
        self._fs.create_dir(full.rpartition("/")[0], recursive=True)
        with self._fs.open_output_stream(full) as stream:
            stream.write(content)

    def _remove(self, folders: list[Any]) -> None:
        for info in folders:
            self._fs.delete_dir(info.path)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"


@contextmanager
def _translated(uri: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise StoreUnavailable(
            f"{uri} cannot be written: {error}",
            mend="look at the folder's rights and free space, or at the object store; then run the export again",
        ) from error
