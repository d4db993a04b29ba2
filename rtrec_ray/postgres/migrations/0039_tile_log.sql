-- Readers that keep windows or lists in their own memory take up what each commit added, whole, instead of looking for it among
-- all tiles: an index of these by offset cost more than writing the rows.
CREATE TABLE features.tile_log (
    partition int NOT NULL,
    cached boolean NOT NULL,
    next_offset bigint NOT NULL,
    logged_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    newest_tile_ms bigint NOT NULL,
    height int NOT NULL,
    tiles bytea NOT NULL
);
ALTER TABLE features.tile_log ALTER COLUMN tiles SET STORAGE EXTERNAL; -- compressing takes longer than writing, and it is gone soon
CREATE INDEX tile_log_by_offset ON features.tile_log (partition, next_offset, cached);
COMMENT ON TABLE features.tile_log IS 'The rows of features.tiles that each commit of the last minute added.';
COMMENT ON COLUMN features.tile_log.partition IS 'Kafka partition the events came from.';
COMMENT ON COLUMN features.tile_log.cached IS 'Whether it has the views whose lists are cached, or those that are added up by the reader.';
COMMENT ON COLUMN features.tile_log.next_offset IS 'The behaviour offset after the last record behind the commit.';
COMMENT ON COLUMN features.tile_log.logged_at IS 'When, by this server''s clock.';
COMMENT ON COLUMN features.tile_log.newest_tile_ms IS 'The largest tile_start_ms of its rows, ms UTC.';
COMMENT ON COLUMN features.tile_log.height IS 'How many rows there are.';
COMMENT ON COLUMN features.tile_log.tiles IS 'MessagePack: view_id → lists of keys, tile_start_ms, states.';

ALTER TABLE features.partitions ADD COLUMN log_from_offset bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.partitions.log_from_offset IS 'features.tile_log has all that came behind this behaviour offset.';
ALTER TABLE features.partitions ADD COLUMN logged_upto_offset bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.partitions.logged_upto_offset IS 'next_offset, unless the last commit is not in features.tile_log.';
UPDATE features.partitions SET log_from_offset = next_offset, logged_upto_offset = next_offset;

DROP INDEX features.tiles_behind;
