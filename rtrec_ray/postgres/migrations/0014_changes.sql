-- Definitions may change while the system runs: what is live is a matter of these tables, not of a file.
CREATE TABLE features.settings (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    tile_ms bigint NOT NULL,
    horizon_ms bigint NOT NULL,
    retention_ms bigint NOT NULL,
    tiles_from_ms bigint,
    change bigint NOT NULL DEFAULT 1
) WITH (fillfactor = 50);
COMMENT ON TABLE features.settings IS 'The times that all views share, and the number of the last change.';
COMMENT ON COLUMN features.settings.one IS 'There is one row.';
COMMENT ON COLUMN features.settings.tile_ms IS 'Length of a tile, ms of event time.';
COMMENT ON COLUMN features.settings.horizon_ms IS 'An event that much behind the watermark still corrects, ms.';
COMMENT ON COLUMN features.settings.retention_ms IS 'Tiles are kept that long behind the watermark, ms.';
COMMENT ON COLUMN features.settings.tiles_from_ms IS 'Older tiles were dropped before the retention was raised, ms UTC.';
COMMENT ON COLUMN features.settings.change IS 'Rises with each change of what is live: whoever knows another number reads anew.';

ALTER TABLE features.views ADD COLUMN live boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN features.views.live IS 'Whether the stream computes it.';
COMMENT ON TABLE features.views IS 'Every version of every feature view that was applied and not dropped.';

CREATE TABLE features.view_starts (
    view_id int NOT NULL REFERENCES features.views ON DELETE CASCADE,
    partition int NOT NULL,
    next_offset bigint NOT NULL,
    complete_from_ms bigint,
    PRIMARY KEY (view_id, partition)
);
COMMENT ON TABLE features.view_starts IS 'Where the stream began to count in a view; what came before is for a backfill.';
COMMENT ON COLUMN features.view_starts.view_id IS 'features.views.';
COMMENT ON COLUMN features.view_starts.partition IS 'Kafka partition.';
COMMENT ON COLUMN features.view_starts.next_offset IS 'The first behaviour offset that counts in the view.';
COMMENT ON COLUMN features.view_starts.complete_from_ms IS 'Tiles from then on have all events, ms UTC; null: all tiles.';

ALTER TABLE features.partitions ADD COLUMN seen_from_ms bigint;
COMMENT ON COLUMN features.partitions.seen_from_ms IS 'Of events from then on it is known whether they came, ms UTC; older ones cannot be corrected any more.';
