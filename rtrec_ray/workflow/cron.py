"""Five-field cron expressions in UTC: minute, hour, day of month, month, day of week.

Own code: it is a page, and nothing that is pinned already reads cron. When both days are restricted, either suffices
(POSIX, `crontab`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from rtrec_ray.errors import DefinitionInvalid

_RANGES: Final = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_PART: Final = re.compile(r"(?:\*|(\d+)(?:-(\d+))?)(?:/(\d+))?")

# 29 February comes after 8 years at the latest; with a restricted weekday either day suffices, so no later.
_FARTHEST_DAYS: Final = 8 * 366 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Cron:
    """When a schedule is due. Weekdays are 0 (Sunday) to 6; `any_day`: either restricted day suffices.

    >>> nine = parse_cron("0 9 * * 1-5")
    >>> datetime.fromtimestamp(nine.after(0) / 1000, tz=UTC).isoformat()
    '1970-01-01T09:00:00+00:00'
    """

    text: str
    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    any_day: bool

    def after(self, time_ms: int) -> int:
        """The first due minute later than `time_ms`, ms UTC."""
        first = datetime.fromtimestamp(time_ms // 60_000 * 60, tz=UTC) + timedelta(minutes=1)
        for due in self._from(first):
            return round(due.timestamp()) * 1_000
        raise DefinitionInvalid(f'cron "{self.text}" is never due')

    def due_on(self, day: date) -> bool:
        """Whether anything is due on `day`."""
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return day.month in self.months and (in_month or in_week if self.any_day else in_month and in_week)

    def _from(self, first: datetime) -> Iterator[datetime]:
        for ahead in range(_FARTHEST_DAYS):
            day = first.date() + timedelta(days=ahead)
            if not self.due_on(day):
                continue
            for hour in sorted(self.hours):
                for minute in sorted(self.minutes):
                    due = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
                    if due >= first:
                        yield due


def parse_cron(text: str) -> Cron:
    """Read five fields of numbers, `*`, lists, ranges and steps. Raises DefinitionInvalid.

    >>> parse_cron("61 * * * *")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: cron "61 * * * *": minute "61" is not within 0 to 59
    """
    fields = text.split()
    if len(fields) != len(_RANGES):
        raise DefinitionInvalid(f'cron "{text}" needs five fields: minute hour day month weekday')
    values = [_field(text, field, *limits) for field, limits in zip(fields, _RANGES, strict=True)]
    cron = Cron(
        text=text,
        minutes=values[0],
        hours=values[1],
        days=values[2],
        months=values[3],
        weekdays=frozenset(day % 7 for day in values[4]),
        any_day=not (fields[2].startswith("*") or fields[4].startswith("*")),
    )
    cron.after(0)  # 30 February is never due: better said now than waited for
    return cron


def _field(text: str, field: str, name: str, low: int, high: int) -> frozenset[int]:
    found: set[int] = set()
    for part in field.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise DefinitionInvalid(f'cron "{text}": {name} "{part}" is not a number, a range or a step')
        first, last, step = match.groups()
        begin = low if first is None else int(first)
        # As cron has it: 5/10 is 5-high/10, while 5 alone is 5.
        end = int(last) if last is not None else (high if first is None or step is not None else begin)
        if not low <= begin <= end <= high or step == "0":
            raise DefinitionInvalid(f'cron "{text}": {name} "{part}" is not within {low} to {high}')
        found.update(range(begin, end + 1, int(step or 1)))
    return frozenset(found)
