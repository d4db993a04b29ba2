-- A day's partition holds the samples of that day's requests. An impression that came after midnight (or, by a client's
-- clock, before it) lies in its request's partition: this index, nearly empty, finds such samples by their own time.
CREATE INDEX revisions_of_other_days ON samples.revisions (event_time_ms)
    WHERE event_time_ms / 86400000 <> event_day - DATE '1970-01-01';

CREATE TABLE samples.retention (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    kept_from_ms bigint,
    partitions bigint NOT NULL DEFAULT 0,
    misses bigint NOT NULL DEFAULT 0,
    held_by text NOT NULL DEFAULT '',
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE samples.retention IS 'What retention has removed from schema samples so far: one row.';
COMMENT ON COLUMN samples.retention.single IS 'There is one row.';
COMMENT ON COLUMN samples.retention.kept_from_ms IS 'Samples of requests before that day may be gone, ms UTC.';
COMMENT ON COLUMN samples.retention.partitions IS 'Partitions of a day that were dropped, over all tables.';
COMMENT ON COLUMN samples.retention.misses IS 'Rows removed from samples.misses.';
COMMENT ON COLUMN samples.retention.held_by IS 'Why days beyond retention are still there: a training run, readers; empty: none are.';
COMMENT ON COLUMN samples.retention.looked_at IS 'When retention last looked, by this server''s clock.';

-- Misses are removed by their time.
CREATE INDEX misses_by_time ON samples.misses USING brin (event_time_ms);

-- Whoever reads the ledger by its numbers and will go on from where it is. A base run reads all that there is; one that
-- gave no sign of life for an hour is dead.
CREATE FUNCTION samples.readers() RETURNS TABLE (name text, commit_seq bigint) LANGUAGE sql STABLE AS $$
    SELECT run, r.commit_seq FROM meta.training_runs r WHERE run <> 'base' AND r.commit_seq IS NOT NULL AND state <> 'failed'
    UNION ALL
    SELECT run, 0 FROM meta.training_runs
    WHERE run = 'base' AND state IN ('starting', 'running') AND beat_at > clock_timestamp() - interval '1 hour';
$$;
COMMENT ON FUNCTION samples.readers IS 'Readers of the ledger with the last number each has taken in: retention keeps what comes after it.';
