-- name: feature_progress (per partition: how far features have come, and whether something waits that should be in them)
SELECT greatest(max(q.max_ts_ms), max(p.watermark_ms)) AS newest_ms,
       bool_or(p.lag > 0 OR coalesce(l.expires_at <= clock_timestamp(), true)) AS behind
FROM meta.progress p
LEFT JOIN meta.positions q ON q.task = p.task AND q.partition = p.partition AND q.topic = %(topic)s
LEFT JOIN meta.leases l ON l.task = p.task AND l.partition = p.partition
WHERE p.task = %(task)s
GROUP BY p.partition;
