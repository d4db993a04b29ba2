-- Labels are a function of the actions on a sample, so the actions are kept: one row each, also when it was taken back.
CREATE TABLE samples.actions (
    request_id text COLLATE "C" NOT NULL,
    item_id bigint NOT NULL,
    action_id bigint NOT NULL,
    kind text NOT NULL,
    action_ms bigint NOT NULL,
    value bigint,
    taken_back boolean NOT NULL DEFAULT false,
    held boolean NOT NULL DEFAULT false,
    expires_ms bigint,
    source_partition int NOT NULL,
    PRIMARY KEY (request_id, item_id, action_id)
);
CREATE INDEX actions_held ON samples.actions (source_partition) WHERE held;
CREATE INDEX actions_by_time ON samples.actions USING brin (action_ms);
COMMENT ON TABLE samples.actions IS 'What users did with shown items, each once: the labels of a sample are computed from its rows that are not taken back.';
COMMENT ON COLUMN samples.actions.request_id IS 'Key of the impression, with item_id.';
COMMENT ON COLUMN samples.actions.item_id IS 'Key of the impression, with request_id.';
COMMENT ON COLUMN samples.actions.action_id IS '64-bit hash of event_id.';
COMMENT ON COLUMN samples.actions.kind IS 'Its event_type: click, view, favorite, cart, consult, comment.';
COMMENT ON COLUMN samples.actions.action_ms IS 'When, ms UTC.';
COMMENT ON COLUMN samples.actions.value IS 'Its dwell_ms.';
COMMENT ON COLUMN samples.actions.taken_back IS 'A retraction of it came, maybe before itself.';
COMMENT ON COLUMN samples.actions.held IS 'Its impression is not known, or has no outcome yet.';
COMMENT ON COLUMN samples.actions.expires_ms IS 'Of a held one: watermark at which it is given up, ms UTC.';
COMMENT ON COLUMN samples.actions.source_partition IS 'Kafka partition that it came from; the one that looks after it while it is held.';

-- Of earlier clicks only the fact was kept: each counts as made when its item was shown.
INSERT INTO samples.actions (request_id, item_id, action_id, kind, action_ms, held, expires_ms, source_partition)
SELECT request_id, item_id, hashtextextended(request_id, item_id) & -2, 'click', click_ms, true, expires_ms, source_partition
FROM samples.held_clicks
UNION ALL
SELECT request_id, item_id, hashtextextended(request_id, item_id) & -2, 'click', click_ms, false, NULL, source_partition
FROM samples.misses WHERE click_ms IS NOT NULL
UNION ALL
SELECT DISTINCT ON (request_id, item_id) request_id, item_id, hashtextextended(request_id, item_id) & -2, 'click', event_time_ms, false, NULL::bigint, source_partition
FROM samples.revisions WHERE label = 1
ON CONFLICT DO NOTHING;
DROP TABLE samples.held_clicks;
ALTER TABLE samples.misses DROP COLUMN click_ms;

ALTER TABLE samples.revisions ADD COLUMN negative_rate double precision NOT NULL DEFAULT 1;
ALTER TABLE samples.revisions ADD COLUMN definition_version int NOT NULL DEFAULT 1;
COMMENT ON COLUMN samples.revisions.negative_rate IS 'Share in (0, 1] of negatives that were kept where this sample comes from: log odds learnt from the samples are too high by -log of it.';
COMMENT ON COLUMN samples.revisions.definition_version IS 'samples.definitions: the rules of its labels.';

-- Negatives that were not drawn, as far as a late click needs them to make a sample after all.
CREATE TABLE samples.sampled_out (
    event_day date NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    item_id bigint NOT NULL,
    user_id bigint NOT NULL,
    event_time_ms bigint NOT NULL,
    page_id bigint,
    position bigint,
    arm text,
    source_partition int NOT NULL,
    source_offset bigint,
    PRIMARY KEY (request_id, item_id, event_day)
) PARTITION BY RANGE (event_day);
CREATE INDEX sampled_out_by_source ON samples.sampled_out (source_partition, source_offset);
COMMENT ON TABLE samples.sampled_out IS 'Impressions without a click that were not drawn into the sample. A late click makes one a sample.';
COMMENT ON COLUMN samples.sampled_out.event_day IS 'UTC day of the request.';
COMMENT ON COLUMN samples.sampled_out.request_id IS 'Key, with item_id.';
COMMENT ON COLUMN samples.sampled_out.item_id IS 'Key, with request_id.';
COMMENT ON COLUMN samples.sampled_out.user_id IS 'Who saw the item.';
COMMENT ON COLUMN samples.sampled_out.event_time_ms IS 'When it was shown, ms UTC.';
COMMENT ON COLUMN samples.sampled_out.page_id IS 'Where it was shown.';
COMMENT ON COLUMN samples.sampled_out.position IS 'Place on the page.';
COMMENT ON COLUMN samples.sampled_out.arm IS 'Arm of an experiment, where the impression names one.';
COMMENT ON COLUMN samples.sampled_out.source_partition IS 'Kafka partition of the impression.';
COMMENT ON COLUMN samples.sampled_out.source_offset IS 'Offset of the impression.';

