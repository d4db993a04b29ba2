"""SQL lives in .sql files: blocks headed `-- name: verb_thing`, one per store method."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

_HEAD = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)


def parse(text: str) -> dict[str, str]:
    r"""Split a file into its named statements.

    >>> parse("-- name: one\nSELECT 1;\n\n-- name: two (why)\nSELECT 2;\n")
    {'one': 'SELECT 1;', 'two': 'SELECT 2;'}
    """
    parts = _HEAD.split(text)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def load(package: str, file: str) -> dict[str, str]:
    """The named statements of `file` inside `package`."""
    return parse((resources.files(package) / file).read_text(encoding="utf-8"))
