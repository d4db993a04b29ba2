"""The book of training runs: what each does now, how well its model foresees samples, and the wish to stop.

Status, the supervisor and the report read it; only the run itself writes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

from rtrec_ray.errors import LeaseLost
from rtrec_ray.postgres.connection import Pool, PostgresOptions
from rtrec_ray.postgres.statements import load

__all__ = [
    "Beat",
    "MemoryTrainingBook",
    "PostgresTrainingBook",
    "ProgressPoint",
    "RunState",
    "TrainingBook",
    "TrainingRun",
]

RunState = Literal["starting", "waiting", "running", "stopped", "finished", "failed"]
_ALIVE = ("starting", "waiting", "running")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """A sign of life. `commit_seq`, `event_time_ms`: of the newest sample taken in; `lag_rows`: samples still ahead.

    `lsn`: where the last stored version stands in the write-ahead log; `followed_by`: stream or scan; `fallbacks`:
    times that its slot was lost, `fallback_reason`: why the last time, or why there is no stream.
    """

    state: RunState
    commit_seq: int | None = None
    event_time_ms: int | None = None
    lag_rows: int | None = None
    rows_trained: int = 0
    version: str | None = None
    base_version: str | None = None
    mlflow_run: str | None = None
    message: str = ""
    lsn: int | None = None
    followed_by: str | None = None
    fallbacks: int = 0
    fallback_reason: str = ""


_BEATEN = len(Beat.__slots__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """A run as last heard of. `age_ms`: wall time since its last beat; `up`: whether that is recent and it goes on."""

    run: str
    epoch: int
    beat: Beat
    up: bool = True
    age_ms: int = 0
    stop_requested: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressPoint:
    """Scores given before training, since the point before: `rows` samples with `positives` clicks.

    `log_loss`: mean over them, nats; `auc` and `calibration` over the last rows scored, None without clicks. `base_…`:
    the same rows by the base model, which stands still. `at_ms`: wall time, given by the store.
    """

    commit_seq: int
    event_time_ms: int
    rows: int
    positives: int
    log_loss: float | None
    base_log_loss: float | None
    auc: float | None
    base_auc: float | None
    calibration: float | None
    base_calibration: float | None
    lag_rows: int
    base_version: str
    at_ms: int = 0


class TrainingBook(Protocol):
    """Every method raises StoreUnavailable."""

    def open(self, run: str) -> int:
        """Begin the run anew and answer its epoch; the run's older workers stop at their next beat."""
        ...

    def beat(self, run: str, epoch: int, beat: Beat) -> bool:
        """Write a sign of life; answers whether the run should stop. Raises LeaseLost when a newer start took over."""
        ...

    def request_stop(self, run: str) -> bool:
        """Ask the run to end with a last version; False when it does not go on anyway."""
        ...

    def runs(self) -> Mapping[str, TrainingRun]:
        """Every run by name."""
        ...

    def put(self, run: str, point: ProgressPoint) -> None:
        """Append a point."""
        ...

    def progress(self, run: str) -> list[ProgressPoint]:
        """All points of a run, oldest first."""
        ...

    def close(self) -> None:
        """Give back connections."""
        ...


class PostgresTrainingBook:
    """The book in meta.training_runs and meta.training_progress."""

    def __init__(self, options: PostgresOptions) -> None:
        self._pool = Pool(options, size=2, application="rtrec-training")
        self._sql = load("rtrec_ray.stores", "training.sql")

    def open(self, run: str) -> int:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["open_run"], {"run": run})
            row = cursor.fetchone()
        assert row is not None
        return int(row[0])

    def beat(self, run: str, epoch: int, beat: Beat) -> bool:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["beat"], {"run": run, "epoch": epoch, **asdict(beat)})
            row = cursor.fetchone()
        if row is None:
            raise LeaseLost(f"training run {run}, start {epoch}, was taken over by a newer one")
        return bool(row[0])

    def request_stop(self, run: str) -> bool:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["request_stop"], {"run": run})
            return cursor.fetchone() is not None

    def runs(self) -> Mapping[str, TrainingRun]:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["read_runs"])
            rows = cursor.fetchall()
        return {
            run: TrainingRun(
                run=run,
                epoch=epoch,
                beat=Beat(**dict(zip(Beat.__slots__, values[:_BEATEN], strict=True))),
                stop_requested=values[_BEATEN],
                up=values[_BEATEN + 1],
                age_ms=values[_BEATEN + 2],
            )
            for run, epoch, *values in rows
        }

    def put(self, run: str, point: ProgressPoint) -> None:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["put_progress"], {"run": run, **asdict(point)})

    def progress(self, run: str) -> list[ProgressPoint]:
        """See TrainingBook."""
        with self._pool.transaction() as cursor:
            cursor.execute(self._sql["read_progress"], {"run": run})
            return [
                ProgressPoint(at_ms=at_ms, **dict(zip(ProgressPoint.__slots__, values, strict=False)))
                for at_ms, *values in cursor.fetchall()
            ]

    def close(self) -> None:
        """See TrainingBook."""
        self._pool.close()


@dataclass(slots=True)
class MemoryTrainingBook:
    """The book in memory: the twin for tests."""

    _runs: dict[str, TrainingRun] = field(default_factory=dict)
    _points: dict[str, list[ProgressPoint]] = field(default_factory=dict)

    def open(self, run: str) -> int:
        """See TrainingBook."""
        epoch = self._runs[run].epoch + 1 if run in self._runs else 1
        self._runs[run] = TrainingRun(run=run, epoch=epoch, beat=Beat(state="starting"))
        return epoch

    def beat(self, run: str, epoch: int, beat: Beat) -> bool:
        """See TrainingBook."""
        known = self._runs.get(run)
        if known is None or known.epoch != epoch:
            raise LeaseLost(f"training run {run}, start {epoch}, was taken over by a newer one")
        self._runs[run] = TrainingRun(
            run=run, epoch=epoch, beat=beat, up=beat.state in _ALIVE, stop_requested=known.stop_requested
        )
        return known.stop_requested

    def request_stop(self, run: str) -> bool:
        """See TrainingBook."""
        known = self._runs.get(run)
        if known is None or not known.up:
            return False
        self._runs[run] = TrainingRun(run=run, epoch=known.epoch, beat=known.beat, stop_requested=True)
        return True

    def runs(self) -> Mapping[str, TrainingRun]:
        """See TrainingBook."""
        return dict(self._runs)

    def put(self, run: str, point: ProgressPoint) -> None:
        """See TrainingBook."""
        self._points.setdefault(run, []).append(point)

    def progress(self, run: str) -> list[ProgressPoint]:
        """See TrainingBook."""
        return list(self._points.get(run, ()))

    def close(self) -> None:
        """See TrainingBook."""
