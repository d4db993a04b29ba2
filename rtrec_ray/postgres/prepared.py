"""Statements that are planned once per connection, for reads so short that planning them is most of the work."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from psycopg2 import errors

from rtrec_ray.postgres.connection import Cursor


class Prepared:
    """Statements with $1, $2, ... of these types, for connections in autocommit. They keep one plan for all values."""

    def __init__(self, statements: Mapping[str, str], *, types: Sequence[str]) -> None:
        heads = {name: f"PREPARE {name} ({', '.join(types)}) AS {text}" for name, text in statements.items()}
        self._prepare = ";".join(heads.values())
        self._values = ", ".join("%s" for _ in types)

    def execute(self, cursor: Cursor, name: str, values: Sequence[object]) -> None:
        """Run one; on a connection that does not know them yet, prepare all of them first."""
        execute = f"EXECUTE {name} ({self._values})"
        try:
            cursor.execute(execute, values)
        except errors.InvalidSqlStatementName:
            # Left to itself the server plans anew each time, as long as it hopes for a better plan.
            cursor.execute("SET plan_cache_mode = force_generic_plan")
            cursor.execute(self._prepare)
            cursor.execute(execute, values)


def numbers(values: Iterable[int]) -> str:
    """An array as one literal: the server reads it several times faster than an ARRAY[...] of as many constants.

    >>> numbers([1, 2])
    '{1,2}'
    """
    return f"{{{','.join(map(str, values))}}}"


def texts(values: Iterable[str]) -> str:
    r"""An array of texts as one literal.

    >>> print(texts(["a", 'q"', "\\", ""]))
    {"a","q\"","\\",""}
    """
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(quoted) + '"}' if quoted else "{}"
