"""`rtrec events`: what happened. Imported when one of its commands is called."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import click
import orjson

from rtrec_ray.app.find import open_system
from rtrec_ray.cli.options import Where, command
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.notification.base import Event, EventFilter, NewEvent
from rtrec_ray.notification.postgres import PostgresNotificationStore


@click.group()
def events() -> None:
    """Send, list and follow events."""


@events.command()
@click.option("--key", required=True, help="What it is about.")
@click.option("--value", required=True, help="What is said of it.")
@click.option("--type", "kind", default="", help="What happened, such as MODEL_GENERATED.")
@click.option("--namespace", default="default", show_default=True)
@click.option("--sender", default="rtrec", show_default=True)
@click.option("--context", default="{}", help="More, as a JSON object.")
@command
def send(where: Where, kind: str, context: str, **fields: str) -> None:
    """Append an event to the log."""
    event = NewEvent(type=kind, context=_json_object(context), **fields)
    with _log(where) as store:
        sent = store.send(event)
    where.answer(asdict(sent), lambda: _print([sent]))


@events.command(name="list")
@click.option("--key", help="Only events of this key.")
@click.option("--type", "kind", help="Only events of this type.")
@click.option("--namespace", help="Only events of this namespace.")
@click.option("--after", "after_offset", type=int, help="Only events after this offset; without it, the newest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@command
def list_events(where: Where, kind: str | None, after_offset: int | None, limit: int, **wanted: str | None) -> None:
    """List events, oldest first."""
    with _log(where) as store:
        found = store.list(EventFilter(type=kind, **wanted), after_offset=after_offset, limit=limit)
    where.answer({"events": [asdict(event) for event in found]}, lambda: _print(found))


@events.command()
@click.option("--key", help="Only events of this key.")
@click.option("--type", "kind", help="Only events of this type.")
@click.option("--namespace", help="Only events of this namespace.")
@click.option("--after", "after_offset", type=int, help="Begin after this offset; without it, from now on.")
@click.option("--count", type=click.IntRange(1), help="End after this many events.")
@command
def tail(where: Where, kind: str | None, after_offset: int | None, count: int | None, **wanted: str | None) -> None:
    """Follow the log until Ctrl-C; with --json, one object a line."""
    with _log(where) as store:
        position = store.end_offset() if after_offset is None else after_offset
        left = count
        while left is None or left > 0:
            step = store.step(
                EventFilter(type=kind, **wanted), after_offset=position, timeout_s=1.0, limit=left or 1000
            )
            position = step.position
            _follow(where, step.events)
            left = None if left is None else left - len(step.events)


def _follow(where: Where, found: Iterable[Event]) -> None:
    for event in found:
        if where.json:
            where.answer(asdict(event), lambda: None)
        else:
            _print([event])


@contextmanager
def _log(where: Where) -> Iterator[PostgresNotificationStore]:
    system = open_system(where.config, where.data_dir)
    store = PostgresNotificationStore(system.postgres, clock=system.clock)
    try:
        yield store
    finally:
        store.close()


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigInvalid(f"--context is not JSON: {error}", mend="for example --context '{\"auc\": 0.7}'") from error
    if not isinstance(value, dict):
        raise ConfigInvalid("--context is not a JSON object", mend="for example --context '{\"auc\": 0.7}'")
    return value


def _print(found: Iterable[Event]) -> None:
    for event in found:
        time = datetime.fromtimestamp(event.time_ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S")
        context = orjson.dumps(event.context).decode() if event.context else ""
        what = f"{event.namespace}/{event.key} v{event.version}  {event.type or '-'}  {event.value}  {context}"
        click.echo(f"{event.offset:>6}  {time}  {what}".rstrip())
