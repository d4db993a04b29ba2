-- name: send (after the offsets were taken, so that senders of one key queue behind the counter and cannot deadlock)
WITH given AS MATERIALIZED (
    SELECT n, namespace, key, value, type, sender, context,
           row_number() OVER (PARTITION BY namespace, key ORDER BY n) AS place,
           count(*) OVER (PARTITION BY namespace, key) AS places
    FROM unnest(%(namespace)s::text[], %(key)s::text[], %(value)s::text[], %(type)s::text[], %(sender)s::text[],
                %(context)s::text[]) WITH ORDINALITY AS g(namespace, key, value, type, sender, context, n)
), numbered AS (
    INSERT INTO meta.event_versions AS v (namespace, key, version)
    SELECT namespace, key, places FROM given WHERE place = 1
    ON CONFLICT (namespace, key) DO UPDATE SET version = v.version + EXCLUDED.version
    RETURNING namespace, key, version
), sent AS (
    INSERT INTO meta.events (event_offset, namespace, key, version, value, type, sender, time_ms, context)
    SELECT %(first)s + n - 1, namespace, key, version - places + place, value, type, sender, %(time_ms)s, context::jsonb
    FROM given JOIN numbered USING (namespace, key)
    ORDER BY n
    RETURNING event_offset, version
), told AS (
    SELECT pg_notify('rtrec_events', '')
)
SELECT event_offset, version FROM sent, told ORDER BY event_offset;

-- name: list_after
SELECT event_offset, key, value, type, namespace, sender, version, time_ms, context
FROM meta.events
WHERE event_offset > %(after_offset)s
  AND (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
  AND (%(sender)s::text IS NULL OR sender = %(sender)s)
  AND (%(version)s::bigint IS NULL OR version = %(version)s)
  AND (%(after_version)s::bigint IS NULL OR version > %(after_version)s)
  AND (%(from_ms)s::bigint IS NULL OR time_ms >= %(from_ms)s)
  AND (%(to_ms)s::bigint IS NULL OR time_ms < %(to_ms)s)
ORDER BY event_offset LIMIT %(limit)s;

-- name: list_newest (newest first)
SELECT event_offset, key, value, type, namespace, sender, version, time_ms, context
FROM meta.events
WHERE (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
  AND (%(sender)s::text IS NULL OR sender = %(sender)s)
  AND (%(version)s::bigint IS NULL OR version = %(version)s)
  AND (%(after_version)s::bigint IS NULL OR version > %(after_version)s)
  AND (%(from_ms)s::bigint IS NULL OR time_ms >= %(from_ms)s)
  AND (%(to_ms)s::bigint IS NULL OR time_ms < %(to_ms)s)
ORDER BY event_offset DESC LIMIT %(limit)s;

-- name: end_offset (the counter, since the last events may have been trimmed)
SELECT coalesce((SELECT value FROM meta.counters WHERE name = 'events'), 0);

-- name: listen
LISTEN rtrec_events;

-- name: cursor (a new one holds up trimming before it acknowledges anything)
INSERT INTO meta.event_cursors (name, acked_offset) VALUES (%(name)s, 0)
ON CONFLICT (name) DO UPDATE SET acked_at = clock_timestamp()
RETURNING acked_offset;

-- name: ack
INSERT INTO meta.event_cursors (name, acked_offset) VALUES (%(name)s, %(offset)s)
ON CONFLICT (name) DO UPDATE
SET acked_offset = greatest(meta.event_cursors.acked_offset, EXCLUDED.acked_offset), acked_at = clock_timestamp();

-- name: trim_limit (the last offset that may go; the first young event is near the log's start, so the walk is short)
SELECT least(
    greatest(
        CASE WHEN %(before_ms)s::bigint IS NULL THEN 0 ELSE coalesce(
            (SELECT event_offset - 1 FROM meta.events WHERE time_ms >= %(before_ms)s ORDER BY event_offset LIMIT 1),
            %(end)s) END,
        CASE WHEN %(keep_events)s::bigint IS NULL THEN 0 ELSE %(end)s - %(keep_events)s END),
    (SELECT min(acked_offset) FROM meta.event_cursors
     WHERE acked_at > clock_timestamp() - %(cursor_alive_ms)s * interval '1 ms'),
    -- The scheduler of workflows runs wherever this does, and keeps its place with its decisions.
    (SELECT event_offset FROM meta.workflow_position));

-- name: trim (a part at a time, so that no transaction is long)
DELETE FROM meta.events WHERE event_offset IN
    (SELECT event_offset FROM meta.events WHERE event_offset <= %(limit)s ORDER BY event_offset LIMIT %(part)s);
