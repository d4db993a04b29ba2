"""Workflows in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import orjson
from psycopg2.extras import execute_values

from rtrec_ray.postgres import lease
from rtrec_ray.postgres.connection import Connection, Cursor, Pool, PostgresOptions, connect, transaction
from rtrec_ray.postgres.lease import Lease
from rtrec_ray.postgres.statements import load
from rtrec_ray.stores.workflow.memory import applying, raise_faults, told
from rtrec_ray.stores.workflow.store import Also, Claim, End, Loaded, Run, Send
from rtrec_ray.workflow.definition import Workflow
from rtrec_ray.workflow.events import Announcement
from rtrec_ray.workflow.file import parse_workflow
from rtrec_ray.workflow.nodes import Cause, NodeState, Order
from rtrec_ray.workflow.rules import RuleState
from rtrec_ray.workflow.state import Changes, Saved, WorkflowState
from rtrec_ray.workflow.text import to_text

TASK = "workflow"

_T = TypeVar("_T")
_QUERIES = "rtrec_ray.stores.workflow"


class PostgresWorkflowStore:
    """A WorkflowStore on schema meta. `send`: appends an event in a transaction of this database."""

    def __init__(self, options: PostgresOptions, send: Send) -> None:
        self._options = options
        self._send = send
        self._sql = load(_QUERIES, "workflow.sql")
        self._pool = Pool(options, size=2, application="rtrec-workflow")

    def apply(self, workflow: Workflow, /, *, also: Also | None = None) -> int:
        """See WorkflowStore."""
        raise_faults(workflow)
        row = {"digest": workflow.digest, "workflow": workflow.name, "source": to_text(workflow)}
        with self._pool.transaction() as cur:
            cur.execute(self._sql["lock_definitions"])
            cur.execute(self._sql["is_known"], row)
            (known,) = cur.fetchone() or (False,)
            cur.execute(self._sql["put_definition"], row)
            cur.execute(self._sql["version"], row)
            (version,) = cur.fetchone() or (0,)
            if also is not None:
                also(cur)
            self._send(cur, applying(workflow, first=not known))
        return int(version)

    def definition(self, digest: str, /) -> Workflow | None:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["definition"], {"digest": digest})
            row = cur.fetchone()
        return None if row is None else parse_workflow(row[0], source=f"definition {digest}")

    def request(self, what: Announcement, /, *, also: Also | None = None) -> None:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            if also is not None:
                also(cur)
            self._send(cur, what)

    def load(self) -> Loaded:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cur.execute(self._sql["read_position"])
            position, time_ms = cur.fetchone() or (0, 0)
            cur.execute(self._sql["read_workflows"])
            workflows = cur.fetchall()
            rules = self._states(cur, "read_rules", RuleState)
            nodes = self._states(cur, "read_nodes", NodeState)
        saved = {
            name: Saved(
                definition=parse_workflow(source, source=f"workflow {name}"),
                state=msgspec.convert(state, WorkflowState),
                rules=rules.get(name, {}),
                nodes=nodes.get(name, {}),
            )
            for name, source, state in workflows
        }
        return Loaded(position=position, time_ms=time_ms, workflows=saved)

    def open_session(self, *, owner: str, ttl_ms: int) -> PostgresSchedulerSession:
        """See WorkflowStore."""
        connection = connect(self._options, application=f"rtrec-{owner}", pipeline=True)
        try:
            held = lease.take(connection, task=TASK, partition=0, owner=owner, ttl_ms=ttl_ms)
        except BaseException:
            connection.close()
            raise
        return PostgresSchedulerSession(connection, held, self._send)

    def open_orders(self, *, limit: int = 1_000) -> tuple[Order, ...]:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["open_orders"], {"limit": limit})
            return tuple(map(_order, cur.fetchall()))

    def carried(self, order_id: str, /) -> None:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["carried"], {"order_id": order_id})

    def claim(self, run_id: str, /, *, owner: str) -> Claim | None:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["claim"], {"run_id": run_id, "owner": owner})
            row = cur.fetchone()
            if row is not None:
                self._send(cur, told(run_id, row[0], row[1], "running", ""))
            else:
                cur.execute(self._sql["claimed"], {"run_id": run_id, "owner": owner})
                row = cur.fetchone()
        return None if row is None else Claim(run_id=run_id, workflow=row[0], node=row[1], command=tuple(row[2]))

    def beat(self, run_id: str, /, *, owner: str) -> bool:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["beat"], {"run_id": run_id, "owner": owner})
            row = cur.fetchone()
        return row is not None and bool(row[0])

    def request_stop(self, run_id: str, /) -> None:
        """See WorkflowStore."""
        if not self._finish(run_id, "stopped", reason="stopped before it began", owner=None, from_states=["ordered"]):
            with self._pool.transaction() as cur:
                cur.execute(self._sql["request_stop"], {"run_id": run_id})

    def finish(self, run_id: str, state: End, /, *, reason: str = "", owner: str | None = None) -> bool:
        """See WorkflowStore."""
        return self._finish(run_id, state, reason=reason, owner=owner, from_states=["ordered", "running"])

    def runs_going(self) -> tuple[Run, ...]:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["runs_going"])
            return tuple(map(_run, cur.fetchall()))

    def runs_of(self, workflow: str, node: str, /, *, limit: int = 20) -> tuple[Run, ...]:
        """See WorkflowStore."""
        with self._pool.transaction() as cur:
            cur.execute(self._sql["runs_of_node"], {"workflow": workflow, "node": node, "limit": limit})
            return tuple(map(_run, cur.fetchall()))

    def close(self) -> None:
        """See WorkflowStore."""
        self._pool.close()

    def _finish(self, run_id: str, state: End, *, reason: str, owner: str | None, from_states: list[str]) -> bool:
        row = {"run_id": run_id, "state": state, "reason": reason, "owner": owner, "from_states": from_states}
        with self._pool.transaction() as cur:
            cur.execute(self._sql["finish"], row)
            found = cur.fetchone()
            if found is None:
                return False
            self._send(cur, told(run_id, found[0], found[1], state, reason))
        return True

    def _states(self, cur: Cursor, statement: str, kind: type[_T]) -> dict[str, dict[str, _T]]:
        cur.execute(self._sql[statement])
        found: dict[str, dict[str, _T]] = {}
        for workflow, name, state in cur.fetchall():
            found.setdefault(workflow, {})[name] = msgspec.convert(state, kind)
        return found


class PostgresSchedulerSession:
    """See SchedulerSession."""

    def __init__(self, connection: Connection, held: Lease, send: Send) -> None:
        self._connection, self._lease, self._send = connection, held, send
        self._sql = load(_QUERIES, "workflow.sql")

    def commit(self, changes: Changes, /) -> None:
        """See SchedulerSession."""
        with transaction(self._connection) as cur:
            lease.fence(cur, [self._lease])
            self._write(cur, changes)
            for each in changes.announcements:  # last: other senders wait from here on
                self._send(cur, each)

    def renew(self) -> None:
        """See SchedulerSession."""
        with transaction(self._connection) as cur:
            lease.fence(cur, [self._lease])

    def close(self) -> None:
        """See SchedulerSession."""
        try:
            if not self._connection.closed:
                lease.release(self._connection, [self._lease])
        finally:
            self._connection.close()

    def _write(self, cur: Cursor, changes: Changes) -> None:
        cur.execute(self._sql["put_position"], {"position": changes.position, "time_ms": changes.time_ms})
        for name, state in changes.workflows.items():
            if state is None:
                cur.execute(self._sql["drop_workflow"], {"name": name})
            else:
                cur.execute(self._sql["put_workflow"], {"name": name, "digest": state.digest, "state": _json(state)})
        self._put_states(cur, "rule", changes.rules)
        self._put_states(cur, "node", changes.nodes)
        starts = [order for order in changes.orders if order.do == "start"]
        self._put(
            cur,
            "put_runs",
            starts,
            lambda o: (o.run, o.workflow, o.node, _json(o.command), o.kind, o.attempt, o.heartbeat_ms),
        )
        self._put(cur, "put_orders", changes.orders, lambda o: (o.id, o.do, o.run, o.reason, _json(o.cause)))

    def _put_states(self, cur: Cursor, kind: str, states: Any) -> None:
        present = [(place, state) for place, state in states.items() if state is not None]
        self._put(cur, f"put_{kind}s", present, lambda each: (*each[0], _json(each[1])))
        for (workflow, name), state in states.items():
            if state is None:
                cur.execute(self._sql[f"drop_{kind}"], {"workflow": workflow, "name": name})

    def _put(self, cur: Cursor, statement: str, rows: Sequence[Any], values: Callable[[Any], tuple[Any, ...]]) -> None:
        if rows:
            execute_values(cur, self._sql[statement], [values(row) for row in rows], page_size=1_000)


def _json(value: Any) -> str:
    return orjson.dumps(msgspec.to_builtins(value)).decode()


def _order(row: tuple[Any, ...]) -> Order:
    order_id, do, workflow, node, run, attempt, reason, cause, command, kind, heartbeat_ms = row
    return Order(
        id=order_id,
        do=do,
        workflow=workflow,
        node=node,
        run=run,
        attempt=attempt,
        reason=reason,
        cause=msgspec.convert(cause, Cause),
        command=tuple(command),
        kind=kind,
        heartbeat_ms=heartbeat_ms,
    )


def _run(row: tuple[Any, ...]) -> Run:
    run_id, workflow, node, kind, state, stop_requested, owner, reason, attempt, heartbeat_ms, silent_ms = row
    return Run(
        run_id=run_id,
        workflow=workflow,
        node=node,
        kind=kind,
        state=state,
        stop_requested=stop_requested,
        owner=owner,
        reason=reason,
        attempt=attempt,
        heartbeat_ms=heartbeat_ms,
        silent_ms=float(silent_ms),
    )
