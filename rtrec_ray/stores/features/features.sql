-- name: read_change
SELECT change FROM features.settings;

-- name: part_behind (the first part of a read of values: what is live, from when on tiles are kept if $1, which offsets are behind
-- the tiles. The parts of a read are put together as one statement, so all is of one moment. $2 to $5: asks of tiles, their views,
-- keys, spans from, to; $6, $7: the widest span; $8, $9: asks of lists, their views, keys; $10: ms for which lists are fresh)
SELECT 'behind' AS part, 0 AS view_id, (SELECT change::text FROM features.settings) AS key,
       CASE WHEN $1 THEN features.kept_upto()::text END AS starts,
       (SELECT json_object_agg(partition, next_offset)::text FROM features.partitions) AS states;

-- name: part_rounds (which lists are fresh)
SELECT 'round', r.view_id, NULL, r.as_of_ms::text, r.offsets::text FROM features.top_list_rounds r
WHERE r.view_id = ANY ($8) AND r.rebuilt_at > clock_timestamp() - $10 * interval '1 ms';

-- name: part_lists
SELECT 'list', l.view_id, l.key, NULL, l.value
FROM unnest($8, $9) AS a (view_id, key)
JOIN features.top_lists l ON l.view_id = a.view_id AND l.key = a.key;

-- name: part_tiles (the widest span rules out partitions before anything is opened; a row's text is a timed_state)
SELECT 'tiles', a.view_id, a.key, NULL, t.rows
FROM unnest($2, $3, $4, $5) AS a (view_id, key, from_ms, to_ms)
CROSS JOIN LATERAL (
    SELECT string_agg('[' || t.tile_start_ms || ',' || substr(t.state, 2), ',') AS rows FROM features.tiles t
    WHERE t.view_id = a.view_id AND t.key = a.key AND t.tile_start_ms >= a.from_ms AND t.tile_start_ms < a.to_ms
          AND t.tile_start_ms >= $6 AND t.tile_start_ms < $7
) t
WHERE t.rows IS NOT NULL;

-- name: logged_tiles (offsets, and what commits added behind others; of one moment. lost: the log has not all of that; tiles are
-- null if all of them together have more rows than most)
SELECT p.partition, p.next_offset,
       p.log_from_offset > coalesce(c.after, 0) OR p.logged_upto_offset < p.next_offset AS lost, l.height,
       CASE WHEN sum(l.height) OVER () <= coalesce(%(most)s, sum(l.height) OVER ()) THEN l.tiles END
FROM features.partitions p
LEFT JOIN unnest(%(partitions)s::int[], %(after)s::bigint[]) AS c (partition, after) USING (partition)
LEFT JOIN LATERAL (
    SELECT height, tiles FROM features.tile_log l
    WHERE l.partition = p.partition AND l.next_offset > coalesce(c.after, 0) AND l.cached = %(cached)s
          AND l.newest_tile_ms >= %(from_ms)s OFFSET 0
) l ON true;

-- name: window_tiles (offsets and rows of one moment; a row without a key is the offset of its partition)
SELECT p.partition, p.next_offset, 0 AS view_id, NULL AS key, 0 AS tile_start_ms, NULL AS state FROM features.partitions p
UNION ALL (
    SELECT NULL, NULL, t.view_id, t.key, t.tile_start_ms, t.state FROM features.tiles t
    WHERE t.view_id = ANY (%(views)s::int[]) AND t.tile_start_ms >= %(from_ms)s LIMIT %(most)s
);

-- name: news
SELECT (SELECT change FROM features.settings),
       (SELECT json_object_agg(partition, next_offset)::text FROM features.partitions),
       (SELECT json_agg(json_build_object(
            'view_id', view_id, 'as_of_ms', as_of_ms, 'offsets', offsets, 'round', round,
            'fresh', rebuilt_at > clock_timestamp() - %(fresh_ms)s * interval '1 ms'))::text
        FROM features.top_list_rounds);

-- name: news_of_lists (all keys: one that is missing has no list any more)
SELECT l.view_id, l.key, CASE WHEN l.round > k.round THEN l.value END
FROM unnest(%(views)s::int[], %(rounds)s::bigint[]) AS k (view_id, round) JOIN features.top_lists l USING (view_id);

-- name: list_rounds
SELECT view_id, round FROM features.top_list_rounds;

-- name: put_round (before the lists: whoever else writes waits here, and then finds that its lists are of an older round)
INSERT INTO features.top_list_rounds AS r (view_id, as_of_ms, offsets, rebuilt_at, round)
SELECT %(view_id)s, %(as_of_ms)s, %(offsets)s, clock_timestamp(), %(round)s
WHERE %(before)s = 0 OR EXISTS (SELECT FROM features.top_list_rounds WHERE view_id = %(view_id)s)
ON CONFLICT (view_id) DO UPDATE
SET as_of_ms = EXCLUDED.as_of_ms, offsets = EXCLUDED.offsets, rebuilt_at = EXCLUDED.rebuilt_at, round = EXCLUDED.round
WHERE r.round = %(before)s;

-- name: put_lists (an unchanged list is not written again)
INSERT INTO features.top_lists (view_id, key, value, round)
SELECT %(view_id)s, *, %(round)s
FROM unnest(%(keys)s::text[], %(values)s::text[])
ON CONFLICT (view_id, key) DO UPDATE SET value = EXCLUDED.value, round = EXCLUDED.round
WHERE features.top_lists.value IS DISTINCT FROM EXCLUDED.value;

-- name: drop_lists
DELETE FROM features.top_lists WHERE view_id = %(view_id)s AND key = ANY (%(keys)s::text[]);

-- name: drop_other_lists
DELETE FROM features.top_lists WHERE view_id = %(view_id)s AND NOT key = ANY (%(keys)s::text[]);

-- name: get_profiles (the newest version that held, beside the offsets behind it; a row of offsets alone when there is none)
SELECT (SELECT CASE WHEN bool_and(profile_offset IS NOT NULL) THEN json_object_agg(partition, profile_offset)::text END
        FROM features.partitions), p.*
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT DISTINCT ON (user_id) user_id, ts_ms, country, gender, city, age_band
    FROM features.profiles WHERE user_id = ANY (%(user_ids)s) AND ts_ms <= %(as_of_ms)s
    ORDER BY user_id, ts_ms DESC
) p ON true;

