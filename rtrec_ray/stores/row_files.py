"""Tables as files of a user's own: Parquet, JSON lines or CSV, told by the end of the name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import polars as pl

from rtrec_ray.clock import LAST_MS
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.features.as_of import ROW_SCHEMA, column_of, schema_of, value_of
from rtrec_ray.features.definition import FeatureView
from rtrec_ray.features.json_text import json_bytes

_READ: Final[dict[str, Callable[[Path], pl.DataFrame]]] = {
    ".parquet": pl.read_parquet,
    ".jsonl": pl.read_ndjson,
    ".csv": lambda path: pl.read_csv(path, infer_schema_length=None),
}
_NO_TEXT: Final = (pl.Binary, pl.Object, pl.Duration)
_NO_JSON: Final = (pl.Binary, pl.Object, pl.Decimal, pl.Duration)


def read_rows(path: Path, view: FeatureView) -> pl.DataFrame:
    """A table with `key` and `time_ms` and any others but the view's: ROW_SCHEMA and these. Raises ConfigInvalid."""
    read = _READ[known_format(path)]
    try:
        rows = read(path)
        missing = sorted(ROW_SCHEMA.names() - rows.schema.keys())
        if missing:
            raise ConfigInvalid(f"{path} has no column {missing[0]}", mend="it needs key and time_ms (ms UTC)")
        if clash := sorted({*schema_of(view), "_row", "_slot", "end_ms"} & rows.schema.keys()):
            raise ConfigInvalid(f"{path} has a column {clash[0]} already", mend="rename it")
        whole = rows.with_columns(_whole(rows, name, path) for name in ROW_SCHEMA)
        found = whole.with_columns(pl.col(name).cast(kind) for name, kind in ROW_SCHEMA.items())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise ConfigInvalid(
            f"{path} cannot be read: {str(error).splitlines()[0]}", mend="key is text or a number, time_ms an integer"
        ) from error
    if no_times := found["time_ms"].filter(~found["time_ms"].is_between(0, LAST_MS)).to_list():
        raise ConfigInvalid(f"{path} has time_ms {no_times[0]}", mend="it is a time in ms since 1970, UTC")
    return found


def write_rows(path: Path, rows: pl.DataFrame, view: FeatureView) -> None:
    """Rows with a view's columns; the file is there whole or not at all. Raises ConfigInvalid.

    JSON lines have the value as `features get` gives it, under the view's name. Parquet and CSV have a column for each
    part of it, CSV with lists as JSON text; there a sum beyond 64 bits is the limit it passes.
    """
    aside = path.with_name(f".{path.name}.part")
    try:
        if known_format(path) == ".parquet":
            _within_64_bits(rows).write_parquet(aside)
        elif known_format(path) == ".csv":
            _as_text(_within_64_bits(rows), view).write_csv(aside)
        else:
            with aside.open("wb") as file:
                file.writelines(json_bytes(line) + b"\n" for line in _lines(rows, view))
        aside.replace(path)
    except (OSError, TypeError, pl.exceptions.PolarsError) as error:
        aside.unlink(missing_ok=True)
        why = getattr(error, "strerror", None) or error
        raise ConfigInvalid(f"{path} cannot be written: {why}", mend="name another --out") from error


def known_format(path: Path) -> str:
    """The end of the name, if it tells a format. Raises ConfigInvalid."""
    if path.suffix not in _READ:
        raise ConfigInvalid(f"{path} ends with none of {', '.join(_READ)}", mend="name a file of one of these kinds")
    return path.suffix


def check_columns(path: Path, rows: pl.DataFrame) -> None:
    """Raise ConfigInvalid if such a file cannot have these columns: better before all values are computed."""
    end = known_format(path)
    for name, kind in rows.schema.items():
        if (end == ".csv" and (kind.is_nested() or kind in _NO_TEXT)) or (end == ".jsonl" and kind in _NO_JSON):
            raise ConfigInvalid(
                f"{path} cannot have the column {name} of {kind}", mend="Parquet can: --out FILE.parquet"
            )


def _whole(rows: pl.DataFrame, name: str, path: Path) -> pl.Series:
    """A column that pandas has as floats since a value of it is missing, as the integers that it holds."""
    column = rows[name]
    if not column.dtype.is_float():
        return column
    if fractions := column.filter(column.is_infinite() | (column != column.round())).head(1).to_list():
        raise ConfigInvalid(
            f"{path} has {name} {fractions[0]}", mend="key is text or a whole number, time_ms an integer"
        )
    return column.fill_nan(None).cast(pl.Int64)


def _lines(rows: pl.DataFrame, view: FeatureView) -> list[dict[str, object]]:
    own = [name for name in rows.columns if name not in schema_of(view)]
    return [{**{name: row[name] for name in own}, view.name: value_of(view, row)} for row in rows.to_dicts()]


def _within_64_bits(rows: pl.DataFrame) -> pl.DataFrame:
    wide = [name for name, kind in rows.schema.items() if kind == pl.Int128]
    low, high = (pl.lit(limit, dtype=pl.Int128) for limit in (-(2**63), 2**63 - 1))
    return rows.with_columns(pl.col(name).clip(low, high).cast(pl.Int64) for name in wide)


def _as_text(rows: pl.DataFrame, view: FeatureView) -> pl.DataFrame:
    lists = [each for each in view.aggregations if isinstance(rows.schema[column_of(view, each)], pl.List)]
    values = [value_of(view, row) for row in rows.select(schema_of(view).names()).to_dicts()]
    texts = {
        column_of(view, each): [None if value is None else _json(value[each.name]) for value in values]
        for each in lists
    }
    return rows.with_columns(pl.Series(name, found, dtype=pl.String) for name, found in texts.items())


def _json(value: object) -> str:
    return json_bytes(value).decode()
