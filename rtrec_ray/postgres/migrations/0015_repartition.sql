-- Profiles are loaded by the partition of their users' events, which is another one after partitions were added.
ALTER TABLE features.settings ADD COLUMN partitions int;
COMMENT ON COLUMN features.settings.partitions IS 'Number of partitions by which features.profiles are told apart.';
