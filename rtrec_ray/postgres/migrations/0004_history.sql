CREATE TABLE meta.history_files (
    path text PRIMARY KEY,
    topic text NOT NULL,
    partition int NOT NULL,
    event_date date NOT NULL,
    event_hour smallint NOT NULL CHECK (event_hour BETWEEN 0 AND 23),
    row_count bigint NOT NULL,
    byte_count bigint NOT NULL,
    min_offset bigint NOT NULL,
    max_offset bigint NOT NULL,
    min_ts_ms bigint NOT NULL,
    max_ts_ms bigint NOT NULL,
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    replaced_at timestamptz
);
CREATE INDEX history_files_by_time ON meta.history_files (topic, max_ts_ms) WHERE replaced_at IS NULL;
CREATE INDEX history_files_by_hour ON meta.history_files (topic, event_date, event_hour) WHERE replaced_at IS NULL;
COMMENT ON TABLE meta.history_files IS
    'The history''s files: one that has no row here does not exist, so rows are committed with the positions they cover.';
COMMENT ON COLUMN meta.history_files.path IS 'Path below the history''s root.';
COMMENT ON COLUMN meta.history_files.topic IS 'Kafka topic of its records.';
COMMENT ON COLUMN meta.history_files.partition IS 'Kafka partition of its records.';
COMMENT ON COLUMN meta.history_files.event_date IS 'UTC date of its records'' event time.';
COMMENT ON COLUMN meta.history_files.event_hour IS 'UTC hour of its records'' event time.';
COMMENT ON COLUMN meta.history_files.row_count IS 'Number of records.';
COMMENT ON COLUMN meta.history_files.byte_count IS 'Size of the file, bytes.';
COMMENT ON COLUMN meta.history_files.min_offset IS 'Smallest Kafka offset in it.';
COMMENT ON COLUMN meta.history_files.max_offset IS 'Largest Kafka offset in it; late records make ranges of files overlap.';
COMMENT ON COLUMN meta.history_files.min_ts_ms IS 'Smallest event time in it, ms UTC.';
COMMENT ON COLUMN meta.history_files.max_ts_ms IS 'Largest event time in it, ms UTC.';
COMMENT ON COLUMN meta.history_files.added_at IS 'When the file became visible.';
COMMENT ON COLUMN meta.history_files.replaced_at IS 'When a compacted file took its place; its records are no longer read from here.';
