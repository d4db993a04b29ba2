-- An event is named by its user, not by its partition: after partitions were added, a copy of it or its retraction comes in
-- another one.

-- What was noted has no users. The next run of the static features notes all retractions of the history again and counts
-- its days anew, in which copies and retractions may have been missed.
DROP INDEX features.daily_taken_back_once;
TRUNCATE features.daily_taken_back;
ALTER TABLE features.daily_taken_back DROP COLUMN partition, ADD COLUMN user_id bigint NOT NULL;
CREATE UNIQUE INDEX daily_taken_back_once ON features.daily_taken_back (minute, user_id, md5(event_id));
COMMENT ON COLUMN features.daily_taken_back.user_id IS 'User of the event and of its retraction.';
UPDATE features.daily_state SET offsets = '{}';

-- The hashes so far were of the event_id alone. Of the events up to the newest it is not known any more whether they came.
TRUNCATE features.seen;
UPDATE features.partitions f SET seen_from_ms = greatest(f.seen_from_ms, p.max_ts_ms + 1)
FROM meta.positions p WHERE p.task = 'features' AND p.topic = 'behavior' AND p.partition = f.partition;
COMMENT ON COLUMN features.seen.hashes IS
    '64-bit hashes of user_id and event_id, little endian, eight bytes each; even: it came, odd: it was taken back.';

CREATE TABLE features.unread (
    partition int PRIMARY KEY,
    next_offset bigint NOT NULL
);
COMMENT ON TABLE features.unread IS
    'When partitions were added: how far the feature stage reads those of before, one after another, before it reads all side by side.';
COMMENT ON COLUMN features.unread.partition IS 'Kafka partition that there was before.';
COMMENT ON COLUMN features.unread.next_offset IS 'Offset of behaviour at which its log ended then.';
