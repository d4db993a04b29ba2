-- Whole ms of the machine, as the clock of the other processes has them: a run's end is not after the event that tells of it.
CREATE OR REPLACE FUNCTION meta.event_ms(wall timestamptz) RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT round(coalesce(clock.origin_event_ms + (at.wall_ms - clock.origin_wall_ms) * clock.speed, at.wall_ms))::bigint
    FROM (SELECT floor(extract(epoch FROM wall) * 1000) AS wall_ms) AS at LEFT JOIN meta.clock ON true
$$;
