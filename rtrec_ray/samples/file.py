"""samples.yaml: read into a definition; whatever is wrong in it is named with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NoReturn

import yaml

from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.samples.definition import ACTIONS, Label, PageRules, SampleDefinition

_NUMBERS: Final = ("version", "wait_ms", "horizon_ms", "cached_requests")
_ON_PAGES: Final = ("wait_ms", "horizon_ms", "emit", "negatives")
_FIELD: Final = "dwell_ms"


def load_definition(path: Path) -> SampleDefinition:
    """Read samples.yaml. Raises DefinitionInvalid, which names the file, the line and the key."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionInvalid(f"{path}: {error}", mend="name an existing samples.yaml") from error
    return parse_definition(text, source=str(path))


def parse_definition(text: str, *, source: str = "samples.yaml") -> SampleDefinition:
    r"""The definition in a file's text. Raises DefinitionInvalid; `source` names the file.

    >>> parse_definition("wait_ms: 5\nlabels:\n  cart: {event: basket}")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: samples.yaml: line 3: event is 'basket'
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise DefinitionInvalid(f"{source}: {error}", mend="correct the file") from error
    if node is None:
        return SampleDefinition()
    found = _Reader(source).top(node)
    try:
        return SampleDefinition(**found)
    except DefinitionInvalid as error:
        raise DefinitionInvalid(f"{source}: {error.message}", mend=error.mend) from error


def file_text(definition: SampleDefinition) -> str:
    """A file that says the same.

    >>> parse_definition(file_text(SampleDefinition(wait_ms=5))) == SampleDefinition(wait_ms=5)
    True
    """
    content = {name: getattr(definition, name) for name in (*_NUMBERS, "emit")}
    content["negatives"] = {"keep": definition.negative_rate}
    content["labels"] = {name: _label_text(label) for name, label in definition.labels.items()}
    content["pages"] = {page: _page_text(rules) for page, rules in definition.pages.items()}
    return yaml.safe_dump(content, sort_keys=False)


def _label_text(label: Label) -> dict[str, Any]:
    if label.summed:
        return {"event": label.event, "sum": _FIELD}
    return {"event": label.event} | ({} if label.at_least is None else {"at_least": {_FIELD: label.at_least}})


def _page_text(rules: PageRules) -> dict[str, Any]:
    plain = {name: getattr(rules, name) for name in ("wait_ms", "horizon_ms", "emit")}
    keep = {} if rules.negative_rate is None else {"negatives": {"keep": rules.negative_rate}}
    return {name: value for name, value in plain.items() if value is not None} | keep


class _Reader:
    """Walks the nodes of the file, which know their lines."""

    def __init__(self, source: str) -> None:
        self._source = source

    def top(self, node: yaml.Node) -> dict[str, Any]:
        parts = self._mapping(node, may=(*_NUMBERS, "emit", "labels", "pages", "negatives"))
        found: dict[str, Any] = self._rules(parts)
        found |= {name: self._whole(name, parts[name]) for name in _NUMBERS if name in parts}
        if "labels" in parts:
            found["labels"] = {name: self._label(each) for name, each in self._mapping(parts["labels"]).items()}
        if "pages" in parts:
            found["pages"] = dict(self._page(name, each) for name, each in self._mapping(parts["pages"]).items())
        return found

    def _rules(self, parts: Mapping[str, yaml.Node]) -> dict[str, Any]:
        found: dict[str, Any] = {
            name: self._whole(name, parts[name]) for name in ("wait_ms", "horizon_ms") if name in parts
        }
        if "emit" in parts:
            found["emit"] = self._text("emit", parts["emit"])
        if "negatives" in parts:
            kept = self._mapping(parts["negatives"], may=("keep",), need=("keep",))["keep"]
            found["negative_rate"] = self._share("keep", kept)
        return found

    def _page(self, name: str, node: yaml.Node) -> tuple[int, PageRules]:
        if not name.isdigit():
            self._fail(node, f"page {name!r} is not a number", "give page_id: {wait_ms: ..}")
        return int(name), PageRules(**self._rules(self._mapping(node, may=_ON_PAGES)))

    def _label(self, node: yaml.Node) -> Label:
        parts = self._mapping(node, may=("event", "at_least", "sum"), need=("event",))
        event: Any = self._text("event", parts["event"])
        if event not in ACTIONS:
            self._fail(parts["event"], f"event is {event!r}", f"choose one of {', '.join(ACTIONS)}")
        if "at_least" in parts and "sum" in parts:
            self._fail(node, "at_least and sum stand together", "make two labels")
        if "at_least" in parts:
            bound = self._mapping(parts["at_least"], may=(_FIELD,), need=(_FIELD,))[_FIELD]
            return Label(event=event, field="dwell_ms", at_least=self._whole(_FIELD, bound))
        if "sum" in parts:
            if self._text("sum", parts["sum"]) != _FIELD:
                self._fail(parts["sum"], f"sum is {self._value(parts['sum'])!r}", f"only {_FIELD} can be summed")
            return Label(event=event, field="dwell_ms", summed=True)
        return Label(event=event)

    def _mapping(
        self, node: yaml.Node, *, may: tuple[str, ...] = (), need: tuple[str, ...] = ()
    ) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, "expected `key: value` lines", "see configs/samples.yaml")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            name = str(key.value)
            if may and name not in may:
                self._fail(key, f"unknown key {name!r}", f"known are {', '.join(may)}")
            if name in found:
                self._fail(key, f"{name!r} stands here twice", "keep one of them")
            found[name] = value
        for name in need:
            if name not in found:
                self._fail(node, f"{name!r} is missing", f"give {name}")
        return found

    def _whole(self, name: str, node: yaml.Node) -> int:
        value = self._value(node)
        if type(value) is not int:
            self._fail(node, f"{name} is {value!r}", "give int")
        return int(value)

    def _share(self, name: str, node: yaml.Node) -> float:
        value = self._value(node)
        if type(value) not in (int, float):
            self._fail(node, f"{name} is {value!r}", "give a number in (0, 1]")
        return float(value)

    def _text(self, name: str, node: yaml.Node) -> str:
        value = self._value(node)
        if not isinstance(value, str):
            self._fail(node, f"{name} is {value!r}", "give text")
        return value

    @staticmethod
    def _value(node: yaml.Node) -> Any:
        return yaml.SafeLoader("").construct_object(node, deep=True)

    def _fail(self, node: yaml.Node, what: str, mend: str) -> NoReturn:
        raise DefinitionInvalid(f"{self._source}: line {node.start_mark.line + 1}: {what}", mend=mend)