CREATE TABLE samples.definitions (
    version int PRIMARY KEY,
    definition jsonb NOT NULL,
    from_ms bigint NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE samples.definitions IS 'What a sample is, every version that was applied.';
COMMENT ON COLUMN samples.definitions.version IS 'As the file says.';
COMMENT ON COLUMN samples.definitions.definition IS 'Wait, horizon, emit, labels, pages, negatives.';
COMMENT ON COLUMN samples.definitions.from_ms IS 'It holds for impressions of this event time and later, ms UTC, until the next version.';
COMMENT ON COLUMN samples.definitions.applied_at IS 'When it was applied.';

CREATE TABLE samples.settings (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    change bigint NOT NULL DEFAULT 0,
    partitions int,
    mixed boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
INSERT INTO samples.settings DEFAULT VALUES;
COMMENT ON TABLE samples.settings IS 'What all partitions of the sample stage share.';
COMMENT ON COLUMN samples.settings.one IS 'There is one row.';
COMMENT ON COLUMN samples.settings.change IS 'Rises with each change of the definitions: whoever knows another number reads anew.';
COMMENT ON COLUMN samples.settings.partitions IS 'Of behaviour; null before the first start.';
COMMENT ON COLUMN samples.settings.mixed IS 'Partitions were added: an impression and its actions may lie in two of them.';

-- A table of its own: commits share a lock on the settings, and this row is written under the lock of the ledger's counter.
CREATE TABLE samples.complete (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    complete_ms bigint
) WITH (fillfactor = 50);
INSERT INTO samples.complete DEFAULT VALUES;
COMMENT ON TABLE samples.complete IS 'How far the whole store is complete.';
COMMENT ON COLUMN samples.complete.one IS 'There is one row.';
COMMENT ON COLUMN samples.complete.complete_ms IS 'The newest T of which SAMPLES_COMPLETE was sent, ms UTC; null before the first.';

CREATE TABLE samples.completeness (
    source_partition int PRIMARY KEY,
    first_ms bigint,
    complete_ms bigint
) WITH (fillfactor = 50);
COMMENT ON TABLE samples.completeness IS 'How far each partition has written the outcomes of its impressions.';
COMMENT ON COLUMN samples.completeness.source_partition IS 'Kafka partition.';
COMMENT ON COLUMN samples.completeness.first_ms IS 'Event time of the first event that counts for it, ms UTC; null before one came.';
COMMENT ON COLUMN samples.completeness.complete_ms IS 'Impressions up to this event time have their outcome, ms UTC; null before a watermark is known.';

CREATE OR REPLACE FUNCTION samples.ensure_days(days date[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    day date;
    parent text;
    name text;
BEGIN
    FOREACH day IN ARRAY days LOOP
        FOREACH parent IN ARRAY ARRAY['requests', 'revisions', 'sampled_out'] LOOP
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

CREATE OR REPLACE VIEW samples.ledger AS
SELECT r.commit_seq, r.request_id, r.item_id, r.user_id, r.event_time_ms,
       r.known_at, (extract(epoch FROM r.known_at) * 1000)::bigint AS known_at_ms,
       r.revision, r.label, r.old_label, r.labels, r.page_id, r.position, r.propensity, r.score,
       q.model_version, coalesce(r.arm, q.arm) AS arm,
       coalesce(q.features, '{}') || coalesce(r.item_features, '{}') AS features, r.event_day,
       r.negative_rate, r.definition_version
FROM samples.revisions r
LEFT JOIN samples.requests q ON q.request_id = r.request_id AND q.event_day = r.event_day;

CREATE OR REPLACE VIEW samples.current AS
SELECT l.request_id, l.item_id, l.user_id, l.event_time_ms, l.known_at, l.revision, l.label, l.labels, l.features,
       l.model_version, l.arm, l.page_id, l.position, l.propensity, l.score, l.commit_seq,
       l.negative_rate, l.definition_version
FROM samples.ledger l
WHERE NOT EXISTS (
    SELECT FROM samples.revisions n
    WHERE n.request_id = l.request_id AND n.item_id = l.item_id AND n.event_day = l.event_day
      AND n.revision > 0 AND n.revision > l.revision
);

DO $$
DECLARE
    seen record;
BEGIN
    FOR seen IN
        SELECT c.relname AS view, a.attname AS name, col_description('samples.revisions'::regclass, b.attnum) AS said
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        JOIN pg_attribute b ON b.attrelid = 'samples.revisions'::regclass AND b.attname = a.attname
        WHERE c.oid IN ('samples.ledger'::regclass, 'samples.current'::regclass)
          AND a.attname IN ('negative_rate', 'definition_version')
    LOOP
        EXECUTE format('COMMENT ON COLUMN samples.%I.%I IS %L', seen.view, seen.name, seen.said);
    END LOOP;
END $$;
