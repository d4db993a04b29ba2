-- name: lock (no day is dropped under a scan; who writes and who reads is not in its way)
LOCK TABLE samples.revisions, samples.requests IN ACCESS SHARE MODE;

-- name: export
SELECT pg_export_snapshot();

-- name: import
SET TRANSACTION SNAPSHOT %(snapshot)s;

-- name: high_water
SELECT value FROM meta.counters WHERE name = 'samples';

-- name: kept_from
SELECT kept_from_ms FROM samples.retention;

-- name: known_at_or_after (the first revision numbered from there on)
SELECT commit_seq, (extract(epoch FROM known_at) * 1000)::bigint FROM samples.revisions
WHERE commit_seq >= %(seq)s ORDER BY commit_seq LIMIT 1;

-- name: first_known_after (the first revision numbered from there on that was written after a time)
SELECT commit_seq FROM samples.revisions
WHERE commit_seq >= %(seq)s AND known_at > to_timestamp(%(as_of_ms)s / 1000.0) ORDER BY commit_seq LIMIT 1;

-- name: list_days
SELECT to_date(right(c.relname, 8), 'YYYYMMDD'),
       pg_relation_size(c.oid) / current_setting('block_size')::int
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'samples.revisions'::regclass AND NOT i.inhdetachpending
ORDER BY 1;

-- name: list_other_days (outside those days, days of requests with samples of the range)
SELECT DISTINCT event_day FROM samples.revisions
WHERE event_time_ms / 86400000 <> event_day - DATE '1970-01-01'
  AND event_time_ms >= %(from_ms)s AND event_time_ms < %(to_ms)s
  AND event_day <> ALL (%(days)s::date[])
ORDER BY event_day;

-- name: read_blocks (columns are filled in)
COPY (
    SELECT {columns} FROM samples.revisions r
    WHERE r.event_day = DATE '{day}' AND r.ctid >= '({first_block},0)' AND r.ctid < '({end_block},0)'
      AND r.event_time_ms >= {from_ms} AND r.event_time_ms < {to_ms} AND r.commit_seq <= {to_seq}
      AND NOT EXISTS (
        SELECT FROM samples.revisions n
        WHERE n.event_day = DATE '{day}' AND n.request_id = r.request_id AND n.item_id = r.item_id
          AND n.revision > 0 AND n.revision > r.revision AND n.commit_seq <= {to_seq}
      )
) TO STDOUT;

-- name: read_others (columns are filled in)
COPY (
    SELECT {columns} FROM samples.revisions r
    WHERE r.event_day = DATE '{day}' AND r.event_time_ms / 86400000 <> r.event_day - DATE '1970-01-01'
      AND r.event_time_ms >= {from_ms} AND r.event_time_ms < {to_ms} AND r.commit_seq <= {to_seq}
      AND NOT EXISTS (
        SELECT FROM samples.revisions n
        WHERE n.event_day = DATE '{day}' AND n.request_id = r.request_id AND n.item_id = r.item_id
          AND n.revision > 0 AND n.revision > r.revision AND n.commit_seq <= {to_seq}
      )
) TO STDOUT;

-- name: read_requests (columns and ids are filled in)
COPY (
    SELECT {columns} FROM samples.requests q
    WHERE q.event_day = DATE '{day}' AND q.request_id = ANY ({ids}::text[])
) TO STDOUT;
