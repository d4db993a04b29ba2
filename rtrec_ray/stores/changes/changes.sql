-- name: find_slot (of this database)
SELECT s.slot_name, s.active_pid, (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint,
       s.wal_status = 'lost', coalesce(to_jsonb(s) ->> 'invalidation_reason', 'its log is gone'),
       (pg_current_wal_lsn() - s.restart_lsn)::bigint, s.wal_status
FROM pg_replication_slots s WHERE s.database = current_database() AND s.slot_name = %(slot)s;

-- name: list_slots (of this database and program)
SELECT s.slot_name, s.active_pid, (s.confirmed_flush_lsn - '0/0'::pg_lsn)::bigint,
       s.wal_status = 'lost', coalesce(to_jsonb(s) ->> 'invalidation_reason', 'its log is gone'),
       (pg_current_wal_lsn() - s.restart_lsn)::bigint, s.wal_status
FROM pg_replication_slots s
WHERE s.database = current_database() AND s.slot_name LIKE 'rtrec\_%%' AND s.plugin = 'pgoutput' ORDER BY s.slot_name;

-- name: slot_name (slots are the whole server's, so the database is part of the name)
SELECT 'rtrec_' || oid || '_' || %(name)s FROM pg_database WHERE datname = current_database();

-- name: has_publication
SELECT EXISTS (SELECT FROM pg_publication WHERE pubname = 'rtrec_samples');

-- name: read_means (of streaming; slots held by others are not ours to count)
SELECT current_setting('wal_level'),
       (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
       current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
       current_setting('max_slot_wal_keep_size');

-- name: create_slot (waits for every open transaction that writes)
SELECT (lsn - '0/0'::pg_lsn)::bigint FROM pg_create_logical_replication_slot(%(slot)s, 'pgoutput');

-- name: end_holder
SELECT pg_terminate_backend(active_pid, 4000) FROM pg_replication_slots
WHERE slot_name = %(slot)s AND active_pid IS NOT NULL;

-- name: drop_slot
SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = %(slot)s;

-- name: high_water
SELECT value FROM meta.counters WHERE name = 'samples';

-- name: attach (the requests behind revisions)
SELECT request_id, event_day::text, model_version, arm AS request_arm, features::text AS request_features
FROM samples.requests
JOIN unnest(%(request_ids)s::text[], %(days)s::date[]) AS k (request_id, event_day) USING (request_id, event_day);

-- name: listen
LISTEN rtrec_samples;
