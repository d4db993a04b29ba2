"""samples.yaml: read into a definition; whatever is wrong in it is named with its line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from rtrec_ray import yaml_text
from rtrec_ray.definition_file import NodeReader, compose, read_text
from rtrec_ray.errors import DefinitionInvalid
from rtrec_ray.samples.definition import ACTIONS, Label, PageRules, SampleDefinition

_NUMBERS: Final = ("version", "wait_ms", "horizon_ms", "cached_requests", "cached_actions")
_ON_PAGES: Final = ("wait_ms", "horizon_ms", "emit", "negatives", "labels")
_FIELD: Final = "dwell_ms"


def load_definition(path: Path) -> SampleDefinition:
    """Read samples.yaml. Raises DefinitionInvalid, which names the file, the line and the key."""
    return parse_definition(read_text(path), source=str(path))


def parse_definition(text: str, *, source: str = "samples.yaml") -> SampleDefinition:
    r"""The definition in a file's text. Raises DefinitionInvalid; `source` names the file.

    >>> parse_definition("wait_ms: 5\nlabels:\n  cart: {event: basket}")
    Traceback (most recent call last):
    rtrec_ray.errors.DefinitionInvalid: samples.yaml, line 3: event is "basket"
    """
    node = compose(text, source=source)
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
    return yaml_text.dump(content)


def _label_text(label: Label) -> dict[str, Any]:
    if label.summed:
        return {"event": label.event, "sum": _FIELD}
    return {"event": label.event} | ({} if label.at_least is None else {"at_least": {_FIELD: label.at_least}})


def _page_text(rules: PageRules) -> dict[str, Any]:
    plain = {name: getattr(rules, name) for name in ("wait_ms", "horizon_ms", "emit")}
    keep = {} if rules.negative_rate is None else {"negatives": {"keep": rules.negative_rate}}
    labels = (
        {} if rules.labels is None else {"labels": {name: _label_text(each) for name, each in rules.labels.items()}}
    )
    return {name: value for name, value in plain.items() if value is not None} | keep | labels


class _Reader(NodeReader):
    """Makes a definition of the file's nodes."""

    def top(self, node: yaml.Node) -> dict[str, Any]:
        parts = self.mapping(node, may=(*_NUMBERS, "emit", "labels", "pages", "negatives"))
        found = self._rules(parts)
        found |= {name: self.whole(parts[name]) for name in _NUMBERS if name in parts}
        if "pages" in parts:
            found["pages"] = dict(self._page(name, each) for name, each in self.mapping(parts["pages"]).items())
        return found

    def _rules(self, parts: Mapping[str, yaml.Node]) -> dict[str, Any]:
        found: dict[str, Any] = {name: self.whole(parts[name]) for name in ("wait_ms", "horizon_ms") if name in parts}
        if "emit" in parts:
            found["emit"] = self.text(parts["emit"])
        if "negatives" in parts:
            found["negative_rate"] = self.number(self.mapping(parts["negatives"], need=("keep",))["keep"])
        if "labels" in parts:
            found["labels"] = {name: self._label(each) for name, each in self.mapping(parts["labels"]).items()}
        return found

    def _page(self, name: str, node: yaml.Node) -> tuple[int, PageRules]:
        if not name.isdigit():
            self.fail(node, f'page "{name}" is not a number', mend="give page_id: {wait_ms: ..}")
        return int(name), PageRules(**self._rules(self.mapping(node, may=_ON_PAGES)))

    def _label(self, node: yaml.Node) -> Label:
        parts = self.mapping(node, may=("at_least", "sum"), need=("event",))
        event: Any = self.text(parts["event"])
        if event not in ACTIONS:
            self.fail(parts["event"], f'event is "{event}"', mend=f"choose one of {', '.join(ACTIONS)}")
        if "at_least" in parts and "sum" in parts:
            self.fail(node, "at_least and sum stand together", mend="make two labels")
        if "at_least" in parts:
            bound = self.mapping(parts["at_least"], need=(_FIELD,))[_FIELD]
            return Label(event=event, field="dwell_ms", at_least=self.whole(bound))
        if "sum" in parts:
            if (field := self.text(parts["sum"])) != _FIELD:
                self.fail(parts["sum"], f'sum is "{field}"', mend=f"only {_FIELD} can be summed")
            return Label(event=event, field="dwell_ms", summed=True)
        return Label(event=event)
