-- A tile's state begins with the number of its events, so that a key whose events were all taken back is as if it had
-- never had any. Rows without that number cannot be read, so views begin anew where their tasks have come to, and values
-- as of a time before that have too little until it is beyond retention. What was seen goes too: its hashes had no bit that
-- tells what was taken back, and a retraction of an event without a tile would count below zero.
TRUNCATE features.tiles, features.seen;
COMMENT ON COLUMN features.tiles.state IS 'JSON list: number of events, then the partial of each aggregation, in the order of the definition. Rows add up; a retraction is a row of the opposite sign.';
COMMENT ON TABLE features.seen IS 'Which events were counted and which were taken back, so that either happens once.';
COMMENT ON COLUMN features.seen.hashes IS '64-bit hashes of event_id, little endian, eight bytes each; even: it came, odd: it was taken back.';
