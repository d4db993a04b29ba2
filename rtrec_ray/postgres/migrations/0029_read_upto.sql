-- Which profiles and items stood behind a read of them: serving logs it, and `rtrec features verify` recomputes from it.
ALTER TABLE features.partitions ADD COLUMN profile_offset bigint, ADD COLUMN item_offset bigint;
COMMENT ON COLUMN features.partitions.profile_offset IS
    'Of the topic profile in this partition, the offset after the last version in features.profiles; null: before this column.';
COMMENT ON COLUMN features.partitions.item_offset IS
    'Of the topic item in this partition, the offset after the last version in features.items; null: before this column.';
