-- A reader may keep windows in its own memory, by what commits add. So it follows the tiles of all views, each view apart, and
-- the lists of each, where a round says whether there is anything new and a list in which round it changed last.
UPDATE features.tiles SET next_offset = 0 WHERE next_offset IS NULL;
ALTER TABLE features.tiles ALTER COLUMN next_offset SET NOT NULL;
COMMENT ON COLUMN features.tiles.next_offset IS 'The behaviour offset after the last record behind the row; 0: it came before, or by a backfill.';
DROP INDEX features.tiles_of_lists;
CREATE INDEX tiles_behind ON features.tiles (view_id, partition, next_offset);

ALTER TABLE features.top_list_rounds ADD COLUMN round bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.top_list_rounds.round IS 'How many rounds there were.';
ALTER TABLE features.top_lists ADD COLUMN round bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN features.top_lists.round IS 'The round in which the list changed last.';
