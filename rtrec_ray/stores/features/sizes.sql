-- name: add_sizes
INSERT INTO features.sizes AS s (hour, view_id, partition, rows, bytes)
SELECT n.hour, n.view_id, %(partition)s, n.rows, n.bytes
FROM unnest(%(hours)s::bigint[], %(view_ids)s::int[], %(rows)s::bigint[], %(bytes)s::bigint[]) AS n (hour, view_id, rows, bytes)
ON CONFLICT (hour, view_id, partition) DO UPDATE SET rows = s.rows + EXCLUDED.rows, bytes = s.bytes + EXCLUDED.bytes;

-- name: forget_hour
DELETE FROM features.sizes WHERE hour = %(hour)s;

-- name: read_sizes
SELECT v.name || '@' || v.version, coalesce(sum(s.rows), 0)::bigint, coalesce(sum(s.bytes), 0)::bigint, min(s.hour),
       (SELECT count(*) FROM features.top_lists l WHERE l.view_id = v.view_id)
FROM features.views v LEFT JOIN features.sizes s USING (view_id)
WHERE v.live GROUP BY v.view_id ORDER BY v.view_id;
