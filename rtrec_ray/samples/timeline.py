"""Which definition holds for which impression: each from an event time on, so that reading again decides the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.samples.definition import SampleDefinition

ALWAYS_MS: Final = -(1 << 62)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A definition and the event time (ms UTC) of the first impressions that it holds for."""

    definition: SampleDefinition
    from_ms: int = ALWAYS_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The definitions that hold, in the order of their starts."""

    entries: tuple[Applied, ...]

    @classmethod
    def of(cls, definition: SampleDefinition) -> Timeline:
        """One that holds for ever."""
        return cls(entries=(Applied(definition=definition),))

    @property
    def newest(self) -> SampleDefinition:
        """The one that holds for what happens now."""
        return self.entries[-1].definition

    @property
    def longest_wait_ms(self) -> int:
        """Of all of them."""
        return max(each.definition.longest_wait_ms for each in self.entries)

    @property
    def longest_horizon_ms(self) -> int:
        """Of all of them."""
        return max(each.definition.longest_horizon_ms for each in self.entries)

    @property
    def draws(self) -> bool:
        """Whether any leaves negatives out."""
        rules = (each.definition for each in self.entries)
        return any(rate < 1 for each in rules for rate in (each.negative_rate, *_page_rates(each)))

    def value(self, get: Callable[[SampleDefinition], Any], *, dtype: pl.DataType | type[pl.DataType]) -> pl.Expr:
        """What `get` answers for the rules of each row (event_time_ms, page_id)."""
        first, *later = (_on_pages(each.definition, get, dtype) for each in self.entries)
        for each, values in zip(self.entries[1:], later, strict=True):
            first = pl.when(pl.col("event_time_ms") >= each.from_ms).then(values).otherwise(first)
        return first

    def parts(self, rows: pl.DataFrame) -> Iterator[tuple[SampleDefinition, pl.DataFrame]]:
        """The rows (event_time_ms, page_id) of each definition in their order; pages with own labels have one."""
        ends = [*(each.from_ms for each in self.entries[1:]), None]
        for each, end in zip(self.entries, ends, strict=True):
            within = pl.col("event_time_ms") >= each.from_ms
            part = (
                rows
                if len(ends) == 1
                else rows.filter(within if end is None else within & (pl.col("event_time_ms") < end))
            )
            yield from _pages(each.definition, part)

    def applied(self, new: SampleDefinition, *, from_ms: int) -> Timeline:
        """With `new` from that event time on. Raises DefinitionInvalid when its version means something else.

        >>> timeline = Timeline.of(SampleDefinition())
        >>> timeline.applied(SampleDefinition(), from_ms=5) == timeline
        True
        >>> [each.from_ms for each in timeline.applied(SampleDefinition(version=2), from_ms=5).entries[1:]]
        [5]
        """
        for each in self.entries:
            if each.definition.version == new.version:
                if each.definition != new:
                    raise DefinitionInvalid(
                        f"version {new.version} is already defined otherwise", mend="raise the version in the file"
                    )
                return self
        if new.version < self.newest.version:
            raise DefinitionInvalid(
                f"version {new.version} is older than {self.newest.version}, which holds", mend="raise the version"
            )
        return Timeline(
            entries=(*self.entries, Applied(definition=new, from_ms=max(from_ms, self.entries[-1].from_ms)))
        )


def _pages(definition: SampleDefinition, rows: pl.DataFrame) -> Iterator[tuple[SampleDefinition, pl.DataFrame]]:
    for page in (page for page, rules in definition.pages.items() if rules.labels):
        here = (pl.col("page_id") == page).fill_null(False)
        own, rows = rows.filter(here), rows.filter(~here)
        if not own.is_empty():
            yield definition.on_page(page), own
    if not rows.is_empty():
        yield definition, rows


def _on_pages(
    definition: SampleDefinition, get: Callable[[SampleDefinition], Any], dtype: pl.DataType | type[pl.DataType]
) -> pl.Expr:
    value = pl.lit(get(definition), dtype=dtype)
    for page in definition.pages:
        value = (
            pl.when(pl.col("page_id") == page).then(pl.lit(get(definition.on_page(page)), dtype=dtype)).otherwise(value)
        )
    return value


def _page_rates(definition: SampleDefinition) -> list[float]:
    return [definition.on_page(page).negative_rate for page in definition.pages]
