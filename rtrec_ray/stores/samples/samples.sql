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
WHERE source_partition = %(partition)s AND source_offset >= %(replay_from)s
UNION ALL
SELECT source_offset FROM samples.sampled_out
WHERE source_partition = %(partition)s AND source_offset >= %(replay_from)s;

-- name: read_held
SELECT request_id, item_id, action_id, kind, action_ms, value, taken_back, held, expires_ms, spilled FROM samples.actions
WHERE held AND NOT spilled AND source_partition = %(partition)s;

-- name: has_spilled
SELECT EXISTS (SELECT FROM samples.actions WHERE held AND spilled AND source_partition = %(partition)s);

-- name: load_spilled
UPDATE samples.actions a SET spilled = false
FROM unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
WHERE a.request_id = k.request_id AND a.item_id = k.item_id AND a.held AND a.spilled
  AND a.source_partition = %(partition)s
RETURNING a.request_id, a.item_id, a.action_id, a.kind, a.action_ms, a.value, a.taken_back, a.held, a.expires_ms, a.spilled;

-- name: expire_spilled (so many at a time: the rest with the next commits)
DELETE FROM samples.actions WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM samples.actions
    WHERE held AND spilled AND source_partition = %(partition)s AND expires_ms <= %(watermark_ms)s LIMIT %(most)s
));

-- name: find_actions
SELECT request_id, item_id, action_id, kind, action_ms, value, taken_back
FROM samples.actions JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id);

-- name: find_held (by whatever partition: another may have taken back what this one holds)
SELECT request_id, item_id, action_id, kind, action_ms, value, taken_back
FROM samples.actions JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id)
WHERE held;

-- name: has_misses
SELECT EXISTS (SELECT FROM samples.misses WHERE source_partition = %(partition)s);

-- name: find_requests (the first of a request that came twice on two days)
SELECT DISTINCT ON (request_id) request_id, event_day, event_time_ms, page_id, items::text
FROM samples.requests WHERE request_id = ANY (%(request_ids)s)
ORDER BY request_id, event_time_ms;

-- name: find_outcomes (the newest revision)
SELECT DISTINCT ON (request_id, item_id) request_id, item_id, event_day, revision, label, labels::text, event_time_ms, page_id
FROM samples.revisions JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id)
ORDER BY request_id, item_id, event_day, revision DESC;

-- name: find_misses (of another partition without its offset, which says nothing here)
SELECT request_id, item_id, user_id, event_time_ms, page_id, position, arm,
       CASE WHEN source_partition = %(partition)s THEN source_offset END
FROM samples.misses WHERE request_id = ANY (%(request_ids)s);

-- name: find_out (the first of an impression that came twice)
SELECT DISTINCT ON (request_id, item_id)
       request_id, item_id, user_id, event_time_ms, page_id, position, arm,
       CASE WHEN source_partition = %(partition)s THEN source_offset END
FROM samples.sampled_out JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id)
ORDER BY request_id, item_id, event_time_ms;

-- name: ensure_days
SELECT samples.ensure_days(%(days)s::date[]);

-- name: stage_requests
CREATE TEMP TABLE IF NOT EXISTS staged_requests (LIKE samples.requests) ON COMMIT DELETE ROWS;

-- name: put_staged_requests
INSERT INTO samples.requests SELECT * FROM pg_temp.staged_requests ON CONFLICT DO NOTHING;

-- name: stage_misses
CREATE TEMP TABLE IF NOT EXISTS staged_misses (LIKE samples.misses INCLUDING DEFAULTS) ON COMMIT DELETE ROWS;

-- name: put_staged_misses
INSERT INTO samples.misses SELECT * FROM pg_temp.staged_misses ON CONFLICT DO NOTHING;

-- name: drop_misses
DELETE FROM samples.misses
USING unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
WHERE misses.request_id = k.request_id AND misses.item_id = k.item_id;

-- name: stage_out
CREATE TEMP TABLE IF NOT EXISTS staged_out (LIKE samples.sampled_out) ON COMMIT DELETE ROWS;

-- name: put_staged_out (answers those that were there, or became samples)
WITH put AS (
    INSERT INTO samples.sampled_out SELECT * FROM pg_temp.staged_out s
    WHERE NOT EXISTS (SELECT FROM samples.revisions r WHERE r.request_id = s.request_id AND r.item_id = s.item_id)
    ON CONFLICT DO NOTHING RETURNING request_id, item_id
)
SELECT request_id, item_id FROM pg_temp.staged_out EXCEPT SELECT request_id, item_id FROM put;

-- name: drop_out
DELETE FROM samples.sampled_out o
USING unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
WHERE o.request_id = k.request_id AND o.item_id = k.item_id;

-- name: stage_actions
CREATE TEMP TABLE IF NOT EXISTS staged_actions (LIKE samples.actions) ON COMMIT DELETE ROWS;

