-- name: put_definition
INSERT INTO meta.workflow_definitions (digest, workflow, version, source)
SELECT %(digest)s, %(workflow)s, coalesce(max(version), 0) + 1, %(source)s
FROM meta.workflow_definitions WHERE workflow = %(workflow)s
ON CONFLICT (digest) DO NOTHING;

-- name: lock_definitions (so that two versions at once get two numbers)
LOCK TABLE meta.workflow_definitions IN SHARE ROW EXCLUSIVE MODE;

-- name: is_known (whether something was ever applied under this name)
SELECT EXISTS (SELECT 1 FROM meta.workflow_definitions WHERE workflow = %(workflow)s);

-- name: version
SELECT version FROM meta.workflow_definitions WHERE digest = %(digest)s;

-- name: definition
SELECT source FROM meta.workflow_definitions WHERE digest = %(digest)s;

-- name: read_position
SELECT event_offset, time_ms FROM meta.workflow_position;

-- name: read_workflows
SELECT w.name, d.source, w.state FROM meta.workflows w JOIN meta.workflow_definitions d USING (digest) ORDER BY w.name;

-- name: read_rules
SELECT workflow, rule, state FROM meta.workflow_rules;

-- name: read_nodes
SELECT workflow, node, state FROM meta.workflow_nodes;

-- name: put_position
INSERT INTO meta.workflow_position (event_offset, time_ms) VALUES (%(position)s, %(time_ms)s)
ON CONFLICT (one) DO UPDATE SET event_offset = EXCLUDED.event_offset, time_ms = EXCLUDED.time_ms;

-- name: put_workflow
INSERT INTO meta.workflows (name, digest, state) VALUES (%(name)s, %(digest)s, %(state)s)
ON CONFLICT (name) DO UPDATE SET digest = EXCLUDED.digest, state = EXCLUDED.state;

-- name: drop_workflow
DELETE FROM meta.workflows WHERE name = %(name)s;

-- name: put_rules
INSERT INTO meta.workflow_rules (workflow, rule, state) VALUES %s
ON CONFLICT (workflow, rule) DO UPDATE SET state = EXCLUDED.state;

-- name: put_nodes
INSERT INTO meta.workflow_nodes (workflow, node, state) VALUES %s
ON CONFLICT (workflow, node) DO UPDATE SET state = EXCLUDED.state;

-- name: drop_rule
DELETE FROM meta.workflow_rules WHERE workflow = %(workflow)s AND rule = %(name)s;

-- name: drop_node
DELETE FROM meta.workflow_nodes WHERE workflow = %(workflow)s AND node = %(name)s;

-- name: put_runs
INSERT INTO meta.workflow_runs (run_id, workflow, node, command, kind, attempt, heartbeat_ms) VALUES %s;

-- name: put_orders (no ON CONFLICT: an id that comes twice is a fault of the scheduler, and must not commit)
INSERT INTO meta.workflow_orders (order_id, do_what, run_id, reason, cause) VALUES %s;

-- name: open_orders
SELECT o.order_id, o.do_what, r.workflow, r.node, o.run_id, r.attempt, o.reason, o.cause, r.command, r.kind,
       r.heartbeat_ms
FROM meta.workflow_orders o JOIN meta.workflow_runs r USING (run_id)
WHERE o.carried_at IS NULL ORDER BY o.given_at, o.order_id LIMIT %(limit)s;

-- name: carried
UPDATE meta.workflow_orders SET carried_at = clock_timestamp() WHERE order_id = %(order_id)s AND carried_at IS NULL;

-- name: claim
UPDATE meta.workflow_runs
SET state = 'running', owner = %(owner)s, started_at = clock_timestamp(), beat_at = clock_timestamp()
WHERE run_id = %(run_id)s AND state = 'ordered'
RETURNING workflow, node, command;

-- name: claimed (by the same job, which did not hear that its first try was committed)
SELECT workflow, node, command FROM meta.workflow_runs
WHERE run_id = %(run_id)s AND owner = %(owner)s AND state = 'running';

-- name: beat
UPDATE meta.workflow_runs SET beat_at = clock_timestamp()
WHERE run_id = %(run_id)s AND owner = %(owner)s AND state = 'running'
RETURNING NOT stop_requested;

-- name: request_stop
UPDATE meta.workflow_runs SET stop_requested = true WHERE run_id = %(run_id)s AND state = 'running';

-- name: finish
UPDATE meta.workflow_runs SET state = %(state)s, reason = %(reason)s, ended_at = clock_timestamp()
WHERE run_id = %(run_id)s AND state = ANY(%(from_states)s) AND (%(owner)s::text IS NULL OR owner = %(owner)s)
RETURNING workflow, node;

-- name: runs_going
SELECT run_id, workflow, node, kind, state, stop_requested, owner, reason, attempt, heartbeat_ms,
       extract(epoch FROM clock_timestamp() - coalesce(beat_at, ordered_at)) * 1000
FROM meta.workflow_runs WHERE state IN ('ordered', 'running') ORDER BY ordered_at, run_id;

-- name: runs_of_node
SELECT run_id, workflow, node, kind, state, stop_requested, owner, reason, attempt, heartbeat_ms,
       extract(epoch FROM clock_timestamp() - coalesce(beat_at, ordered_at)) * 1000
FROM meta.workflow_runs WHERE workflow = %(workflow)s AND node = %(node)s
ORDER BY ordered_at DESC, run_id DESC LIMIT %(limit)s;
