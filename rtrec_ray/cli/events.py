"""`rtrec events`: what happened. Imported when one of its commands is called."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final

import click
import orjson

from rtrec_ray.app.find import open_system
from rtrec_ray.cli.options import Where, command
from rtrec_ray.errors import ConfigInvalid
from rtrec_ray.notification.base import Event, EventFilter, NewEvent
from rtrec_ray.notification.postgres import PostgresNotificationStore

_TIMES: Final = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S")


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


def _wanted(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which events; the command gets them as one EventFilter, `wanted`."""

    @functools.wraps(function)
    def call(*given: Any, kind: str | None, since: datetime | None, until: datetime | None, **rest: Any) -> Any:
        names = ("key", "namespace", "sender", "version", "after_version")
        fields = {name: rest.pop(name) for name in names}
        wanted = EventFilter(type=kind, from_ms=_ms(since), to_ms=_ms(until), **fields)
        return function(*given, wanted=wanted, **rest)

    for option in (
        click.option("--until", type=click.DateTime(_TIMES), help="Only events before this time, UTC."),
        click.option("--since", type=click.DateTime(_TIMES), help="Only events from this time on, UTC."),
        click.option("--after-version", type=int, help="Only later versions of their key."),
        click.option("--version", type=int, help="Only this version of its key."),
        click.option("--sender", help="Only events of this sender."),
        click.option("--namespace", help="Only events of this namespace."),
        click.option("--type", "kind", help="Only events of this type."),
        click.option("--key", help="Only events of this key."),
    ):
        call = option(call)
    return call


@events.command(name="list")
@_wanted
@click.option("--after", "after_offset", type=int, help="Only events after this offset; without it, the newest.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=100, show_default=True)
@command
def list_events(where: Where, wanted: EventFilter, after_offset: int | None, limit: int) -> None:
    """List events, oldest first."""
    with _log(where) as store:
        found = store.list(wanted, after_offset=after_offset, limit=limit)
    where.answer({"events": [asdict(event) for event in found]}, lambda: _print(found))


@events.command()
@_wanted
@click.option("--after", "after_offset", type=int, help="Begin after this offset; without it, from now on.")
@click.option("--count", type=click.IntRange(1), help="End after this many events.")
@command
def tail(where: Where, wanted: EventFilter, after_offset: int | None, count: int | None) -> None:
    """Follow the log until Ctrl-C; with --json, one object a line."""
    with _log(where) as store:
        position = store.end_offset() if after_offset is None else after_offset
        left = count
        while left is None or left > 0:
            step = store.step(wanted, after_offset=position, timeout_s=1.0, limit=left or 1000)
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


def _ms(time: datetime | None) -> int | None:
    return None if time is None else round(time.replace(tzinfo=UTC).timestamp() * 1000)
