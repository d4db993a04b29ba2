-- name: put_dataset (no row comes back when nothing changed, or the version is another than the expected one)
INSERT INTO meta.datasets AS d (name, address, format, columns, description)
SELECT %(name)s, %(address)s, %(format)s, %(columns)s, %(description)s
WHERE %(expected)s::int IS NULL OR %(expected)s = 0 OR EXISTS (SELECT 1 FROM meta.datasets WHERE name = %(name)s)
ON CONFLICT (name) DO UPDATE
SET address = EXCLUDED.address, format = EXCLUDED.format, columns = EXCLUDED.columns,
    description = EXCLUDED.description, version = d.version + 1, changed_at = clock_timestamp()
WHERE (%(expected)s::int IS NULL OR d.version = %(expected)s)
  AND (d.address, d.format, d.columns, d.description)
      IS DISTINCT FROM (EXCLUDED.address, EXCLUDED.format, EXCLUDED.columns, EXCLUDED.description)
RETURNING name, address, format, columns, description, version;

-- name: datasets
SELECT name, address, format, columns, description, version FROM meta.datasets
WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name;

-- name: start_run
INSERT INTO meta.runs (run_id, job, kind, state, started_ms, ended_ms, context, snapshot)
VALUES (%(run_id)s, %(job)s, %(kind)s, %(state)s, %(started_ms)s, %(ended_ms)s, %(context)s, %(snapshot)s)
ON CONFLICT DO NOTHING;

-- name: end_others (runs of a job that never runs twice at a time)
UPDATE meta.runs SET state = 'failed', ended_ms = %(started_ms)s, context = context || %(context)s::jsonb
WHERE job = %(job)s AND run_id <> %(run_id)s AND ended_ms IS NULL;

-- name: put_snapshot
INSERT INTO meta.snapshots (snapshot, project, workflow, files, created_ms)
VALUES (%(snapshot)s, %(project)s, %(workflow)s, %(files)s, %(created_ms)s)
ON CONFLICT DO NOTHING;

-- name: snapshots
SELECT snapshot, project, workflow, files, created_ms FROM meta.snapshots
WHERE %(snapshot)s::text IS NULL OR snapshot = %(snapshot)s
ORDER BY created_ms DESC, snapshot LIMIT %(limit)s;

-- name: put_kind (as put_dataset)
INSERT INTO meta.entity_kinds AS k (name, schema)
SELECT %(name)s, %(schema)s
WHERE %(expected)s::int IS NULL OR %(expected)s = 0 OR EXISTS (SELECT 1 FROM meta.entity_kinds WHERE name = %(name)s)
ON CONFLICT (name) DO UPDATE SET schema = EXCLUDED.schema, version = k.version + 1
WHERE (%(expected)s::int IS NULL OR k.version = %(expected)s) AND k.schema IS DISTINCT FROM EXCLUDED.schema
RETURNING name, schema, version;

-- name: kinds
SELECT name, schema, version FROM meta.entity_kinds
WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name;

-- name: put_entity (as put_dataset)
INSERT INTO meta.entities AS e (kind, name, body)
SELECT %(kind)s, %(name)s, %(body)s
WHERE %(expected)s::int IS NULL OR %(expected)s = 0
   OR EXISTS (SELECT 1 FROM meta.entities WHERE kind = %(kind)s AND name = %(name)s)
ON CONFLICT (kind, name) DO UPDATE SET body = EXCLUDED.body, version = e.version + 1
WHERE (%(expected)s::int IS NULL OR e.version = %(expected)s) AND e.body IS DISTINCT FROM EXCLUDED.body
RETURNING kind, name, body, version;

-- name: entities
SELECT kind, name, body, version FROM meta.entities
WHERE kind = %(kind)s AND (%(name)s::text IS NULL OR name = %(name)s) ORDER BY name;

-- name: drop_entity
DELETE FROM meta.entities
WHERE kind = %(kind)s AND name = %(name)s AND (%(expected)s::int IS NULL OR version = %(expected)s)
RETURNING version;

-- name: end_run
UPDATE meta.runs SET state = %(state)s, ended_ms = %(ended_ms)s, context = context || %(context)s::jsonb
WHERE run_id = %(run_id)s AND ended_ms IS NULL;

-- name: run
SELECT run_id, job, kind, started_ms, state, ended_ms, context, snapshot FROM meta.every_run WHERE run_id = %(run_id)s;

-- name: runs
SELECT run_id, job, kind, started_ms, state, ended_ms, context, snapshot FROM meta.every_run
ORDER BY started_ms DESC, run_id LIMIT %(limit)s;

-- name: put_lineage
INSERT INTO meta.model_lineage
    (version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms, job, snapshot,
     lsn)
VALUES (%(version)s, %(kind)s, %(parent)s, %(run_id)s, %(from_seq)s, %(to_seq)s, %(feature_version)s,
        %(label_version)s, %(created_ms)s, %(job)s, %(snapshot)s, %(lsn)s)
ON CONFLICT DO NOTHING;

-- name: ancestry (the version first; CYCLE, since nothing forbids a row that names a descendant as its parent)
WITH RECURSIVE line AS (
    SELECT m.*, 0 AS depth FROM meta.model_lineage m WHERE m.version = %(version)s
    UNION ALL
    SELECT m.*, line.depth + 1 FROM meta.model_lineage m JOIN line ON m.version = line.parent
) CYCLE version SET again USING path
SELECT version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms, job, snapshot, lsn
FROM line WHERE NOT again ORDER BY depth;

-- name: lineages
SELECT version, kind, parent, run_id, from_seq, to_seq, feature_version, label_version, created_ms, job, snapshot, lsn
FROM meta.model_lineage ORDER BY created_ms DESC, version LIMIT %(limit)s;
