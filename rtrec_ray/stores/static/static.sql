-- name: read_state
SELECT offsets, as_of_day, stale, kept_from FROM features.daily_state;

-- name: read_values (one statement: the day and the values are of one run)
SELECT s.as_of_day, v.key, v.impression_1d, v.click_1d, v.view_1d, v.favorite_1d, v.cart_1d, v.consult_1d, v.comment_1d,
       v.search_1d, v.click_rate_1d, v.impression_7d, v.click_7d, v.view_7d, v.favorite_7d, v.cart_7d, v.consult_7d,
       v.comment_7d, v.search_7d, v.click_rate_7d
FROM features.daily_state s
LEFT JOIN features.daily_values v ON v.entity = %(entity)s AND v.key = ANY(%(keys)s::bigint[]);

-- name: read_counts (one statement: a run that drops days in between would leave a part of the window)
SELECT s.kept_from, c.day, c.entity, c.key, c.impression, c.click, c.view, c.favorite, c.cart, c.consult, c.comment, c.search
FROM features.daily_state s
LEFT JOIN features.daily_counts c
    ON c.day = ANY(%(days)s::date[]) AND c.entity = %(entity)s AND c.key = ANY(%(keys)s::bigint[]);

-- name: read_taken_back (one statement, as read_counts)
SELECT s.kept_from, t.user_id, t.minute, t.event_id
FROM features.daily_state s
LEFT JOIN features.daily_taken_back t ON t.minute >= %(from_minute)s AND t.minute < %(to_minute)s;

-- name: read_pending
SELECT day FROM features.daily_days WHERE pending AND day <= %(upto)s ORDER BY day;

-- name: read_days
SELECT day FROM features.daily_days ORDER BY day;

-- name: make_aside (of this session alone: whoever dies leaves nothing)
CREATE TEMP TABLE daily_aside (LIKE features.daily_counts);
CREATE TEMP TABLE daily_noted (LIKE features.daily_taken_back);

-- name: note_taken_back
INSERT INTO features.daily_taken_back SELECT * FROM pg_temp.daily_noted ON CONFLICT DO NOTHING;
TRUNCATE pg_temp.daily_noted;

-- name: note_days
INSERT INTO features.daily_days (day, pending) SELECT day, true FROM unnest(%(days)s::date[]) AS day
ON CONFLICT (day) DO UPDATE SET pending = true;

-- name: note_offsets
UPDATE features.daily_state SET offsets = %(offsets)s;

-- name: replace_day
DELETE FROM features.daily_counts WHERE day = %(day)s;
INSERT INTO features.daily_counts
SELECT day, entity, key, sum(impression), sum(click), sum(view), sum(favorite), sum(cart), sum(consult), sum(comment),
       sum(search)
FROM pg_temp.daily_aside WHERE day = %(day)s
GROUP BY day, entity, key ORDER BY day, entity, key;
INSERT INTO features.daily_days (day, pending) VALUES (%(day)s, false)
ON CONFLICT (day) DO UPDATE SET pending = false;
UPDATE features.daily_state SET stale = true
WHERE NOT stale AND %(day)s BETWEEN as_of_day - %(longest)s AND as_of_day;

-- name: empty_aside
TRUNCATE pg_temp.daily_aside;

-- name: read_window (by key, so that each key's rows come together)
SELECT day, entity, key, impression, click, view, favorite, cart, consult, comment, search
FROM features.daily_counts WHERE day BETWEEN %(first)s AND %(last)s ORDER BY entity, key;

-- name: drop_values
DELETE FROM features.daily_values;

-- name: put_as_of_day
UPDATE features.daily_state
SET as_of_day = %(as_of_day)s, stale = false, kept_from = greatest(kept_from, %(kept_from)s::date);

-- name: drop_days (before the first one that is kept)
DELETE FROM features.daily_counts WHERE day < %(kept_from)s::date;
DELETE FROM features.daily_days WHERE day < %(kept_from)s::date;
DELETE FROM features.daily_taken_back WHERE minute < %(minute)s::bigint;
