CREATE TABLE features.backfills (
    view_id int NOT NULL REFERENCES features.views ON DELETE CASCADE,
    from_ms bigint NOT NULL,
    PRIMARY KEY (view_id, from_ms)
);
COMMENT ON TABLE features.backfills IS 'Slices of event time whose events from before a view began are in its tiles, written with these.';
COMMENT ON COLUMN features.backfills.view_id IS 'features.views.';
COMMENT ON COLUMN features.backfills.from_ms IS 'Start of the slice, ms UTC; all slices are equally long.';
