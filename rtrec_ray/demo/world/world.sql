-- name: samples
SELECT count(*)::bigint, coalesce(sum(label), 0)::bigint FROM samples.current;

-- name: misses
SELECT count(*)::bigint FROM samples.misses;

-- name: realtime (of live requests: yesterday's had another recommender)
SELECT arm, features ->> 'realtime', count(*)::bigint
FROM samples.requests WHERE model_version <> 'yesterday' GROUP BY 1, 2;

-- name: versions
SELECT arm, count(DISTINCT model_version)::bigint
FROM samples.requests WHERE model_version NOT IN ('yesterday', 'none') GROUP BY 1;

-- name: history
SELECT topic, sum(row_count)::bigint FROM meta.history_files WHERE replaced_at IS NULL GROUP BY topic;
