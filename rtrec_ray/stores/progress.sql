-- name: read_positions
SELECT topic, next_offset, max_ts_ms FROM meta.positions WHERE task = %(task)s AND partition = %(partition)s;

-- name: read_topic_positions
SELECT partition, next_offset FROM meta.positions WHERE task = %(task)s AND topic = %(topic)s;

-- name: read_watermark
SELECT watermark_ms FROM meta.progress WHERE task = %(task)s AND partition = %(partition)s;

-- name: put_position
INSERT INTO meta.positions (task, partition, topic, next_offset, max_ts_ms)
VALUES (%(task)s, %(partition)s, %(topic)s, %(next_offset)s, %(max_ts_ms)s)
ON CONFLICT (task, partition, topic)
DO UPDATE SET next_offset = EXCLUDED.next_offset, max_ts_ms = EXCLUDED.max_ts_ms;

-- name: put_progress (counts are added key by key)
INSERT INTO meta.progress (task, partition, watermark_ms, lag, counts)
VALUES (%(task)s, %(partition)s, %(watermark_ms)s, %(lag)s, %(counts)s)
ON CONFLICT (task, partition) DO UPDATE SET
    watermark_ms = greatest(meta.progress.watermark_ms, EXCLUDED.watermark_ms),
    lag = EXCLUDED.lag,
    counts = (
        SELECT coalesce(jsonb_object_agg(key, total), '{}')
        FROM (
            SELECT key, sum(value::bigint) AS total
            FROM (SELECT * FROM jsonb_each_text(meta.progress.counts)
                  UNION ALL SELECT * FROM jsonb_each_text(EXCLUDED.counts)) AS both_counts
            GROUP BY key
        ) AS totals
    ),
    committed_at = clock_timestamp();

-- name: read_stages
SELECT p.task, p.partition, p.watermark_ms, p.lag, p.counts,
       (extract(epoch FROM clock_timestamp() - p.committed_at) * 1000)::bigint AS age_ms,
       coalesce(l.expires_at > clock_timestamp(), false) AS up
FROM meta.progress p LEFT JOIN meta.leases l USING (task, partition)
ORDER BY p.task, p.partition;

-- name: read_clock
SELECT origin_event_ms, origin_wall_ms, speed FROM meta.clock;

-- name: put_clock (the first one stays: moving a running clock would break every watermark)
INSERT INTO meta.clock (origin_event_ms, origin_wall_ms, speed)
VALUES (%(origin_event_ms)s, %(origin_wall_ms)s, %(speed)s) ON CONFLICT DO NOTHING;
