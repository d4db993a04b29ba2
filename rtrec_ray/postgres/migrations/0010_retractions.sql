-- A tile's state begins with the number of its events, so that a key whose events were all taken back is as if it had
-- never had any. Rows without that number cannot be read; what they counted is gone within the longest window anyway.
TRUNCATE features.tiles;
COMMENT ON COLUMN features.tiles.state IS 'JSON list: number of events, then the partial of each aggregation, in the order of the definition. Rows add up; a retraction is a row of the opposite sign.';
COMMENT ON TABLE features.seen IS 'Which events were counted and which were taken back, so that either happens once.';
COMMENT ON COLUMN features.seen.hashes IS '64-bit hashes of event_id, little endian, eight bytes each; even: it came, odd: it was taken back.';
