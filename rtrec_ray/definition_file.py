"""Files of definitions (YAML), read node by node, so that whatever is wrong is named with its line."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import yaml

from rtrec_ray import yaml_text
from rtrec_ray.errors import DefinitionInvalid

Part = TypeVar("Part")
Found = TypeVar("Found")

UNITS_MS: Final = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION: Final = re.compile(r"(\d{1,15})(ms|s|m|h|d)")
_WHOLE: Final = re.compile(r"-?\d{1,18}")
_NUMBER: Final = re.compile(r"-?(\d{1,18}(\.\d{0,18})?|\.\d{1,18})([eE][-+]?\d{1,2})?")


def read_text(path: Path) -> str:
    """The text of a file. Raises DefinitionInvalid."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DefinitionInvalid(f"{path} cannot be read: {error}", mend="name an existing file") from error


def compose(text: str, *, source: str) -> yaml.Node | None:
    """The root of the file's nodes, which know their lines; None of an empty file. Raises DefinitionInvalid."""
    try:
        return yaml_text.compose(text)
    except yaml.YAMLError as error:
        what = f"{source}{yaml_text.fault(error, text)}"
        raise DefinitionInvalid(what, mend="correct the file") from error


def duration_text(ms: int) -> str:
    """A stretch of time as a file has it: in the largest unit that it is whole in.

    >>> duration_text(604_800_000), duration_text(90_000), duration_text(0)
    ('7d', '90s', '0ms')
    """
    whole = [(size, unit) for unit, size in UNITS_MS.items() if ms and ms % size == 0]
    size, unit = max(whole, default=(1, "ms"))
    return f"{ms // size}{unit}"


class NodeReader:
    """What nodes mean. Each method raises DefinitionInvalid, which names `source` and the node's line."""

    def __init__(self, source: str, *, name: str = r"[a-z][a-z0-9_]*") -> None:
        self._source = source
        self._name = re.compile(name)

    def mapping(
        self, node: yaml.Node, *, need: tuple[str, ...] = (), may: tuple[str, ...] = ()
    ) -> Mapping[str, yaml.Node]:
        """Its values by key: all of `need`, any of `may`; with neither, keys of any name."""
        if not isinstance(node, yaml.MappingNode):
            self.fail(node, "expected key: value")
        found: dict[str, yaml.Node] = {}
        for key_node, value_node in node.value:
            key = self.text(key_node)
            if key in found:
                self.fail(key_node, f'"{key}" stands here twice')
            if (need or may) and key not in need + may:
                self.fail(key_node, f'unknown key "{key}"', mend=f"known are {', '.join(need + may)}")
            found[key] = value_node
        for key in need:
            if key not in found:
                self.fail(node, f'"{key}" is missing')
        return found

    def sequence(self, node: yaml.Node) -> list[yaml.Node]:
        """Its parts."""
        if not isinstance(node, yaml.SequenceNode):
            self.fail(node, "expected a list")
        return list(node.value)

    def each(self, read: Callable[[Part], Found], parts: Iterable[Part]) -> list[Found]:
        """What `read` makes of each part. The error has the faults of all of them, a line each."""
        found, faults = [], []
        for part in parts:
            try:
                found.append(read(part))
            except DefinitionInvalid as fault:
                faults.append(fault)
        if len(faults) == 1:
            raise faults[0]
        if faults:
            raise DefinitionInvalid("\n".join(fault.line() for fault in faults))
        return found

    def all(self, reads: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """What each gives, under its name. The error has the faults of all of them, a line each."""
        return dict(zip(reads, self.each(lambda read: read(), reads.values()), strict=True))

    def text(self, node: yaml.Node) -> str:
        """A single value, as it is written."""
        if not isinstance(node, yaml.ScalarNode):
            self.fail(node, "expected text")
        return str(node.value)

    def name(self, node: yaml.Node) -> str:
        """A text that fits the pattern of names."""
        text = self.text(node)
        if not self._name.fullmatch(text):
            self.fail(node, f'"{text}" is not a name', mend=f"names are {self._name.pattern}")
        return text

    def choice(self, node: yaml.Node | None, allowed: tuple[str, ...], default: str) -> Any:
        """One of some words; `default` without a node."""
        if node is None:
            return default
        text = self.text(node)
        if text not in allowed:
            self.fail(node, f'expected one of {", ".join(allowed)}, not "{text}"')
        return text

    def flag(self, node: yaml.Node | None) -> bool:
        """True or false; false without a node."""
        return bool(self.choice(node, ("true", "false"), "false") == "true")

    def whole(self, node: yaml.Node, *, least: int | None = None, most: int | None = None) -> int:
        """A whole number of 18 digits at most, not below `least` nor above `most`; `_` may part the digits."""
        text = self.text(node).replace("_", "")
        if not _WHOLE.fullmatch(text) or (least is not None and int(text) < least):
            bound = "" if least is None else f" of {least} or more"
            self.fail(node, f'expected a whole number{bound}, not "{text}"')
        if most is not None and int(text) > most:
            self.fail(node, f'expected a whole number of {most} or less, not "{text}"')
        return int(text)

    def number(self, node: yaml.Node) -> float:
        """A finite number."""
        text = self.text(node)
        if not _NUMBER.fullmatch(text):
            self.fail(node, f'expected a number, not "{text}"')
        return float(text)

    def duration(self, node: yaml.Node) -> int:
        """A stretch of time, in ms."""
        text = self.text(node)
        match = _DURATION.fullmatch(text)
        if match is None or int(match[1]) == 0:
            self.fail(node, f'expected a duration like 10s or 5m, not "{text}"')
        return int(match[1]) * UNITS_MS[match[2]]

    def fail(self, node: Any, what: str, *, mend: str = "correct the file") -> NoReturn:
        """Say what is wrong with a node."""
        raise DefinitionInvalid(f"{self._source}, line {node.start_mark.line + 1}: {what}", mend=mend)
