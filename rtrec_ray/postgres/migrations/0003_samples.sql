CREATE TABLE samples.requests (
    event_day date NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    user_id bigint NOT NULL,
    event_time_ms bigint NOT NULL,
    page_id bigint,
    model_version text NOT NULL,
    arm text,
    features jsonb NOT NULL,
    items jsonb,
    as_of jsonb,
    PRIMARY KEY (request_id, event_day)
) PARTITION BY RANGE (event_day);
COMMENT ON TABLE samples.requests IS 'The inference log: what serving knew when it answered, once per request.';
COMMENT ON COLUMN samples.requests.event_day IS 'UTC day of event_time_ms.';
COMMENT ON COLUMN samples.requests.request_id IS 'As serving gave it out.';
COMMENT ON COLUMN samples.requests.user_id IS 'Who asked.';
COMMENT ON COLUMN samples.requests.event_time_ms IS 'When, ms UTC.';
COMMENT ON COLUMN samples.requests.page_id IS 'Where.';
COMMENT ON COLUMN samples.requests.model_version IS 'The model that ranked.';
COMMENT ON COLUMN samples.requests.arm IS 'Arm of an experiment.';
COMMENT ON COLUMN samples.requests.features IS 'The features used, name → number, text or list.';
COMMENT ON COLUMN samples.requests.items IS 'The ranked items with position, score, propensity and features of their own.';
COMMENT ON COLUMN samples.requests.as_of IS 'View → partition → committed offset behind the feature values.';

-- Append-only: the ledger. The day is that of the request, so that all samples of a request lie in one partition and
-- the primary key alone finds an impression that comes twice, also after midnight.
CREATE TABLE samples.revisions (
    event_day date NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    item_id bigint NOT NULL,
    revision int NOT NULL DEFAULT 0,
    user_id bigint NOT NULL,
    event_time_ms bigint NOT NULL,
    page_id bigint,
    position bigint,
    arm text,
    label smallint NOT NULL,
    old_label smallint,
    labels jsonb NOT NULL,
    item_features jsonb,
    propensity double precision,
    score double precision,
    known_at timestamptz NOT NULL DEFAULT now(),
    commit_seq bigint NOT NULL,
    source_partition int NOT NULL,
    source_offset bigint,
    PRIMARY KEY (request_id, item_id, revision, event_day)
) PARTITION BY RANGE (event_day);
CREATE INDEX revisions_by_seq ON samples.revisions (commit_seq);
-- Corrections are few: this small index tells in no time which rows have a newer one.
CREATE INDEX corrections_by_key ON samples.revisions (request_id, item_id, revision) WHERE revision > 0;
COMMENT ON TABLE samples.revisions IS 'Every revision of every sample, never changed: the ledger that training follows.';
COMMENT ON COLUMN samples.revisions.event_day IS 'UTC day of the request.';
COMMENT ON COLUMN samples.revisions.request_id IS 'Key, with item_id.';
COMMENT ON COLUMN samples.revisions.item_id IS 'Key, with request_id.';
COMMENT ON COLUMN samples.revisions.revision IS '0 for the first, rising by one with each correction.';
COMMENT ON COLUMN samples.revisions.user_id IS 'Who saw the item.';
COMMENT ON COLUMN samples.revisions.event_time_ms IS 'When it was shown, ms UTC.';
COMMENT ON COLUMN samples.revisions.page_id IS 'Where it was shown.';
COMMENT ON COLUMN samples.revisions.position IS 'Place on the page.';
COMMENT ON COLUMN samples.revisions.arm IS 'Arm of an experiment, where the impression names one.';
COMMENT ON COLUMN samples.revisions.label IS '1 if it was clicked, else 0.';
COMMENT ON COLUMN samples.revisions.old_label IS 'The label before this correction.';
COMMENT ON COLUMN samples.revisions.labels IS 'All labels by name.';
COMMENT ON COLUMN samples.revisions.item_features IS 'Features of the item in this request.';
COMMENT ON COLUMN samples.revisions.propensity IS 'Probability in (0, 1] of being shown there.';
COMMENT ON COLUMN samples.revisions.score IS 'What the model said.';
COMMENT ON COLUMN samples.revisions.known_at IS 'When this revision was written, for people: readers go by commit_seq.';
COMMENT ON COLUMN samples.revisions.commit_seq IS 'Place in the ledger: numbers appear in commit order.';
COMMENT ON COLUMN samples.revisions.source_partition IS 'Kafka partition of the impression.';
COMMENT ON COLUMN samples.revisions.source_offset IS 'Offset of the impression; null in corrections.';

CREATE TABLE samples.misses (
    request_id text COLLATE "C" NOT NULL,
    item_id bigint NOT NULL,
    reason text NOT NULL DEFAULT 'no_inference_record',
    user_id bigint NOT NULL,
    event_time_ms bigint NOT NULL,
    page_id bigint,
    position bigint,
    arm text,
    click_ms bigint,
    known_at timestamptz NOT NULL DEFAULT now(),
    source_partition int NOT NULL,
    source_offset bigint NOT NULL,
    PRIMARY KEY (request_id, item_id)
);
CREATE INDEX misses_by_source ON samples.misses (source_partition, source_offset);
COMMENT ON TABLE samples.misses IS 'Impressions that are no samples. A record that comes late turns its misses into samples.';
COMMENT ON COLUMN samples.misses.request_id IS 'Key, with item_id.';
COMMENT ON COLUMN samples.misses.item_id IS 'Key, with request_id.';
COMMENT ON COLUMN samples.misses.reason IS 'Why: no_inference_record.';
COMMENT ON COLUMN samples.misses.user_id IS 'Who saw the item.';
COMMENT ON COLUMN samples.misses.event_time_ms IS 'When it was shown, ms UTC.';
COMMENT ON COLUMN samples.misses.page_id IS 'Where it was shown.';
COMMENT ON COLUMN samples.misses.position IS 'Place on the page.';
COMMENT ON COLUMN samples.misses.arm IS 'Arm of an experiment.';
COMMENT ON COLUMN samples.misses.click_ms IS 'Its earliest click, ms UTC.';
COMMENT ON COLUMN samples.misses.known_at IS 'When it was given up.';
COMMENT ON COLUMN samples.misses.source_partition IS 'Kafka partition of the impression.';
COMMENT ON COLUMN samples.misses.source_offset IS 'Offset of the impression.';

