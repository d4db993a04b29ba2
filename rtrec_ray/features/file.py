"""features.yaml: read into definitions; whatever is wrong in it is named with its line, of each view and aggregation.

tile: 10s            # partial aggregates are this long; every window is a multiple
horizon: 40m         # an event that late still corrects what was written
retention: 70m       # tiles are kept that long behind the watermark
views:
  - name: user_browse_1m
    version: 1
    keys: [user_id]                  # or all, or fields joined by |, of the event or of the user's profile
    window: 1m
    source: {event_type: view}       # a value, a list of values, or present
    cached: false                    # true: kept as a list for serving
    aggregations:                    # count | sum | mean | count_by | top_k | last_n | distinct
      pages: {distinct: page_id}
      items: {distinct: item_id, where: {item_type: product}}
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final, get_args

import yaml

from rtrec_ray.definition_file import NodeReader, compose, read_text
from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.events import BEHAVIOR_SCHEMA, RETRACT, EventType, ItemType
from rtrec_ray.features.definition import (
    ALL,
    PROFILE_FIELDS,
    Aggregation,
    Condition,
    Definitions,
    FeatureView,
    Kind,
)
from rtrec_ray.features.evolve import MARGIN_MS

_FIELDS: Final = tuple(name for name in BEHAVIOR_SCHEMA if name not in ("event_id", "ts", "retracts"))
_NUMBERS: Final = tuple(name for name in _FIELDS if BEHAVIOR_SCHEMA[name].is_integer())
# A retraction takes an event back, and counts nowhere itself.
_EVENTS: Final = tuple(name for name in get_args(EventType) if name != RETRACT)
_ENUMS: Final = {"event_type": _EVENTS, "item_type": get_args(ItemType)}
_LAST_VERSION: Final = 2**31 - 1
_TAKEN: Final = ("key", "time_ms", "ask", "end_ms")  # in tables of values as of a time
_KINDS: Final = get_args(Kind)
_PRESENT: Final = "present"


def load_definitions(path: Path) -> Definitions:
    """Read a file. Raises DefinitionInvalid with file, line and key."""
    return parse_definitions(read_text(path), source=str(path))


def parse_definitions(text: str, *, source: str = "features.yaml") -> Definitions:
    r"""The definitions in a file's text. Raises DefinitionInvalid with line and key; `source` names the file.

    >>> parse_definitions("tile: 10s\nwindow: 5m\n")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: features.yaml, line 2: unknown key "window"
    """
    node = compose(text, source=source)
    if node is None:
        raise DefinitionInvalid(f"{source}: the file is empty", mend="configs/features.yaml shows what it may have")
    return _Reader(source).definitions(node)


class _Reader(NodeReader):
    """Makes views of the file's nodes."""

    def definitions(self, node: yaml.Node) -> Definitions:
        top = self.mapping(node, need=("tile", "horizon", "retention", "views"))
        tile_ms = self.duration(top["tile"])
        views = self.each(partial(self._view, tile_ms=tile_ms), self.sequence(top["views"]))
        for index, view in enumerate(views):
            if view.name in [earlier.name for earlier in views[:index]]:
                self.fail(self.sequence(top["views"])[index], f'a second view "{view.name}"')
        found = Definitions(
            tile_ms=tile_ms,
            horizon_ms=self.duration(top["horizon"]),
            retention_ms=self.duration(top["retention"]),
            views=tuple(views),
        )
        if found.horizon_ms < found.longest_window_ms + MARGIN_MS:
            self.fail(top["horizon"], "horizon must be at least the longest window + 10m")
        if found.retention_ms < found.horizon_ms + found.longest_window_ms:
            self.fail(top["retention"], "retention must be at least the horizon + the longest window")
        return found

    def _view(self, node: yaml.Node, *, tile_ms: int) -> FeatureView:
        part = self.mapping(node, need=("name", "version", "keys", "window", "source", "aggregations"), may=("cached",))
        found = self.all(
            {
                "name": lambda: self._view_name(part["name"]),
                "version": lambda: self.whole(part["version"], least=1, most=_LAST_VERSION),
                "keys": lambda: self._keys(part["keys"]),
                "window_ms": lambda: self._window(part["window"], tile_ms=tile_ms),
                "source": lambda: self._conditions(part["source"]),
                "aggregations": lambda: self._aggregations(part["aggregations"]),
                "cached": lambda: self.flag(part.get("cached")),
            }
        )
        return FeatureView(**found)

    def _view_name(self, node: yaml.Node) -> str:
        name = self.name(node)
        if name in _TAKEN:
            self.fail(node, f'"{name}" is a column beside the values of views', mend="give the view another name")
        return name

    def _window(self, node: yaml.Node, *, tile_ms: int) -> int:
        window_ms = self.duration(node)
        if window_ms % tile_ms:
            self.fail(node, "window must be a multiple of the tile")
        return window_ms

    def _aggregations(self, node: yaml.Node) -> tuple[Aggregation, ...]:
        aggregations = self.mapping(node)
        if not aggregations:
            self.fail(node, "aggregations must not be empty")
        return tuple(self.each(self._aggregation, aggregations.items()))

    def _keys(self, node: yaml.Node) -> tuple[tuple[str, ...], ...]:
        forms = []
        for each in self.sequence(node):
            text = self.text(each)
            form = () if text == ALL else tuple(text.split("|"))
            for name in form:
                if name not in (*_FIELDS, *PROFILE_FIELDS):
                    self.fail(each, f'unknown field "{name}" in keys')
            if len(set(form)) < len(form):
                self.fail(each, f'"{text}" names a field twice')
            forms.append(form)
        if len(set(forms)) < len(forms) or not forms:
            self.fail(node, "keys must be different forms, at least one")
        return tuple(forms)

    def _aggregation(self, named: tuple[str, yaml.Node]) -> Aggregation:
        name, node = named
        if not name.isprintable() or not name.strip():
            self.fail(node, "an aggregation needs a name")
        part = self.mapping(node, may=(*_KINDS, "where", "limit", "repeats"))
        kinds = [kind for kind in _KINDS if kind in part]
        if len(kinds) != 1:
            self.fail(node, f'"{name}" needs exactly one of {", ".join(_KINDS)}')
        kind = kinds[0]
        if "repeats" in part and kind != "last_n":
            self.fail(part["repeats"], "repeats is for last_n")
        if ("limit" in part) != (kind in ("top_k", "last_n")):
            self.fail(node, f'"{name}": limit is needed by top_k and last_n, and by these alone')
        return Aggregation(
            name=name,
            kind=kind,
            field=self._aggregated(part[kind], kind=kind),
            where=self._conditions(part["where"]) if "where" in part else (),
            limit=self.whole(part["limit"], least=1) if "limit" in part else None,
            repeats=self.flag(part.get("repeats")),
        )

    def _aggregated(self, node: yaml.Node, *, kind: Kind) -> str | None:
        text = self.text(node)
        if kind == "count":
            if text != "events":
                self.fail(node, f'count takes "events", not "{text}"')
            return None
        allowed = _NUMBERS if kind in ("sum", "mean") else _FIELDS
        if text not in allowed:
            self.fail(node, f'{kind} takes one of {", ".join(allowed)}, not "{text}"')
        return text

    def _conditions(self, node: yaml.Node) -> tuple[Condition, ...]:
        return tuple(self._condition(name, each) for name, each in self.mapping(node, may=_FIELDS).items())

    def _condition(self, name: str, node: yaml.Node) -> Condition:
        if isinstance(node, yaml.ScalarNode) and node.value == _PRESENT:
            return Condition(field=name)
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = tuple(self._value(name, each) for each in nodes)
        if not values:
            self.fail(node, f'"{name}" needs at least one value')
        return Condition(field=name, values=values)

    def _value(self, name: str, node: yaml.Node) -> str | int:
        if name in _NUMBERS:
            return self.whole(node)
        text = self.text(node)
        if text not in _ENUMS.get(name, (text,)):
            self.fail(node, f'{name} "{text}" is none of {", ".join(_ENUMS[name])}')
        return text
