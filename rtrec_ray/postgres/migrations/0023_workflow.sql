CREATE TABLE meta.workflow_definitions (
    digest text PRIMARY KEY,
    workflow text NOT NULL,
    version int NOT NULL,
    source text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (workflow, version)
);
COMMENT ON TABLE meta.workflow_definitions IS 'Every workflow that was ever applied, by the hash of its content.';
COMMENT ON COLUMN meta.workflow_definitions.digest IS 'Hash of the content.';
COMMENT ON COLUMN meta.workflow_definitions.workflow IS 'Its name.';
COMMENT ON COLUMN meta.workflow_definitions.version IS 'Rises by one with each new content of this name.';
COMMENT ON COLUMN meta.workflow_definitions.source IS 'The content as a workflow.yaml.';
COMMENT ON COLUMN meta.workflow_definitions.applied_at IS 'When it was first applied.';

CREATE TABLE meta.workflows (
    name text PRIMARY KEY,
    digest text NOT NULL REFERENCES meta.workflow_definitions (digest),
    state jsonb NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.workflows IS 'The workflows that the scheduler goes by.';
COMMENT ON COLUMN meta.workflows.name IS 'The workflow''s name, the namespace of its events.';
COMMENT ON COLUMN meta.workflows.digest IS 'The definition in force.';
COMMENT ON COLUMN meta.workflows.state IS 'Active, paused, the last place in the line of starts.';

CREATE TABLE meta.workflow_rules (
    workflow text NOT NULL,
    rule text NOT NULL,
    state jsonb NOT NULL,
    PRIMARY KEY (workflow, rule)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.workflow_rules IS 'What each rule has seen; moved in one transaction with the position.';
COMMENT ON COLUMN meta.workflow_rules.workflow IS 'The workflow.';
COMMENT ON COLUMN meta.workflow_rules.rule IS 'The rule''s name.';
COMMENT ON COLUMN meta.workflow_rules.state IS 'State of its condition, its last meeting and what came of it.';

CREATE TABLE meta.workflow_nodes (
    workflow text NOT NULL,
    node text NOT NULL,
    state jsonb NOT NULL,
    PRIMARY KEY (workflow, node)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.workflow_nodes IS 'How each node stands; moved in one transaction with the position.';
COMMENT ON COLUMN meta.workflow_nodes.workflow IS 'The workflow.';
COMMENT ON COLUMN meta.workflow_nodes.node IS 'The node''s name.';
COMMENT ON COLUMN meta.workflow_nodes.state IS 'State, current run, retries used, starts that wait.';

CREATE TABLE meta.workflow_position (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    event_offset bigint NOT NULL,
    time_ms bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.workflow_position IS 'How far the scheduler has come.';
COMMENT ON COLUMN meta.workflow_position.one IS 'There is one scheduler.';
COMMENT ON COLUMN meta.workflow_position.event_offset IS 'Every event up to this offset was acted on.';
COMMENT ON COLUMN meta.workflow_position.time_ms IS 'The last time that rules were told, ms UTC of the system''s clock.';

CREATE TABLE meta.workflow_runs (
    run_id text PRIMARY KEY,
    workflow text NOT NULL,
    node text NOT NULL,
    command jsonb NOT NULL,
    attempt int NOT NULL,
    heartbeat_ms bigint,
    state text NOT NULL DEFAULT 'ordered' CHECK (state IN ('ordered', 'running', 'succeeded', 'failed', 'stopped')),
    stop_requested boolean NOT NULL DEFAULT false,
    owner text,
    reason text NOT NULL DEFAULT '',
    ordered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    beat_at timestamptz,
    ended_at timestamptz
) WITH (fillfactor = 50);
CREATE INDEX workflow_runs_going ON meta.workflow_runs (ordered_at) WHERE state IN ('ordered', 'running');
CREATE INDEX workflow_runs_by_node ON meta.workflow_runs (workflow, node, ordered_at);
COMMENT ON TABLE meta.workflow_runs IS 'One run of a node each. A job claims its row before it works; each change of state sends its event.';
COMMENT ON COLUMN meta.workflow_runs.run_id IS 'The id of the order that began it: workflow.node.number; the job''s submission id.';
COMMENT ON COLUMN meta.workflow_runs.workflow IS 'The workflow.';
COMMENT ON COLUMN meta.workflow_runs.node IS 'The node.';
COMMENT ON COLUMN meta.workflow_runs.command IS 'The words of the command.';
COMMENT ON COLUMN meta.workflow_runs.attempt IS 'Retries used so far: 0 for the first.';
COMMENT ON COLUMN meta.workflow_runs.heartbeat_ms IS 'Silent for longer than this, it is stopped; null is no limit.';
COMMENT ON COLUMN meta.workflow_runs.state IS 'ordered, running (claimed), succeeded, failed, stopped.';
COMMENT ON COLUMN meta.workflow_runs.stop_requested IS 'The job is to end.';
COMMENT ON COLUMN meta.workflow_runs.owner IS 'The job that claimed it.';
COMMENT ON COLUMN meta.workflow_runs.reason IS 'Why it ended so.';
COMMENT ON COLUMN meta.workflow_runs.ordered_at IS 'When it was ordered.';
COMMENT ON COLUMN meta.workflow_runs.started_at IS 'When it was claimed.';
COMMENT ON COLUMN meta.workflow_runs.beat_at IS 'When the job last said that it lives.';
COMMENT ON COLUMN meta.workflow_runs.ended_at IS 'When it ended.';

CREATE TABLE meta.workflow_orders (
    order_id text PRIMARY KEY,
    do_what text NOT NULL CHECK (do_what IN ('start', 'stop')),
    run_id text NOT NULL REFERENCES meta.workflow_runs (run_id),
    reason text NOT NULL,
    cause jsonb NOT NULL,
    given_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    carried_at timestamptz
) WITH (fillfactor = 70);
CREATE INDEX workflow_orders_open ON meta.workflow_orders (given_at) WHERE carried_at IS NULL;
COMMENT ON TABLE meta.workflow_orders IS 'What the scheduler decided, exactly once each.';
COMMENT ON COLUMN meta.workflow_orders.order_id IS 'Follows from the state it was decided in: of a start the run''s id, of a stop that with .stop.';
COMMENT ON COLUMN meta.workflow_orders.do_what IS 'start or stop.';
COMMENT ON COLUMN meta.workflow_orders.run_id IS 'The run that is started or stopped.';
COMMENT ON COLUMN meta.workflow_orders.reason IS 'Of a stop: request, restart, timeout, heartbeat.';
COMMENT ON COLUMN meta.workflow_orders.cause IS 'The rule and the offsets of the events that met it, or a request.';
COMMENT ON COLUMN meta.workflow_orders.given_at IS 'When it was decided.';
COMMENT ON COLUMN meta.workflow_orders.carried_at IS 'When the job server had taken it; null until then.';
