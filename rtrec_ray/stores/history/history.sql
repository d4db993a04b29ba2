-- name: files
SELECT path, topic, partition, event_date, event_hour, row_count, byte_count, min_offset, max_offset, min_ts_ms, max_ts_ms
FROM meta.history_files
WHERE topic = %(topic)s AND replaced_at IS NULL
  AND max_ts_ms >= %(from_ms)s AND min_ts_ms < %(to_ms)s
ORDER BY min_ts_ms, path;

-- name: summary
SELECT topic, count(*), sum(row_count), sum(byte_count), min(min_ts_ms), max(max_ts_ms)
FROM meta.history_files WHERE replaced_at IS NULL GROUP BY topic ORDER BY topic;

-- name: replace (only files that are still there: another compaction may have been faster)
UPDATE meta.history_files SET replaced_at = clock_timestamp()
WHERE path = ANY(%(paths)s) AND replaced_at IS NULL;

-- name: known (every path with a row, replaced or not)
SELECT path FROM meta.history_files WHERE path = ANY(%(paths)s);

-- name: replaced
SELECT path FROM meta.history_files WHERE replaced_at < clock_timestamp() - %(grace_s)s * interval '1 s';

-- name: forget
DELETE FROM meta.history_files WHERE path = ANY(%(paths)s) AND replaced_at IS NOT NULL;
