-- name: lock_settings
SELECT tile_ms FROM features.settings FOR UPDATE;

-- name: put_settings (tiles that a shorter retention dropped do not come back with a longer one)
INSERT INTO features.settings AS s (tile_ms, horizon_ms, retention_ms) VALUES (%(tile_ms)s, %(horizon_ms)s, %(retention_ms)s)
ON CONFLICT (one) DO UPDATE
SET tiles_from_ms = CASE WHEN EXCLUDED.retention_ms > s.retention_ms
                         THEN greatest(s.tiles_from_ms, features.kept_upto() - s.retention_ms) ELSE s.tiles_from_ms END,
    tile_ms = EXCLUDED.tile_ms, horizon_ms = EXCLUDED.horizon_ms, retention_ms = EXCLUDED.retention_ms,
    change = s.change + 1
WHERE (s.tile_ms, s.horizon_ms, s.retention_ms) IS DISTINCT FROM
      (EXCLUDED.tile_ms, EXCLUDED.horizon_ms, EXCLUDED.retention_ms);

-- name: note_change
UPDATE features.settings SET change = change + 1;

-- name: add_view
INSERT INTO features.views AS v (name, version, definition, live) VALUES (%(name)s, %(version)s, %(definition)s, true)
ON CONFLICT (name, version) DO UPDATE SET live = true WHERE NOT v.live;

-- name: list_defined (also those that were dropped)
SELECT name, version, definition FROM features.views UNION ALL SELECT name, version, definition FROM features.dropped_views;

-- name: read_live (one statement, so all of one moment. A view that has not begun everywhere is complete nowhere)
SELECT s.tile_ms, s.horizon_ms, s.retention_ms, s.tiles_from_ms, s.change, l.view_id, l.definition, l.complete_from_ms
FROM features.settings s
LEFT JOIN (
    SELECT v.view_id, v.definition,
           CASE WHEN count(p.partition) > count(b.partition) THEN %(not_begun_ms)s ELSE max(b.complete_from_ms) END
             AS complete_from_ms
    FROM features.views v
    LEFT JOIN features.partitions p ON true
    LEFT JOIN features.view_starts b ON b.view_id = v.view_id AND b.partition = p.partition
    WHERE v.live
    GROUP BY v.view_id
) l ON true
ORDER BY l.view_id;

-- name: list_begun
SELECT view_id FROM features.view_starts WHERE partition = %(partition)s;

-- name: begin_views
INSERT INTO features.view_starts (view_id, partition, next_offset, complete_from_ms)
SELECT view_id, %(partition)s, %(next_offset)s, %(complete_from_ms)s FROM features.views v
WHERE live AND NOT EXISTS (SELECT FROM features.view_starts s WHERE s.view_id = v.view_id AND s.partition = %(partition)s);

-- name: drop_view
WITH dropped AS (
    DELETE FROM features.views WHERE name = %(name)s AND version = %(version)s AND live RETURNING view_id, definition
), kept AS (
    INSERT INTO features.dropped_views (name, version, definition) SELECT %(name)s, %(version)s, definition FROM dropped
    ON CONFLICT DO NOTHING
)
SELECT view_id FROM dropped;

-- name: drop_lists
DELETE FROM features.top_lists WHERE view_id = %(view_id)s;

-- name: drop_round
DELETE FROM features.top_list_rounds WHERE view_id = %(view_id)s;

-- name: lock_partitions
SELECT partitions FROM features.settings FOR UPDATE;

-- name: list_running (partitions of the stage whose owners live)
SELECT l.partition FROM meta.leases l
JOIN pg_stat_activity a ON a.pid = l.pid AND a.backend_start = l.backend_start
WHERE l.task = 'features' AND l.expires_at > clock_timestamp();

-- name: put_partitions
UPDATE features.settings
SET partitions = %(partitions)s, moved_to_ms = CASE WHEN partitions IS NOT NULL THEN (SELECT max(minute_ms) FROM features.seen) END;

-- name: put_unread
INSERT INTO features.unread (partition, next_offset, profile_offset)
VALUES (%(partition)s, %(next_offset)s, %(profile_offset)s)
ON CONFLICT (partition) DO UPDATE SET next_offset = EXCLUDED.next_offset, profile_offset = EXCLUDED.profile_offset;

-- name: read_unread (without those that have been read so far. First come those with unread profiles, but no event more of them:
-- who begins reads profiles to the end, and events of their users may lie in any of the others)
WITH state AS (
    SELECT u.partition, u.next_offset, coalesce(e.next_offset, 0) AS applied,
           coalesce(p.next_offset, 0) < u.profile_offset AS profiles
    FROM features.unread u
    LEFT JOIN meta.positions e ON e.task = 'features' AND e.topic = 'behavior' AND e.partition = u.partition
    LEFT JOIN meta.positions p ON p.task = 'features' AND p.topic = 'profile' AND p.partition = u.partition
)
SELECT partition, CASE WHEN profiles THEN applied ELSE next_offset END FROM state
WHERE profiles OR (applied < next_offset AND NOT EXISTS (SELECT FROM state WHERE profiles));

-- name: raise_moved (what others of them have counted meanwhile has to be known too)
UPDATE features.settings SET moved_to_ms = (SELECT max(minute_ms) FROM features.seen)
WHERE EXISTS (SELECT FROM features.unread);

-- name: forget_unread
DELETE FROM features.unread;

-- name: list_profiled_users
SELECT user_id FROM features.profiles GROUP BY user_id ORDER BY user_id;

-- name: move_profiles
UPDATE features.profiles p SET partition = n.partition
FROM unnest(%(user_ids)s::bigint[], %(partitions)s::int[]) AS n (user_id, partition)
WHERE p.user_id = n.user_id AND p.partition <> n.partition;

-- name: read_starts
SELECT partition, next_offset, complete_from_ms FROM features.view_starts WHERE view_id = %(view_id)s ORDER BY partition;

-- name: list_slices
SELECT from_ms FROM features.backfills WHERE view_id = %(view_id)s;

-- name: add_slice
INSERT INTO features.backfills (view_id, from_ms) VALUES (%(view_id)s, %(from_ms)s) ON CONFLICT DO NOTHING;

-- name: overtake_lists (whoever makes them goes on from tiles that do not have the past; until they are made anew, nobody reads
-- them: a round that is as old as this is stale, and who knows only the one before has to begin anew)
INSERT INTO features.top_list_rounds AS r (view_id, as_of_ms, offsets, rebuilt_at, round)
VALUES (%(view_id)s, 0, '{}', '-infinity', 1)
ON CONFLICT (view_id) DO UPDATE SET rebuilt_at = EXCLUDED.rebuilt_at, round = r.round + 1;

-- name: complete_view
UPDATE features.view_starts SET complete_from_ms = %(complete_from_ms)s
WHERE view_id = %(view_id)s AND complete_from_ms > %(complete_from_ms)s;
