"""YAML by libyaml, which is more than ten times as fast as PyYAML's own Python; PyYAML's wheels have it."""

from __future__ import annotations

from typing import Any, Final

import yaml

# libyaml builds nodes by recursion without a bound, so a text of brackets alone would end the process.
_DEEPEST: Final = 100


def compose(text: str) -> yaml.Node | None:
    """The root of the nodes, which know their lines; None of an empty text. Raises yaml.YAMLError.

    >>> compose("[" * 100_000)
    Traceback (most recent call last):
    yaml.error.MarkedYAMLError: more than 100 levels
      in "<unicode string>", line 1, column 101
    """
    _bound(text)
    return yaml.compose(text, Loader=yaml.CSafeLoader)


def load(text: str) -> Any:
    """The tree of plain values. Raises yaml.YAMLError."""
    _bound(text)
    return yaml.load(text, Loader=yaml.CSafeLoader)


def fault(error: Exception, text: str) -> str:
    r"""What is wrong and where, to stand behind the name of the file.

    >>> try: compose("a: 1\nb: [\n")
    ... except yaml.YAMLError as error: fault(error, "a: 1\nb: [\n")
    ', line 2: not YAML: did not find expected node content'
    """
    mark = getattr(error, "problem_mark", None)
    last = text.rstrip().count("\n")  # what is missing at the end libyaml misses behind it
    line = "" if mark is None else f", line {min(mark.line, last) + 1}"
    return f"{line}: not YAML: {getattr(error, 'problem', error)}"


def dump(tree: Any, **form: Any) -> str:
    """The text of a tree of plain values, in the order it has. `form`: as yaml.dump takes it."""
    text: str = yaml.dump(tree, Dumper=yaml.CSafeDumper, sort_keys=False, **form)
    return text


def _bound(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            mark: Any = event.start_mark
            raise yaml.MarkedYAMLError(problem=f"more than {_DEEPEST} levels", problem_mark=mark)
