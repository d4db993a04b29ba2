-- name: count_actions (as the server estimates it; unknown before its first look at the table)
SELECT reltuples::bigint, pg_relation_size(oid) FROM pg_class WHERE oid = 'samples.actions'::regclass;

-- name: read_delays (of a share of the table's blocks: the first click on each impression)
WITH drawn AS MATERIALIZED (
    SELECT DISTINCT request_id, item_id
    FROM samples.actions TABLESAMPLE SYSTEM (%(percent)s) REPEATABLE (17)
    WHERE kind = 'click' AND NOT taken_back AND NOT held
)
SELECT r.page_id, c.click_ms - r.event_time_ms
FROM drawn d
CROSS JOIN LATERAL (
    SELECT min(a.action_ms) AS click_ms FROM samples.actions a
    WHERE a.request_id = d.request_id AND a.item_id = d.item_id AND a.kind = 'click' AND NOT a.taken_back
) c
-- A click comes within the horizon: only these days' partitions are looked into.
JOIN samples.revisions r
  ON r.request_id = d.request_id AND r.item_id = d.item_id AND r.revision = 0
 AND r.event_day BETWEEN (to_timestamp(c.click_ms / 1000.0) AT TIME ZONE 'UTC')::date - %(horizon_days)s
                     AND (to_timestamp(c.click_ms / 1000.0) AT TIME ZONE 'UTC')::date + 1
LIMIT %(most)s;
