ALTER TABLE meta.workflow_runs ADD COLUMN kind text NOT NULL DEFAULT 'batch' CHECK (kind IN ('batch', 'endless'));
ALTER TABLE meta.workflow_runs ALTER COLUMN kind DROP DEFAULT;
COMMENT ON COLUMN meta.workflow_runs.kind IS 'batch: it ends by itself; endless: it does not. Runs from before this column count as batch.';

CREATE FUNCTION meta.event_ms(wall timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT round(coalesce(clock.origin_event_ms + (at.wall_ms - clock.origin_wall_ms) * clock.speed, at.wall_ms))::bigint
    FROM (SELECT extract(epoch FROM wall) * 1000 AS wall_ms) AS at LEFT JOIN meta.clock ON true
$$;
COMMENT ON FUNCTION meta.event_ms IS 'A time of the machine by the system''s clock, ms UTC; itself where no clock was fixed yet.';

CREATE VIEW meta.every_run AS
SELECT run_id, job, kind, started_ms, state, ended_ms, context, snapshot FROM meta.runs
UNION ALL
SELECT run_id, workflow || '/' || node, kind, meta.event_ms(coalesce(started_at, ordered_at)), state, meta.event_ms(ended_at),
       jsonb_strip_nulls(jsonb_build_object('command', command, 'attempt', attempt, 'reason', nullif(reason, ''))), NULL
FROM meta.workflow_runs;
COMMENT ON VIEW meta.every_run IS 'Runs of jobs as the jobs wrote them down, and runs of the nodes of workflows, which are the scheduler''s.';
COMMENT ON COLUMN meta.every_run.run_id IS 'As in meta.runs or meta.workflow_runs.';
COMMENT ON COLUMN meta.every_run.job IS 'The job; of a node WORKFLOW/NODE.';
COMMENT ON COLUMN meta.every_run.kind IS 'batch or endless.';
COMMENT ON COLUMN meta.every_run.started_ms IS 'When it began by the system''s clock, ms UTC; while it is ordered, when it was.';
COMMENT ON COLUMN meta.every_run.state IS 'ordered (of a node: nobody works on it yet), running, succeeded, failed or stopped.';
COMMENT ON COLUMN meta.every_run.ended_ms IS 'When it ended, ms UTC; null while it runs.';
COMMENT ON COLUMN meta.every_run.context IS 'As in meta.runs; of a node its command, the retries used before, and why it ended so.';
COMMENT ON COLUMN meta.every_run.snapshot IS 'As in meta.runs; null of a node: the run of the job it worked on has it.';
