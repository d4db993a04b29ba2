-- name: list_days (what is to do of each day)
SELECT q.event_day, count(*) FILTER (WHERE b.request_id IS NULL), count(b.request_id)
FROM samples.requests q
LEFT JOIN samples.backfilled b ON b.request_id = q.request_id AND b.event_day = q.event_day AND b.view = %(view)s
                              AND b.version = %(version)s
WHERE q.event_time_ms >= %(from_ms)s AND q.event_time_ms < %(to_ms)s
GROUP BY q.event_day ORDER BY q.event_day;

-- name: list_requests (of a day, those without the view's features, by time)
SELECT q.request_id
FROM samples.requests q
WHERE q.event_day = %(day)s AND q.event_time_ms >= %(from_ms)s AND q.event_time_ms < %(to_ms)s
  AND NOT EXISTS (
    SELECT FROM samples.backfilled b
    WHERE b.request_id = q.request_id AND b.event_day = q.event_day AND b.view = %(view)s AND b.version = %(version)s
  )
ORDER BY q.event_time_ms, q.request_id;

-- name: count_ahead (requests of times that the history has not reached)
SELECT count(*) FROM samples.requests
WHERE event_time_ms >= greatest(%(from_ms)s, %(reached_ms)s) AND event_time_ms < %(to_ms)s;

-- name: read_requests
SELECT request_id, user_id, event_time_ms, page_id, features::text, items::text
FROM samples.requests WHERE event_day = %(day)s AND request_id = ANY (%(request_ids)s);

-- name: put_backfilled
INSERT INTO samples.backfilled (event_day, request_id, view, version, features, items)
SELECT %(day)s, k.request_id, %(view)s, %(version)s, k.features::jsonb, k.items::jsonb
FROM unnest(%(request_ids)s::text[], %(features)s::text[], %(items)s::text[]) AS k (request_id, features, items)
ON CONFLICT (request_id, event_day, view) DO UPDATE
SET version = EXCLUDED.version, features = EXCLUDED.features, items = EXCLUDED.items, computed_at = now();
