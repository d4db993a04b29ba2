"""What every command shares: where the system is, and how an answer is printed."""

from __future__ import annotations

import functools
import logging
import re
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from rtrec_ray.clock import LAST_MS
from rtrec_ray.definition_file import UNITS_MS
from rtrec_ray.features.json_text import json_bytes

DATA_DIR = Path("~/.local/share/rtrec")


class Moment(click.ParamType[Any]):
    """A time as ms since 1970, UTC.

    >>> Moment().convert("1767225600000", None, None)
    1767225600000
    """

    name = "ms"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The time in ms."""
        if isinstance(value, int):
            return value
        if re.fullmatch("[0-9]{1,15}", value) is None or int(value) > LAST_MS:
            self.fail(f"{value!r} is no time: give ms since 1970, UTC, as 1767225600000", param, ctx)
        return int(value)


class Duration(click.ParamType[Any]):
    """A time with its unit, 60s or 10m, as ms.

    >>> Duration().convert("10m", None, None)
    600000
    """

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The time in ms."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+)(ms|s|m|h|d)", value)
        if found is None or int(found[1]) * UNITS_MS[found[2]] > LAST_MS:
            self.fail(f"{value!r} is no time: give a number with ms, s, m, h or d, as 60s", param, ctx)
        return int(found[1]) * UNITS_MS[found[2]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """The options that every command takes. `config`: none is configs/local.yaml."""

    config: Path | None
    data_dir: Path
    json: bool
    debug: bool

    def answer(self, value: Mapping[str, Any], text: Callable[[], None]) -> None:
        """Print the answer: one JSON object, or what `text` prints for people."""
        if self.json:
            click.echo(json_bytes(value))
        else:
            text()


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the shared options to a command; it gets them as its first argument."""

    @functools.wraps(function)
    def call(config: Path | None, data_dir: Path, *, as_json: bool, debug: bool, **arguments: Any) -> Any:
        logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, format="%(name)s %(message)s")
        where = Where(config=config, data_dir=data_dir.expanduser().absolute(), json=as_json, debug=debug)
        return function(where, **arguments)

    for option in (
        click.option("--debug", is_flag=True, help="Show tracebacks and the log."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else."),
        click.option(
            "--data-dir",
            type=click.Path(path_type=Path, file_okay=False),
            default=DATA_DIR,
            envvar="RTREC_DATA_DIR",
            show_default=True,
            help="Where the embedded servers keep their data; how commands find them.",
        ),
        click.option(
            "--config", type=click.Path(path_type=Path, dir_okay=False), envvar="RTREC_CONFIG", help="Settings file."
        ),
    ):
        call = option(call)
    return call


def until_told() -> threading.Event:
    """Set when the process is asked to end (SIGTERM, SIGINT), so that its work ends in order."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told