-- name: get_profile_versions
SELECT user_id, ts_ms, country, gender, city, age_band FROM features.profiles WHERE user_id = ANY (%(user_ids)s);

-- name: get_items
SELECT item_id, ts_ms, item_type, category_id, title FROM features.items WHERE item_id = ANY (%(item_ids)s);

-- name: list_items
SELECT item_id, ts_ms, item_type, category_id, title FROM features.items ORDER BY item_id;

-- name: item_offsets
SELECT CASE WHEN bool_and(item_offset IS NOT NULL) THEN json_object_agg(partition, item_offset)::text END
FROM features.partitions;

-- name: load_partition (of one that was never committed, nulls; and whether partitions of before are read one after another)
SELECT p.watermark_ms, p.seen_from_ms, EXISTS (SELECT FROM features.unread)
FROM (VALUES (1)) AS one LEFT JOIN features.partitions p ON p.partition = %(partition)s;

-- name: list_seen (by minute the partitions to load: of a user who moved, what came in the other one too)
SELECT minute_ms, array_agg(DISTINCT partition) FROM features.seen
WHERE partition = %(partition)s OR minute_ms <= (SELECT moved_to_ms FROM features.settings) GROUP BY minute_ms ORDER BY minute_ms;

-- name: load_seen
SELECT hashes FROM features.seen WHERE minute_ms = %(minute_ms)s AND partition = ANY (%(partitions)s);

-- name: load_profiles (those that an event may have, which is no older than asked_from_ms; null: however old. In the order of the index)
SELECT user_id, ts_ms, country, gender, city, age_band
FROM (
    SELECT *, lead(ts_ms) OVER (PARTITION BY partition, user_id ORDER BY ts_ms) AS next_ms FROM features.profiles
    WHERE partition BETWEEN %(first)s AND %(last)s
) p
WHERE (next_ms > %(asked_from_ms)s::bigint) IS NOT FALSE;

-- name: ensure_tiles
SELECT features.ensure_tiles(%(hours)s);

-- name: forget_seen (what came before partitions were added only when none of them asks any more: each loads all of that)
DELETE FROM features.seen
WHERE partition = %(partition)s AND minute_ms <= %(to_minute_ms)s
      AND (minute_ms > coalesce((SELECT moved_to_ms FROM features.settings), minute_ms - 1) OR minute_ms + 60000 <= (
          SELECT CASE WHEN count(*) >= (SELECT partitions FROM features.settings) THEN min(coalesce(seen_from_ms, 0)) END
          FROM features.partitions WHERE NOT EXISTS (SELECT FROM features.unread)
      ));

