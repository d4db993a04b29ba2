-- After partitions were added, an event that comes again, or its retraction, may come in another partition than it did.
ALTER TABLE features.settings ADD COLUMN moved_to_ms bigint;
COMMENT ON COLUMN features.settings.moved_to_ms IS
    'Events of minutes up to this one (ms UTC) may have come in another partition than their users'' events come in now; null: none.';
