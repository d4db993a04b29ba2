"""What a task does with one partition's records between two commits: the port that every stage fills."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rtrec_ray.kafka.base import RecordBatch
from rtrec_ray.postgres.connection import Cursor


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchOutcome:
    """What became of a batch. `max_ts_ms`: the largest event time among the accepted records, None when there were
    none.

    `counts`: outcome → records, with `in` for all that came.
    """

    max_ts_ms: int | None = None
    counts: Mapping[str, int] = field(default_factory=dict)


class Operator(Protocol):
    """One partition of one task. It keeps nothing that `restore` cannot rebuild: a failed commit throws it away."""

    @property
    def topics(self) -> tuple[str, ...]:
        """Read in this partition."""
        ...

    @property
    def timed(self) -> tuple[str, ...]:
        """Of these topics, those whose records say when something happened: the watermark is the minimum over them.

        A version of a profile or an item says since when something holds, which may be long ago.
        """
        ...

    @property
    def preload(self) -> tuple[str, ...]:
        """Of these topics, drained to the log's end before a record of the others is taken."""
        ...

    def restore(self, cursor: Cursor, *, committed: Mapping[str, int]) -> Mapping[str, int]:
        """Load the committed state; `committed`: topic → first offset not yet applied. Answers where to read from."""
        ...

    def apply(self, batch: RecordBatch) -> BatchOutcome:
        """Take records of one topic, in offset order. Those below `committed` only rebuild state: no counts."""
        ...

    def advance(self, *, watermark_ms: int) -> Mapping[str, int]:
        """Event time has come to `watermark_ms` (never less than before). Answers counts."""
        ...

    def rest(self) -> bool:
        """Nothing ever came, and nothing is on its way. Answers whether that is to be committed."""
        ...

    def pending_rows(self) -> int:
        """Rows waiting for a commit: beyond a bound the task commits early."""
        ...

    def open_rows(self) -> int:
        """Rows in memory that wait for event time: beyond a bound the task stops reading the topics that are ahead."""
        ...

    @staticmethod
    def prepare(operators: Sequence[Any]) -> None:
        """Before a commit, and outside its transaction: what takes long, of all operators that are to `write`, which
        are of one task.
        """
        ...

    def write(self, cursor: Cursor) -> Mapping[str, int]:
        """Write the outputs since the last commit in the open transaction. Answers counts."""
        ...

    def look(self, cursor: Cursor) -> bool:
        """Whether the store asks for a commit, though no record does. Asked now and then while nothing is committed."""
        ...

    def committed(self) -> None:
        """The transaction is durable: forget what it wrote."""
        ...
