-- name: take_numbers
INSERT INTO meta.counters (name, value) VALUES (%(name)s, %(count)s)
ON CONFLICT (name) DO UPDATE SET value = meta.counters.value + EXCLUDED.value
RETURNING value - %(count)s + 1;

-- name: ensure_lease
INSERT INTO meta.leases (task, partition) VALUES (%(task)s, %(partition)s) ON CONFLICT DO NOTHING;

-- name: read_lease (without a lock: a stopped owner may hold one)
SELECT l.epoch, l.owner, l.pid, l.backend_start,
       l.expires_at > clock_timestamp()
       AND EXISTS (SELECT 1 FROM pg_stat_activity a WHERE a.pid = l.pid AND a.backend_start = l.backend_start) AS live
FROM meta.leases l WHERE l.task = %(task)s AND l.partition = %(partition)s;

-- name: end_backend
SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE pid = %(pid)s AND backend_start = %(backend_start)s AND pid <> pg_backend_pid();

-- name: take_lease
UPDATE meta.leases
SET epoch = epoch + 1, owner = %(owner)s, pid = pg_backend_pid(),
    backend_start = (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()),
    expires_at = clock_timestamp() + %(ttl_ms)s * interval '1 ms'
WHERE task = %(task)s AND partition = %(partition)s AND epoch = %(epoch)s
RETURNING epoch;

-- name: fence_lease
UPDATE meta.leases SET expires_at = clock_timestamp() + %(ttl_ms)s * interval '1 ms'
WHERE task = %(task)s AND partition = %(partition)s AND epoch = %(epoch)s;

-- name: release_lease
UPDATE meta.leases SET expires_at = clock_timestamp(), pid = NULL, backend_start = NULL
WHERE task = %(task)s AND partition = %(partition)s AND epoch = %(epoch)s;
