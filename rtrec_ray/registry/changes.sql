-- name: intend
INSERT INTO meta.model_changes (once_key, change, version, reason, sender, context, made_ms)
VALUES (%(once_key)s, %(change)s, %(version)s, %(reason)s, %(sender)s, %(context)s, %(made_ms)s)
ON CONFLICT (once_key) DO NOTHING
RETURNING change_id, change, version, reason, sender, context, made_ms, previous, false;

-- name: alone (of the session: it ends with the connection of one who dies)
SELECT pg_advisory_lock(%(lock)s);

-- name: next
SELECT change_id, change, version, reason, sender, context, made_ms, previous, false
FROM meta.model_changes WHERE event_offset IS NULL ORDER BY change_id LIMIT 1;

-- name: claim (a row comes back only while it is not done)
SELECT 1 FROM meta.model_changes WHERE change_id = %(change_id)s AND event_offset IS NULL FOR UPDATE;

-- name: champion (and whether it was rejected)
SELECT CASE WHEN c.change = 'champion' THEN c.version END,
       EXISTS (SELECT 1 FROM meta.model_changes r
               WHERE r.change = 'rejected' AND r.version = c.version AND r.event_offset > c.event_offset)
FROM meta.model_changes c
WHERE c.change IN ('champion', 'withdrawn') AND c.event_offset IS NOT NULL
ORDER BY c.event_offset DESC LIMIT 1;

-- name: finish
UPDATE meta.model_changes SET event_offset = %(event_offset)s, previous = %(previous)s WHERE change_id = %(change_id)s;

-- name: lock_served (replicas tell one after another)
LOCK TABLE meta.model_served IN SHARE ROW EXCLUSIVE MODE;

-- name: serving (and the place of the change that chose it, and of the one that chose the version asked about)
SELECT s.version,
       (SELECT max(c.event_offset) FROM meta.model_changes c WHERE c.change = 'champion' AND c.version = s.version),
       (SELECT max(c.event_offset) FROM meta.model_changes c WHERE c.change = 'champion' AND c.version = %(version)s)
FROM meta.model_served s ORDER BY s.served_id DESC LIMIT 1;

-- name: end_service
UPDATE meta.model_served SET to_ms = %(at_ms)s WHERE to_ms IS NULL;

-- name: begin_service
INSERT INTO meta.model_served (version, from_ms) VALUES (%(version)s, %(at_ms)s);

-- name: changes (newest first; what is not done is newest)
SELECT change_id, change, version, reason, sender, context, made_ms, previous, event_offset IS NOT NULL
FROM meta.model_changes WHERE %(version)s::text IS NULL OR version = %(version)s
ORDER BY event_offset DESC NULLS FIRST, change_id DESC LIMIT %(limit)s;

-- name: served (newest first)
SELECT version, from_ms, to_ms FROM meta.model_served ORDER BY served_id DESC LIMIT %(limit)s;
