"""What a sample is: how long an impression waits, which labels it has, and how late an action may still change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, get_args

import msgspec

from rtrec_ray.errors import DefinitionInvalid

Emit = Literal["on_click", "on_close"]
Kind = Literal["click", "view", "favorite", "cart", "consult", "comment"]
ACTIONS: Final = get_args(Kind)
CLICK: Final = "click"


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """One label over the actions of type `event` on a sample.

    1 if there is one, else 0; with `at_least`, if there is one whose `field` is at least that; with `summed`, the sum
    of `field` over them.
    """

    event: Kind
    field: Literal["dwell_ms"] | None = None
    at_least: int | None = None
    summed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRules:
    """What differs on a page; None: as elsewhere. `labels`: there beside those of elsewhere, or in place of one by its
    name.
    """

    wait_ms: int | None = None
    horizon_ms: int | None = None
    emit: Emit | None = None
    negative_rate: float | None = None
    labels: Mapping[str, Label] | None = None


def _click_only() -> dict[str, Label]:
    return {CLICK: Label(event=CLICK)}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDefinition:
    """The rules of labelling. Times in ms of event time.

    `wait_ms`: an impression without a click becomes a negative sample when the watermark has passed it by this much.
    `horizon_ms`: an action counts for its impression within [impression, impression + horizon), however late it comes.
    `emit`: a positive is written as soon as its click is joined (`on_click`), or like a negative at the end of the wait
    (`on_close`), so that a rise in traffic does not show as a rise in clicks.
    `labels`: by name; `click` is always among them and is the label. `pages`: page_id → what differs there.
    `negative_rate`: the share in (0, 1] of impressions without a click that become samples.
    `cached_requests`: records of the inference log kept in memory; older ones are read back from the store.
    `cached_actions`: so many actions without their impression wait in memory, more of them in the store alone.
    """

    version: int = 1
    wait_ms: int = 60_000
    horizon_ms: int = 7 * 24 * 3_600_000
    emit: Emit = "on_click"
    labels: Mapping[str, Label] = field(default_factory=_click_only)
    pages: Mapping[int, PageRules] = field(default_factory=dict)
    negative_rate: float = 1.0
    cached_requests: int = 100_000
    cached_actions: int = 200_000

    def __post_init__(self) -> None:
        """Refuse a definition that contradicts itself. Raises DefinitionInvalid."""
        if self.labels.get(CLICK) != Label(event=CLICK):
            raise DefinitionInvalid("the label click is not {event: click}", mend="write `click: {event: click}`")
        _check(self)
        for page in self.pages:
            try:
                self.on_page(page)
            except DefinitionInvalid as error:
                raise DefinitionInvalid(f"on page {page} {error.message}", mend=error.mend) from error

    def on_page(self, page: int) -> SampleDefinition:
        """The rules of a page, as a definition that has no pages."""
        here = self.pages.get(page, PageRules())
        changed: dict[str, Any] = {
            name: getattr(here, name)
            for name in ("wait_ms", "horizon_ms", "emit", "negative_rate")
            if getattr(here, name) is not None
        }
        return replace(self, pages={}, labels={**self.labels, **(here.labels or {})}, **changed)

    @property
    def longest_wait_ms(self) -> int:
        """Of all pages."""
        return max([self.wait_ms, *(self.on_page(page).wait_ms for page in self.pages)])

    @property
    def longest_horizon_ms(self) -> int:
        """Of all pages."""
        return max([self.horizon_ms, *(self.on_page(page).horizon_ms for page in self.pages)])

    def text(self) -> str:
        """As JSON."""
        return msgspec.json.encode(self).decode()


def from_text(text: str) -> SampleDefinition:
    """The definition that `text` was made of.

    >>> from_text(SampleDefinition(wait_ms=5).text()) == SampleDefinition(wait_ms=5)
    True
    """
    return msgspec.json.decode(text, type=SampleDefinition)


def _check(rules: SampleDefinition) -> None:
    if rules.wait_ms < 0:
        raise DefinitionInvalid(f"wait_ms is {rules.wait_ms}", mend="give the wait as 0 ms or more")
    if rules.horizon_ms < rules.wait_ms:
        raise DefinitionInvalid(
            f"horizon_ms {rules.horizon_ms} is shorter than wait_ms {rules.wait_ms}",
            mend="a click within the wait must be within the horizon",
        )
    if rules.emit not in get_args(Emit):
        raise DefinitionInvalid(f"emit is {rules.emit!r}", mend=f"choose one of {', '.join(get_args(Emit))}")
    if not 0 < rules.negative_rate <= 1:
        raise DefinitionInvalid(f"keep is {rules.negative_rate}", mend="keep a share in (0, 1] of the negatives")
