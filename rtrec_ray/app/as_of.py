"""`rtrec features as-of`: a table of keys and times, with what a view said of each of them then."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rtrec_ray.app.system import System
from rtrec_ray.clock import monotonic_s
from rtrec_ray.features.as_of import schema_of
from rtrec_ray.stores.features.as_of import AsOfReader, Progress, reached_ms, unknown_yet
from rtrec_ray.stores.features.open import open_features
from rtrec_ray.stores.row_files import check_columns, known_format, read_rows, write_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class AsOfReport:
    """What was written. `found`: rows with data; `ahead`: rows of times that the system has not reached yet."""

    view: str
    version: int
    rows: int
    found: int
    ahead: int
    columns: tuple[str, ...]
    out: str
    seconds: float


def as_of_file(system: System, name: str, source: Path, out: Path, *, progress: Progress) -> AsOfReport:
    """Write the rows of `source` with the view's columns to `out`.

    Raises ConfigInvalid, UnknownView, NotRunning, StoreUnavailable.
    """
    began_s = monotonic_s()
    known_format(out)
    with open_features(system.features, postgres=system.postgres, history_uri=system.history_uri) as opened:
        view = opened.store.definitions.view(name)
        rows = read_rows(source, view)
        check_columns(out, rows)
        with opened.pool.transaction() as cursor:
            watermark_ms = reached_ms(cursor, view)
        found = AsOfReader(store=opened.store, past=opened.past).read(view.id, rows, progress=progress)
    write_rows(out, found, view)
    return AsOfReport(
        view=view.name,
        version=view.version,
        rows=rows.height,
        found=found.height - found[view.name].null_count(),
        ahead=unknown_yet(rows["time_ms"], watermark_ms=watermark_ms),
        columns=tuple(schema_of(view)),
        out=str(out),
        seconds=round(monotonic_s() - began_s, 3),
    )
