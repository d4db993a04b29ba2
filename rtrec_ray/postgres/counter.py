"""Numbers that appear in commit order.

A sequence hands out 5 and 6 to two transactions and lets 6 be read before 5: a reader with a cursor loses 5. A counter
row stays locked until its transaction ends, so who reads number n knows that every smaller number is there.
"""

from __future__ import annotations

from rtrec_ray.postgres.connection import Cursor
from rtrec_ray.postgres.statements import load


def take(cursor: Cursor, name: str, count: int = 1) -> int:
    """Take `count` consecutive numbers; answers the first. Others wait for this transaction's end: take them late."""
    cursor.execute(load(__package__, "core.sql")["take_numbers"], {"name": name, "count": count})
    row = cursor.fetchone()
    assert row is not None
    return int(row[0])
