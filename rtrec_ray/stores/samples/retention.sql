-- name: patience (a reader in an old day is waited for at the next look)
SET lock_timeout = '2s'; SET statement_timeout = '60s';

-- name: watermark (of the partition furthest behind; one that has not begun holds all)
SELECT min(watermark_ms) FROM meta.progress WHERE task = 'samples'
HAVING count(*) = count(watermark_ms);

-- name: list_tables (of one day each, attached or left behind by a look that did not come to its end)
SELECT p.relname, c.relname, to_date(right(c.relname, 8), 'YYYYMMDD'),
       CASE WHEN i.inhrelid IS NULL THEN 'detached' WHEN i.inhdetachpending THEN 'pending' ELSE 'attached' END
FROM pg_class p
JOIN pg_partitioned_table t ON t.partrelid = p.oid
JOIN pg_class c ON c.relnamespace = p.relnamespace AND c.relkind = 'r' AND c.relname ~ ('^' || p.relname || '_[0-9]{8}$')
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = p.oid
WHERE p.relnamespace = 'samples'::regnamespace
-- Revisions go first: a sample is never there without its request.
ORDER BY 3, p.relname <> 'revisions', p.relname;

-- name: shown_later (a request's item may be shown long after)
SELECT EXISTS (SELECT FROM samples.{table} WHERE event_time_ms >= %(bound_ms)s);

-- name: still_needed (the reader furthest behind, if the day has what it has not read)
SELECT name FROM samples.readers() WHERE commit_seq < (SELECT max(commit_seq) FROM samples.{table})
ORDER BY commit_seq, name LIMIT 1;

-- name: detach
ALTER TABLE samples.{parent} DETACH PARTITION samples.{table} CONCURRENTLY;

-- name: finalize
ALTER TABLE samples.{parent} DETACH PARTITION samples.{table} FINALIZE;

-- name: drop
DROP TABLE samples.{table};

-- name: drop_misses
DELETE FROM samples.misses
WHERE ctid = ANY (ARRAY(SELECT ctid FROM samples.misses WHERE event_time_ms < %(bound_ms)s LIMIT %(most)s));

-- name: drop_actions (those on samples that are gone; one that is held has a time of its own)
DELETE FROM samples.actions WHERE ctid = ANY (
    ARRAY(SELECT ctid FROM samples.actions WHERE action_ms < %(bound_ms)s AND NOT held LIMIT %(most)s)
);

-- name: drop_backfilled
DELETE FROM samples.backfilled WHERE ctid = ANY (
    ARRAY(SELECT ctid FROM samples.backfilled
          WHERE event_day < (to_timestamp(%(bound_ms)s / 1000) AT TIME ZONE 'UTC')::date LIMIT %(most)s)
);

-- name: put_retention
INSERT INTO samples.retention AS r (kept_from_ms, partitions, misses, held_by)
VALUES (%(kept_from_ms)s, %(partitions)s, %(misses)s, %(held_by)s)
ON CONFLICT (single) DO UPDATE
SET kept_from_ms = greatest(r.kept_from_ms, EXCLUDED.kept_from_ms), partitions = r.partitions + EXCLUDED.partitions,
    misses = r.misses + EXCLUDED.misses, held_by = EXCLUDED.held_by, looked_at = clock_timestamp();

-- name: read_retention
SELECT kept_from_ms, partitions, misses, held_by FROM samples.retention;
