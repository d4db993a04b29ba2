-- Counted by who writes: to count the rows of the tiles themselves would read them all.
CREATE TABLE features.sizes (
    hour bigint NOT NULL,
    view_id int NOT NULL,
    partition int NOT NULL,
    rows bigint NOT NULL,
    bytes bigint NOT NULL,
    PRIMARY KEY (hour, view_id, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE features.sizes IS 'What each view keeps in each table of features.tiles; dropped with that table.';
COMMENT ON COLUMN features.sizes.hour IS 'tile_start_ms divided by an hour, as in the name of the table.';
COMMENT ON COLUMN features.sizes.view_id IS 'Of features.views.';
COMMENT ON COLUMN features.sizes.partition IS 'Kafka partition of the events.';
COMMENT ON COLUMN features.sizes.rows IS 'Rows of tiles.';
COMMENT ON COLUMN features.sizes.bytes IS 'Bytes of their keys and states, without PostgreSQL''s own.';

INSERT INTO features.sizes (hour, view_id, partition, rows, bytes)
SELECT floor(tile_start_ms / 3600000.0), view_id, partition, count(*), sum(octet_length(key) + octet_length(state))
FROM features.tiles GROUP BY 1, 2, 3;
