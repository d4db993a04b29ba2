"""features.yaml: read into definitions; whatever is wrong in it is named with its line.

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

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, get_args

import yaml

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.events import BEHAVIOR_SCHEMA, EventType, ItemType
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

_UNITS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d+)(ms|s|m|h|d)")
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_FIELDS: Final = tuple(name for name in BEHAVIOR_SCHEMA if name not in ("event_id", "ts", "retracts"))
_NUMBERS: Final = tuple(name for name in _FIELDS if BEHAVIOR_SCHEMA[name].is_integer())
_ENUMS: Final = {"event_type": get_args(EventType), "item_type": get_args(ItemType)}
_KINDS: Final = get_args(Kind)
_PRESENT: Final = "present"


def load_definitions(path: Path) -> Definitions:
    """Read a file. Raises DefinitionInvalid with file, line and key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionInvalid(f"{path} cannot be read: {error}", mend="name an existing features.yaml") from error
    return parse_definitions(text, source=str(path))


def parse_definitions(text: str, *, source: str = "features.yaml") -> Definitions:
    r"""The definitions in a file's text. Raises DefinitionInvalid with line and key; `source` names the file.

    >>> parse_definitions("tile: 10s\nwindow: 5m\n")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: features.yaml, line 2: unknown key "window"
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise DefinitionInvalid(f"{source}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    return _Reader(source).definitions(node)


class _Reader:
    """Walks the nodes of the file, which know their lines."""

    def __init__(self, source: str) -> None:
        self._source = source

    def definitions(self, node: yaml.Node | None) -> Definitions:
        if node is None:
            raise DefinitionInvalid(f"{self._source}: the file is empty")
        top = self._mapping(node, need=("tile", "horizon", "retention", "views"))
        tile_ms = self._duration(top["tile"])
        views = [self._view(each, tile_ms=tile_ms) for each in self._sequence(top["views"])]
        for index, view in enumerate(views):
            if view.name in [earlier.name for earlier in views[:index]]:
                self._fail(self._sequence(top["views"])[index], f'a second view "{view.name}"')
        found = Definitions(
            tile_ms=tile_ms,
            horizon_ms=self._duration(top["horizon"]),
            retention_ms=self._duration(top["retention"]),
            views=tuple(views),
        )
        if found.horizon_ms < found.longest_window_ms + MARGIN_MS:
            self._fail(top["horizon"], "horizon must be at least the longest window + 10m")
        if found.retention_ms < found.horizon_ms + found.longest_window_ms:
            self._fail(top["retention"], "retention must be at least the horizon + the longest window")
        return found

    def _view(self, node: yaml.Node, *, tile_ms: int) -> FeatureView:
        part = self._mapping(
            node, need=("name", "version", "keys", "window", "source", "aggregations"), may=("cached",)
        )
        window_ms = self._duration(part["window"])
        if window_ms % tile_ms:
            self._fail(part["window"], "window must be a multiple of the tile")
        aggregations = self._mapping(part["aggregations"])
        if not aggregations:
            self._fail(part["aggregations"], "aggregations must not be empty")
        return FeatureView(
            name=self._name(part["name"]),
            version=self._positive(part["version"]),
            keys=self._keys(part["keys"]),
            window_ms=window_ms,
            source=self._conditions(part["source"]),
            aggregations=tuple(self._aggregation(name, each) for name, each in aggregations.items()),
            cached=self._flag(part.get("cached")),
        )

    def _keys(self, node: yaml.Node) -> tuple[tuple[str, ...], ...]:
        forms = []
        for each in self._sequence(node):
            text = self._text(each)
            form = () if text == ALL else tuple(text.split("|"))
            for name in form:
                if name not in (*_FIELDS, *PROFILE_FIELDS):
                    self._fail(each, f'unknown field "{name}" in keys')
            forms.append(form)
        if len(set(forms)) < len(forms) or not forms:
            self._fail(node, "keys must be different forms, at least one")
        return tuple(forms)

    def _aggregation(self, name: str, node: yaml.Node) -> Aggregation:
        part = self._mapping(node, may=(*_KINDS, "where", "limit", "repeats"))
        kinds = [kind for kind in _KINDS if kind in part]
        if len(kinds) != 1:
            self._fail(node, f'"{name}" needs exactly one of {", ".join(_KINDS)}')
        kind = kinds[0]
        if "repeats" in part and kind != "last_n":
            self._fail(part["repeats"], "repeats is for last_n")
        if ("limit" in part) != (kind in ("top_k", "last_n")):
            self._fail(node, f'"{name}": limit is needed by top_k and last_n, and by these alone')
        return Aggregation(
            name=name,
            kind=kind,
            field=self._aggregated(part[kind], kind=kind),
            where=self._conditions(part["where"]) if "where" in part else (),
            limit=self._positive(part["limit"]) if "limit" in part else None,
            repeats=self._flag(part.get("repeats")),
        )

    def _aggregated(self, node: yaml.Node, *, kind: Kind) -> str | None:
        text = self._text(node)
        if kind == "count":
            if text != "events":
                self._fail(node, f'count takes "events", not "{text}"')
            return None
        allowed = _NUMBERS if kind in ("sum", "mean") else _FIELDS
        if text not in allowed:
            self._fail(node, f'{kind} takes one of {", ".join(allowed)}, not "{text}"')
        return text

    def _conditions(self, node: yaml.Node) -> tuple[Condition, ...]:
        return tuple(self._condition(name, each) for name, each in self._mapping(node, may=_FIELDS).items())

    def _condition(self, name: str, node: yaml.Node) -> Condition:
        if isinstance(node, yaml.ScalarNode) and node.value == _PRESENT:
            return Condition(field=name)
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        values = tuple(self._value(name, each) for each in nodes)
        if not values:
            self._fail(node, f'"{name}" needs at least one value')
        return Condition(field=name, values=values)

    def _value(self, name: str, node: yaml.Node) -> str | int:
        if name in _NUMBERS:
            return self._integer(node)
        text = self._text(node)
        if text not in _ENUMS.get(name, (text,)) or text == "retract":
            self._fail(node, f'{name} "{text}" is none of {", ".join(_ENUMS[name])}')
        return text

    def _mapping(
        self, node: yaml.Node, *, need: tuple[str, ...] = (), may: tuple[str, ...] = ()
    ) -> Mapping[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, "expected key: value")
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = self._text(key_node)
            if key in found:
                self._fail(key_node, f'"{key}" stands here twice')
            if (need or may) and key not in need + may:
                self._fail(key_node, f'unknown key "{key}"')
            found[key] = value_node
        for key in need:
            if key not in found:
                self._fail(node, f'"{key}" is missing')
        return found

    def _sequence(self, node: yaml.Node) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, "expected a list")
        return list(node.value)

    def _text(self, node: yaml.Node) -> str:
        if not isinstance(node, yaml.ScalarNode):
            self._fail(node, "expected text")
        return str(node.value)

    def _name(self, node: yaml.Node) -> str:
        text = self._text(node)
        if not _NAME.fullmatch(text):
            self._fail(node, f'"{text}" is not a name: lower-case letters, digits and _')
        return text

    def _integer(self, node: yaml.Node) -> int:
        text = self._text(node)
        if not re.fullmatch(r"-?\d{1,18}", text):
            self._fail(node, f'expected a whole number, not "{text}"')
        return int(text)

    def _positive(self, node: yaml.Node) -> int:
        number = self._integer(node)
        if number < 1:
            self._fail(node, f"expected 1 or more, not {number}")
        return number

    def _flag(self, node: yaml.Node | None) -> bool:
        if node is None:
            return False
        text = self._text(node)
        if text not in ("true", "false"):
            self._fail(node, f'expected true or false, not "{text}"')
        return text == "true"

    def _duration(self, node: yaml.Node) -> int:
        text = self._text(node)
        match = _DURATION.fullmatch(text)
        if match is None or int(match[1]) == 0:
            self._fail(node, f'expected a duration like 10s or 5m, not "{text}"')
        return int(match[1]) * _UNITS[match[2]]

    def _fail(self, node: Any, what: str) -> NoReturn:
        raise DefinitionInvalid(f"{self._source}, line {node.start_mark.line + 1}: {what}")
