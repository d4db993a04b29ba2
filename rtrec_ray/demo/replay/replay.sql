-- name: feature_watermark
SELECT min(watermark_ms) FROM meta.progress WHERE task = 'features';

-- name: samples (a live sample is one whose arm says so)
SELECT count(*) FILTER (WHERE NOT live), count(*) FILTER (WHERE NOT live AND label = 1),
       count(*) FILTER (WHERE live), count(*) FILTER (WHERE live AND label = 1)
FROM (SELECT label, coalesce(arm = %(arm)s, false) AS live FROM samples.current) AS told_apart;

-- name: misses
SELECT count(*) FROM samples.misses;

-- name: joined (samples whose request is in the inference log, by what the log says of the request)
SELECT count(*), count(DISTINCT r.request_id), array_agg(DISTINCT q.model_version)
FROM samples.revisions r JOIN samples.requests q USING (request_id, event_day)
WHERE r.revision = 0 AND r.arm = %(arm)s AND q.arm = %(arm)s;

-- name: history
SELECT topic, sum(row_count)::bigint, count(*) FROM meta.history_files WHERE replaced_at IS NULL GROUP BY topic;

-- name: click_rate
SELECT avg(label)::double precision FROM samples.revisions WHERE commit_seq <= %(to_seq)s AND revision = 0;
