-- name: put_dataset (no row comes back when nothing changed)
INSERT INTO meta.datasets AS d (name, address, format, columns, description)
VALUES (%(name)s, %(address)s, %(format)s, %(columns)s, %(description)s)
ON CONFLICT (name) DO UPDATE
SET address = EXCLUDED.address, format = EXCLUDED.format, columns = EXCLUDED.columns,
    description = EXCLUDED.description, version = d.version + 1, changed_at = clock_timestamp()
WHERE (d.address, d.format, d.columns, d.description)
      IS DISTINCT FROM (EXCLUDED.address, EXCLUDED.format, EXCLUDED.columns, EXCLUDED.description);

-- name: datasets
SELECT name, address, format, columns, description, version FROM meta.datasets
WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name;

-- name: start_run
INSERT INTO meta.runs (run_id, job, kind, state, started_ms, ended_ms, context)
VALUES (%(run_id)s, %(job)s, %(kind)s, %(state)s, %(started_ms)s, %(ended_ms)s, %(context)s)
ON CONFLICT DO NOTHING;

-- name: end_run
UPDATE meta.runs SET state = %(state)s, ended_ms = %(ended_ms)s, context = context || %(context)s::jsonb
WHERE run_id = %(run_id)s AND ended_ms IS NULL;

-- name: run
SELECT run_id, job, kind, started_ms, state, ended_ms, context FROM meta.runs WHERE run_id = %(run_id)s;

-- name: runs
SELECT run_id, job, kind, started_ms, state, ended_ms, context FROM meta.runs
ORDER BY started_ms DESC, run_id LIMIT %(limit)s;

-- name: put_lineage
INSERT INTO meta.model_lineage
    (version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms)
VALUES (%(version)s, %(kind)s, %(parent)s, %(run_id)s, %(from_seq)s, %(to_seq)s, %(feature_version)s,
        %(label_version)s, %(created_ms)s)
ON CONFLICT DO NOTHING;

-- name: ancestry (the version first; CYCLE, since nothing forbids a row that names a descendant as its parent)
WITH RECURSIVE line AS (
    SELECT m.*, 0 AS depth FROM meta.model_lineage m WHERE m.version = %(version)s
    UNION ALL
    SELECT m.*, line.depth + 1 FROM meta.model_lineage m JOIN line ON m.version = line.parent
) CYCLE version SET again USING path
SELECT version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms
FROM line WHERE NOT again ORDER BY depth;

-- name: lineages
SELECT version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms
FROM meta.model_lineage ORDER BY created_ms DESC, version LIMIT %(limit)s;
