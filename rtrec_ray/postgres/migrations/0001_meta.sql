CREATE SCHEMA features;
COMMENT ON SCHEMA features IS 'Feature views as tiles, profiles, the catalogue.';
CREATE SCHEMA samples;
COMMENT ON SCHEMA samples IS 'Stitched samples: the ledger of revisions and what was shown with it.';

CREATE TABLE meta.counters (
    name text PRIMARY KEY,
    value bigint NOT NULL
);
COMMENT ON TABLE meta.counters IS 'Numbers that appear in commit order: the row stays locked until the taker commits.';
COMMENT ON COLUMN meta.counters.name IS 'What is numbered: samples, events.';
COMMENT ON COLUMN meta.counters.value IS 'The last number taken.';

CREATE TABLE meta.leases (
    task text NOT NULL,
    partition int NOT NULL,
    epoch bigint NOT NULL DEFAULT 0,
    owner text,
    pid int,
    backend_start timestamptz,
    expires_at timestamptz NOT NULL DEFAULT '-infinity',
    PRIMARY KEY (task, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.leases IS 'Who may write for a partition of a task. Renewed by the first statement of each commit.';
COMMENT ON COLUMN meta.leases.task IS 'features, samples, history, ...';
COMMENT ON COLUMN meta.leases.partition IS 'Kafka partition.';
COMMENT ON COLUMN meta.leases.epoch IS 'Rises with each owner; a commit with an older one is refused.';
COMMENT ON COLUMN meta.leases.owner IS 'Name of the actor and its incarnation, for people.';
COMMENT ON COLUMN meta.leases.pid IS 'The owner''s backend, ended by a takeover.';
COMMENT ON COLUMN meta.leases.backend_start IS 'Start of that backend: pids are used again.';
COMMENT ON COLUMN meta.leases.expires_at IS 'Until when the owner counts as alive, by this server''s clock.';

CREATE TABLE meta.positions (
    task text NOT NULL,
    partition int NOT NULL,
    topic text NOT NULL,
    next_offset bigint NOT NULL,
    max_ts_ms bigint,
    PRIMARY KEY (task, partition, topic)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.positions IS 'How far a task has applied a topic, committed with its outputs.';
COMMENT ON COLUMN meta.positions.task IS 'features, samples, history, ...';
COMMENT ON COLUMN meta.positions.partition IS 'Kafka partition.';
COMMENT ON COLUMN meta.positions.topic IS 'Kafka topic.';
COMMENT ON COLUMN meta.positions.next_offset IS 'The first offset not yet applied.';
COMMENT ON COLUMN meta.positions.max_ts_ms IS 'Largest accepted event time, ms UTC: the watermark''s ground.';

CREATE TABLE meta.progress (
    task text NOT NULL,
    partition int NOT NULL,
    watermark_ms bigint,
    lag bigint NOT NULL DEFAULT 0,
    counts jsonb NOT NULL DEFAULT '{}',
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (task, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.progress IS 'What a task has done in a partition, committed with its outputs; read by rtrec status.';
COMMENT ON COLUMN meta.progress.task IS 'features, samples, history, ...';
COMMENT ON COLUMN meta.progress.partition IS 'Kafka partition.';
COMMENT ON COLUMN meta.progress.watermark_ms IS 'No event older than this is expected, ms UTC. Never moves back.';
COMMENT ON COLUMN meta.progress.lag IS 'Records in the log behind the position, when last looked.';
COMMENT ON COLUMN meta.progress.counts IS 'Outcome → number of records: in, late, dead, duplicate, corrected, ...';
COMMENT ON COLUMN meta.progress.committed_at IS 'When this row was written.';

CREATE TABLE meta.clock (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    origin_event_ms bigint NOT NULL,
    origin_wall_ms bigint NOT NULL,
    speed double precision NOT NULL CHECK (speed > 0)
);
COMMENT ON TABLE meta.clock IS 'The clock of events, shared by pipeline, serving, training and load: a line, not a counter.';
COMMENT ON COLUMN meta.clock.one IS 'There is one clock.';
COMMENT ON COLUMN meta.clock.origin_event_ms IS 'Event time at the origin, ms UTC.';
COMMENT ON COLUMN meta.clock.origin_wall_ms IS 'Machine time at the origin, ms UTC.';
COMMENT ON COLUMN meta.clock.speed IS 'Event ms per ms of machine time; 1 is real time.';