-- name: put_partition (and forget what was logged long ago: no entry below log_from_offset is looked at, for as long as somebody
-- holds an old snapshot all of them are still there. What somebody wrote who did not log it is a gap of the log: nobody asks for
-- what was logged before it)
WITH before AS (
    SELECT coalesce(max(log_from_offset), 0) AS log_from,
           max(next_offset) FILTER (WHERE logged_upto_offset < next_offset) AS gap
    FROM features.partitions WHERE partition = %(partition)s
), forgotten AS (
    DELETE FROM features.tile_log
    WHERE partition = %(partition)s AND next_offset > (SELECT log_from FROM before)
          AND next_offset < coalesce((SELECT gap + 1 FROM before), (
              SELECT next_offset FROM features.tile_log
              WHERE partition = %(partition)s AND next_offset > (SELECT log_from FROM before)
                    AND logged_at >= clock_timestamp() - %(logged_s)s * interval '1 s'
              ORDER BY partition, next_offset LIMIT 1
          ), 9223372036854775807)
    RETURNING next_offset
)
INSERT INTO features.partitions AS p
    (partition, watermark_ms, next_offset, seen_from_ms, profile_offset, item_offset, log_from_offset, logged_upto_offset)
SELECT %(partition)s, %(watermark_ms)s, %(next_offset)s, %(seen_from_ms)s, %(profile_offset)s, %(item_offset)s,
       coalesce(max(next_offset), 0), CASE WHEN %(logged)s THEN %(next_offset)s ELSE 0 END
FROM forgotten
ON CONFLICT (partition) DO UPDATE
SET watermark_ms = EXCLUDED.watermark_ms, next_offset = EXCLUDED.next_offset, seen_from_ms = EXCLUDED.seen_from_ms,
    profile_offset = EXCLUDED.profile_offset, item_offset = EXCLUDED.item_offset,
    log_from_offset = greatest(p.log_from_offset, EXCLUDED.log_from_offset,
                               CASE WHEN p.logged_upto_offset < p.next_offset THEN p.next_offset END),
    logged_upto_offset = CASE WHEN %(logged)s THEN EXCLUDED.next_offset ELSE p.logged_upto_offset END
RETURNING (SELECT change FROM features.settings);

-- name: put_profiles
INSERT INTO features.profiles (user_id, ts_ms, country, gender, city, age_band, partition)
SELECT *, %(partition)s
FROM unnest(%(user_id)s::bigint[], %(ts)s::bigint[], %(country)s::text[], %(gender)s::text[], %(city)s::text[],
            %(age_band)s::text[])
ON CONFLICT (user_id, ts_ms) DO UPDATE
SET country = EXCLUDED.country, gender = EXCLUDED.gender, city = EXCLUDED.city, age_band = EXCLUDED.age_band,
    partition = EXCLUDED.partition;

-- name: put_items (an older version never replaces a newer one)
INSERT INTO features.items (item_id, ts_ms, item_type, category_id, title)
SELECT * FROM unnest(%(item_id)s::bigint[], %(ts)s::bigint[], %(item_type)s::text[], %(category_id)s::bigint[],
                     %(title)s::text[])
ON CONFLICT (item_id) DO UPDATE
SET ts_ms = EXCLUDED.ts_ms, item_type = EXCLUDED.item_type, category_id = EXCLUDED.category_id, title = EXCLUDED.title
WHERE EXCLUDED.ts_ms >= features.items.ts_ms;

-- name: history_lacks (whether the history lacks an event that may count for these keys in [from_ms, to_ms): its tiles tell, where the
-- view had begun by then)
SELECT EXISTS (
    SELECT FROM features.partitions p
    LEFT JOIN meta.positions h ON h.task = 'history' AND h.topic = 'behavior' AND h.partition = p.partition
    LEFT JOIN features.view_starts s ON s.view_id = %(view_id)s AND s.partition = p.partition
    CROSS JOIN LATERAL (SELECT coalesce(h.next_offset, 0) AS upto) k
    WHERE k.upto < p.next_offset AND (k.upto < coalesce(s.next_offset, p.next_offset) OR EXISTS (
        SELECT FROM features.tiles t
        WHERE t.view_id = %(view_id)s AND t.partition = p.partition AND t.next_offset > k.upto
              AND t.key = ANY (%(keys)s::text[]) AND t.tile_start_ms >= %(from_ms)s AND t.tile_start_ms < %(to_ms)s
    ))
);

-- name: list_tile_partitions
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'features.tiles'::regclass ORDER BY c.relname;

-- name: kept_upto
SELECT features.kept_upto();

-- name: raise_kept_upto
SELECT features.raise_kept_upto();

-- name: patience (dropping a partition locks all readers out while it waits: better to try again later)
SET LOCAL lock_timeout = '200ms';

-- name: drop_partition
DROP TABLE IF EXISTS features.{partition};
