-- name: read_replay
SELECT replay_from, out_from_seq, repeated_offsets FROM samples.replay WHERE source_partition = %(partition)s;

-- name: put_replay
INSERT INTO samples.replay (source_partition, replay_from, out_from_seq, repeated_offsets)
VALUES (%(partition)s, %(replay_from)s, %(out_from_seq)s, %(repeated_offsets)s::bigint[])
ON CONFLICT (source_partition) DO UPDATE
SET replay_from = EXCLUDED.replay_from, out_from_seq = EXCLUDED.out_from_seq,
    repeated_offsets = EXCLUDED.repeated_offsets;

-- name: read_settled_offsets
SELECT source_offset FROM samples.revisions
WHERE commit_seq >= %(out_from_seq)s AND source_partition = %(partition)s AND source_offset >= %(replay_from)s
UNION ALL
SELECT source_offset FROM samples.misses
WHERE source_partition = %(partition)s AND source_offset >= %(replay_from)s;

-- name: read_held
SELECT request_id, item_id, click_ms, expires_ms, true FROM samples.held_clicks
WHERE source_partition = %(partition)s;

-- name: has_misses
SELECT EXISTS (SELECT FROM samples.misses WHERE source_partition = %(partition)s);

-- name: find_requests (the first of a request that came twice on two days)
SELECT DISTINCT ON (request_id) request_id, event_day, event_time_ms, page_id, items::text
FROM samples.requests WHERE request_id = ANY (%(request_ids)s)
ORDER BY request_id, event_time_ms;

-- name: find_outcomes (the newest revision)
SELECT DISTINCT ON (request_id, item_id) request_id, item_id, event_day, revision, label, event_time_ms
FROM samples.revisions JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id)
ORDER BY request_id, item_id, event_day, revision DESC;

-- name: find_misses
SELECT request_id, item_id, user_id, event_time_ms, page_id, position, arm, source_offset, click_ms
FROM samples.misses WHERE request_id = ANY (%(request_ids)s);

-- name: ensure_days
SELECT samples.ensure_days(%(days)s::date[]);

-- name: stage_requests
CREATE TEMP TABLE IF NOT EXISTS staged_requests (LIKE samples.requests) ON COMMIT DELETE ROWS;

-- name: put_staged_requests
INSERT INTO samples.requests SELECT * FROM pg_temp.staged_requests ON CONFLICT DO NOTHING;

-- name: stage_misses
CREATE TEMP TABLE IF NOT EXISTS staged_misses (LIKE samples.misses INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;

-- name: put_staged_misses
INSERT INTO samples.misses SELECT * FROM pg_temp.staged_misses
ON CONFLICT (request_id, item_id) DO UPDATE SET click_ms = least(misses.click_ms, EXCLUDED.click_ms);

-- name: drop_misses
DELETE FROM samples.misses
USING unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
WHERE misses.request_id = k.request_id AND misses.item_id = k.item_id;

-- name: put_held
INSERT INTO samples.held_clicks (source_partition, request_id, item_id, click_ms, expires_ms)
SELECT %(partition)s, k.* FROM unnest(
    %(request_ids)s::text[], %(item_ids)s::bigint[], %(click_ms)s::bigint[], %(expires_ms)s::bigint[]
) AS k (request_id, item_id, click_ms, expires_ms)
ON CONFLICT (source_partition, request_id, item_id) DO UPDATE
SET click_ms = EXCLUDED.click_ms, expires_ms = EXCLUDED.expires_ms;

-- name: drop_held
DELETE FROM samples.held_clicks h
USING unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
WHERE h.source_partition = %(partition)s AND h.request_id = k.request_id AND h.item_id = k.item_id;

-- name: correct (a revision with label 1 after each of these)
INSERT INTO samples.revisions (
    event_day, request_id, item_id, revision, user_id, event_time_ms, page_id, position, arm, label, old_label, labels,
    item_features, propensity, score, commit_seq, source_partition
)
SELECT r.event_day, r.request_id, r.item_id, r.revision + 1, r.user_id, r.event_time_ms, r.page_id, r.position, r.arm,
       1, r.label, r.labels || '{"click": 1}', r.item_features, r.propensity, r.score,
       %(first_seq)s - 1 + row_number() OVER (ORDER BY r.event_time_ms, r.request_id, r.item_id), r.source_partition
FROM samples.revisions r
JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[], %(revisions)s::int[], %(days)s::date[])
     AS k (request_id, item_id, revision, event_day) USING (request_id, item_id, revision, event_day);

-- name: notify
NOTIFY rtrec_samples;

-- name: high_water
SELECT value FROM meta.counters WHERE name = 'samples';

-- name: scan (columns are filled in)
COPY (
    SELECT {columns} FROM samples.ledger l
    WHERE commit_seq > {from_seq} AND commit_seq <= {to_seq} ORDER BY commit_seq
) TO STDOUT (FORMAT csv);

-- name: scan_current (columns are filled in)
COPY (
    SELECT {columns} FROM samples.ledger l
    WHERE commit_seq > {from_seq} AND commit_seq <= {to_seq}
      AND NOT EXISTS (
        SELECT FROM samples.revisions n
        WHERE n.request_id = l.request_id AND n.item_id = l.item_id AND n.event_day = l.event_day
          AND n.revision > 0 AND n.revision > l.revision AND n.commit_seq <= {as_of_seq}
      )
    ORDER BY commit_seq
) TO STDOUT (FORMAT csv);

-- name: count_rows
SELECT count(*) FILTER (WHERE revision = 0), count(*) FILTER (WHERE revision > 0),
       count(DISTINCT request_id) FILTER (WHERE revision = 0)
FROM samples.revisions;

-- name: count_positives
SELECT count(*) FROM samples.current WHERE label = 1;

-- name: count_misses
SELECT reason, count(*) FROM samples.misses GROUP BY reason ORDER BY reason;

-- name: count_held
SELECT count(*) FROM samples.held_clicks;

-- name: count_outcomes (of the task, over its partitions)
SELECT key, sum(value::bigint)::bigint FROM meta.progress, jsonb_each_text(counts)
WHERE task = 'samples' GROUP BY key ORDER BY key;
