-- Events become tiles at once, but files only with the history's next commit; a log that is replayed faster than time
-- passes could drop tiles whose events no file has yet.
CREATE FUNCTION features.kept_upto() RETURNS bigint LANGUAGE sql STABLE AS $$
    SELECT least((SELECT max(watermark_ms) FROM features.partitions),
                 (SELECT min(watermark_ms) FROM meta.progress WHERE task = 'history'));
$$;
COMMENT ON FUNCTION features.kept_upto IS
    'The event time, ms UTC, by which retention is measured: tiles older than it less the retention may be dropped, for the history has their events.';