-- name: put_staged_actions
INSERT INTO samples.actions AS a SELECT * FROM pg_temp.staged_actions
ON CONFLICT (request_id, item_id, action_id) DO UPDATE SET taken_back = true
WHERE EXCLUDED.taken_back AND NOT a.taken_back;

-- name: take_back
UPDATE samples.actions a SET taken_back = true
FROM unnest(%(request_ids)s::text[], %(item_ids)s::bigint[], %(action_ids)s::bigint[]) AS k (request_id, item_id, action_id)
WHERE a.request_id = k.request_id AND a.item_id = k.item_id AND a.action_id = k.action_id AND NOT a.taken_back;

-- name: release
UPDATE samples.actions a SET held = false, expires_ms = NULL
FROM unnest(%(request_ids)s::text[], %(item_ids)s::bigint[], %(action_ids)s::bigint[]) AS k (request_id, item_id, action_id)
WHERE a.request_id = k.request_id AND a.item_id = k.item_id AND a.action_id = k.action_id AND a.held;

-- name: give_up (another partition may have found its impression)
DELETE FROM samples.actions a
USING unnest(%(request_ids)s::text[], %(item_ids)s::bigint[], %(action_ids)s::bigint[]) AS k (request_id, item_id, action_id)
WHERE a.request_id = k.request_id AND a.item_id = k.item_id AND a.action_id = k.action_id AND a.held;

-- name: correct (a revision with these labels after each of these)
INSERT INTO samples.revisions (
    event_day, request_id, item_id, revision, user_id, event_time_ms, page_id, position, arm, label, old_label, labels,
    item_features, propensity, score, negative_rate, definition_version, commit_seq, source_partition
)
SELECT r.event_day, r.request_id, r.item_id, r.revision + 1, r.user_id, r.event_time_ms, r.page_id, r.position, r.arm,
       k.label, r.label, k.labels, r.item_features, r.propensity, r.score, r.negative_rate, r.definition_version,
       %(first_seq)s - 1 + row_number() OVER (ORDER BY r.event_time_ms, r.request_id, r.item_id), r.source_partition
FROM samples.revisions r
JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[], %(revisions)s::int[], %(days)s::date[],
            %(labels)s::smallint[], %(all_labels)s::jsonb[])
     AS k (request_id, item_id, revision, event_day, label, labels) USING (request_id, item_id, revision, event_day);

-- name: read_settings (no definition is applied until the transaction ends)
SELECT change, mixed FROM samples.settings FOR SHARE;

-- name: read_definitions
SELECT definition::text, from_ms FROM samples.definitions ORDER BY from_ms, version;

-- name: ensure_completeness
INSERT INTO samples.completeness (source_partition)
SELECT p FROM unnest(%(partitions)s::int[]) AS p ON CONFLICT DO NOTHING;

-- name: put_completeness
UPDATE samples.completeness
SET first_ms = coalesce(first_ms, %(first_ms)s),
    complete_ms = CASE WHEN first_ms IS NULL THEN %(complete_ms)s ELSE greatest(complete_ms, %(complete_ms)s) END
WHERE source_partition = %(partition)s;

-- name: read_completeness
SELECT first_ms, complete_ms FROM samples.completeness;

-- name: read_complete
SELECT complete_ms FROM samples.complete;

-- name: put_complete
UPDATE samples.complete SET complete_ms = %(complete_ms)s;

-- name: notify
NOTIFY rtrec_samples;

-- name: high_water
SELECT value FROM meta.counters WHERE name = 'samples';

-- name: end (the counter's row is locked until a commit is done, so later numbers have later places in the log)
WITH counter AS MATERIALIZED (SELECT value FROM meta.counters WHERE name = 'samples' FOR SHARE)
SELECT value, (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint FROM counter;

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
SELECT (SELECT count(*) FROM samples.actions WHERE held AND NOT spilled)
     + (SELECT count(*) FROM samples.actions WHERE held AND spilled);

-- name: count_out
SELECT count(*) FROM samples.sampled_out;

-- name: count_outcomes (of the task, over its partitions)
SELECT key, sum(value::bigint)::bigint FROM meta.progress, jsonb_each_text(counts)
WHERE task = 'samples' GROUP BY key ORDER BY key;

-- name: lock_settings
SELECT change FROM samples.settings FOR UPDATE;

-- name: read_newest (event time of anything that a committed decision may have been about)
SELECT max(max_ts_ms) FROM meta.positions WHERE task = 'samples';

-- name: add_definition
WITH noted AS (UPDATE samples.settings SET change = change + 1)
INSERT INTO samples.definitions (version, definition, from_ms) VALUES (%(version)s, %(definition)s::jsonb, %(from_ms)s);

-- name: put_partitions
UPDATE samples.settings SET partitions = %(partitions)s, mixed = mixed OR coalesce(partitions < %(partitions)s, false)
WHERE partitions IS DISTINCT FROM %(partitions)s;
