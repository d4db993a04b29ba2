-- Top lists are kept by adding what came since the last round, not by reading whole windows again. The tiles of one commit of a
-- partition become visible together and their offsets only rise, so "behind offset n of partition p" misses nothing.
ALTER TABLE features.tiles ADD COLUMN next_offset bigint;
COMMENT ON COLUMN features.tiles.next_offset IS 'Of views with lists: the behaviour offset after the last record behind the row. Null for other views.';
UPDATE features.tiles t SET next_offset = 0 FROM features.views v
WHERE v.view_id = t.view_id AND (v.definition::jsonb -> 'view' ->> 'cached')::boolean;
CREATE INDEX tiles_of_lists ON features.tiles (partition, next_offset) WHERE next_offset IS NOT NULL;

ALTER TABLE features.partitions ADD COLUMN next_offset bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.partitions.next_offset IS 'The behaviour offset after the last record behind the tiles.';

ALTER TABLE features.top_list_rounds ADD COLUMN offsets jsonb NOT NULL DEFAULT '{}';
COMMENT ON COLUMN features.top_list_rounds.offsets IS 'Partition → behaviour offset after the last record behind the lists.';