CREATE TABLE samples.held_clicks (
    source_partition int NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    item_id bigint NOT NULL,
    click_ms bigint NOT NULL,
    expires_ms bigint NOT NULL,
    PRIMARY KEY (source_partition, request_id, item_id)
);
COMMENT ON TABLE samples.held_clicks IS 'Clicks whose impression is not known, or has no outcome yet.';
COMMENT ON COLUMN samples.held_clicks.source_partition IS 'Kafka partition of the click.';
COMMENT ON COLUMN samples.held_clicks.request_id IS 'Key of the impression, with item_id.';
COMMENT ON COLUMN samples.held_clicks.item_id IS 'Key of the impression, with request_id.';
COMMENT ON COLUMN samples.held_clicks.click_ms IS 'The earliest click, ms UTC.';
COMMENT ON COLUMN samples.held_clicks.expires_ms IS 'Watermark at which it is given up, ms UTC.';

CREATE TABLE samples.replay (
    source_partition int PRIMARY KEY,
    replay_from bigint NOT NULL,
    out_from_seq bigint,
    repeated_offsets bigint[] NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
COMMENT ON TABLE samples.replay IS 'What a new owner of a partition reads again to find the impressions without an outcome.';
COMMENT ON COLUMN samples.replay.source_partition IS 'Kafka partition.';
COMMENT ON COLUMN samples.replay.replay_from IS 'Oldest offset of such an impression, or the next offset.';
COMMENT ON COLUMN samples.replay.out_from_seq IS 'Revisions of impressions from that offset on are numbered from here; null: there are none.';
COMMENT ON COLUMN samples.replay.repeated_offsets IS 'From that offset on: impressions that repeat an earlier one.';

-- Called under the lock on the counter of the ledger, so two owners never make the same day at the same time.
-- CREATE TABLE ... PARTITION OF would lock out every reader of the parent until the commit; ATTACH does not.
-- No default partition: it would swallow a day, and its rows would then be in the way of that day's own partition.
CREATE FUNCTION samples.ensure_days(days date[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    name text;
BEGIN
    FOREACH day IN ARRAY days LOOP
        FOREACH parent IN ARRAY ARRAY['requests', 'revisions'] LOOP
            name := parent || '_' || to_char(day, 'YYYYMMDD');
            CONTINUE WHEN to_regclass('samples.' || name) IS NOT NULL;
            EXECUTE format('CREATE TABLE samples.%I (LIKE samples.%I INCLUDING ALL)', name, parent);
            EXECUTE format('COMMENT ON TABLE samples.%I IS %L', name, 'samples.' || parent || ' of ' || day);
            EXECUTE format(
                'ALTER TABLE samples.%I ATTACH PARTITION samples.%I FOR VALUES FROM (%L) TO (%L)',
                parent, name, day, day + 1
            );
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION samples.ensure_days IS 'Make the partitions of these days that are missing.';

CREATE VIEW samples.ledger AS
SELECT r.commit_seq, r.request_id, r.item_id, r.user_id, r.event_time_ms,
       r.known_at, (extract(epoch FROM r.known_at) * 1000)::bigint AS known_at_ms,
       r.revision, r.label, r.old_label, r.labels, r.page_id, r.position, r.propensity, r.score,
       q.model_version, coalesce(r.arm, q.arm) AS arm,
       coalesce(q.features, '{}') || coalesce(r.item_features, '{}') AS features, r.event_day
FROM samples.revisions r
LEFT JOIN samples.requests q ON q.request_id = r.request_id AND q.event_day = r.event_day;
COMMENT ON VIEW samples.ledger IS 'Every revision with its features, the request''s overridden by the item''s own.';

CREATE VIEW samples.current AS
SELECT l.request_id, l.item_id, l.user_id, l.event_time_ms, l.known_at, l.revision, l.label, l.labels, l.features,
       l.model_version, l.arm, l.page_id, l.position, l.propensity, l.score, l.commit_seq
FROM samples.ledger l
WHERE NOT EXISTS (
    SELECT FROM samples.revisions n
    WHERE n.request_id = l.request_id AND n.item_id = l.item_id AND n.event_day = l.event_day
      AND n.revision > 0 AND n.revision > l.revision
);
COMMENT ON VIEW samples.current IS 'Each sample as it is known now: its newest revision.';

-- A view's column says what the table's says.
DO $$
DECLARE
    seen record;
BEGIN
    FOR seen IN
        SELECT c.relname AS view, a.attname AS name, (
            SELECT col_description(t.oid, b.attnum) FROM pg_class t JOIN pg_attribute b ON b.attrelid = t.oid
            WHERE t.oid IN ('samples.revisions'::regclass, 'samples.requests'::regclass) AND b.attname = a.attname
            ORDER BY t.relname DESC LIMIT 1
        ) AS said
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
        WHERE c.oid IN ('samples.ledger'::regclass, 'samples.current'::regclass)
    LOOP
        EXECUTE format(
            'COMMENT ON COLUMN samples.%I.%I IS %L', seen.view, seen.name, coalesce(seen.said, 'known_at in ms UTC.')
        );
    END LOOP;
END $$;
