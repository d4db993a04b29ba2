-- When partitions are added, the profiles that wait in those of before are read first.
ALTER TABLE features.unread ADD COLUMN profile_offset bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.unread.profile_offset IS 'Offset of the profiles at which their log ended then.';

-- A user's versions one after another, for who asks which of them the next one has superseded.
DROP INDEX features.profiles_by_partition;
CREATE INDEX profiles_by_partition ON features.profiles (partition, user_id, ts_ms);

-- Samples and the inference log name a version of a view, and go on doing so when it is dropped.
CREATE TABLE features.dropped_views (
    name text COLLATE "C" NOT NULL,
    version int NOT NULL,
    definition text NOT NULL,
    PRIMARY KEY (name, version)
);
COMMENT ON TABLE features.dropped_views IS 'What versions meant that are live no longer; none may be applied again with another meaning.';
COMMENT ON COLUMN features.dropped_views.name IS 'Name of the feature view.';
COMMENT ON COLUMN features.dropped_views.version IS 'Its version.';
COMMENT ON COLUMN features.dropped_views.definition IS 'As in features.views.';
