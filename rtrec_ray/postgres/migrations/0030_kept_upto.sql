-- By which mark tiles are dropped, left out and taken for whole must be one, and never fall: as it was computed at each use, it
-- fell when a partition's history began later than the tiles of others.
ALTER TABLE features.settings ADD COLUMN kept_upto_ms bigint;
COMMENT ON COLUMN features.settings.kept_upto_ms IS
    'The event time, ms UTC, by which retention is measured: of tiles older than it less the retention the history has the events. Null: all tiles are there.';
UPDATE features.settings SET kept_upto_ms = features.kept_upto();

CREATE OR REPLACE FUNCTION features.kept_upto() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT kept_upto_ms FROM features.settings;
$$;
COMMENT ON FUNCTION features.kept_upto IS 'What features.raise_kept_upto has come to.';

-- A partition whose events are all in the history holds nothing up; one that is behind does, up to where its history is.
CREATE FUNCTION features.raise_kept_upto() RETURNS bigint LANGUAGE sql AS $$
    WITH stages AS (
        SELECT f.watermark_ms, h.watermark_ms AS history_ms, coalesce(p.next_offset, 0) < f.next_offset AS behind
        FROM features.partitions f
        LEFT JOIN meta.progress h ON h.task = 'history' AND h.partition = f.partition
        LEFT JOIN meta.positions p ON p.task = 'history' AND p.topic = 'behavior' AND p.partition = f.partition
    ), mark AS (
        SELECT CASE WHEN NOT bool_or(behind AND history_ms IS NULL)
                    THEN least(max(watermark_ms), min(history_ms) FILTER (WHERE behind)) END AS ms
        FROM stages
    )
    UPDATE features.settings SET kept_upto_ms = greatest(kept_upto_ms, mark.ms) FROM mark RETURNING kept_upto_ms;
$$;
COMMENT ON FUNCTION features.raise_kept_upto IS 'Let retention follow the tiles and the history; what it has come to, ms UTC.';
