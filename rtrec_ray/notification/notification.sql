-- name: send (after the offset was taken, so that senders of one key queue behind the counter and cannot deadlock)
WITH numbered AS (
    INSERT INTO meta.event_versions (namespace, key, version) VALUES (%(namespace)s, %(key)s, 1)
    ON CONFLICT (namespace, key) DO UPDATE SET version = meta.event_versions.version + 1
    RETURNING version
), sent AS (
    INSERT INTO meta.events (event_offset, namespace, key, version, value, type, sender, time_ms, context)
    SELECT %(offset)s, %(namespace)s, %(key)s, version, %(value)s, %(type)s, %(sender)s, %(time_ms)s, %(context)s
    FROM numbered
    RETURNING version
)
SELECT version, pg_notify('rtrec_events', '') FROM sent;

-- name: list_after
SELECT event_offset, key, value, type, namespace, sender, version, time_ms, context
FROM meta.events
WHERE event_offset > %(after_offset)s
  AND (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
  AND (%(sender)s::text IS NULL OR sender = %(sender)s)
ORDER BY event_offset LIMIT %(limit)s;

-- name: list_newest (newest first)
SELECT event_offset, key, value, type, namespace, sender, version, time_ms, context
FROM meta.events
WHERE (%(key)s::text IS NULL OR key = %(key)s)
  AND (%(type)s::text IS NULL OR type = %(type)s)
  AND (%(namespace)s::text IS NULL OR namespace = %(namespace)s)
  AND (%(sender)s::text IS NULL OR sender = %(sender)s)
ORDER BY event_offset DESC LIMIT %(limit)s;

-- name: end_offset
SELECT coalesce(max(event_offset), 0) FROM meta.events;

-- name: listen
LISTEN rtrec_events;

-- name: cursor
SELECT acked_offset FROM meta.event_cursors WHERE name = %(name)s;

-- name: ack
INSERT INTO meta.event_cursors (name, acked_offset) VALUES (%(name)s, %(offset)s)
ON CONFLICT (name) DO UPDATE
SET acked_offset = greatest(meta.event_cursors.acked_offset, EXCLUDED.acked_offset), acked_at = clock_timestamp();
