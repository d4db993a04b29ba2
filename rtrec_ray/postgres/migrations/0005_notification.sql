CREATE TABLE meta.events (
    event_offset bigint PRIMARY KEY,
    namespace text NOT NULL,
    key text NOT NULL,
    version bigint NOT NULL,
    value text NOT NULL,
    type text NOT NULL,
    sender text NOT NULL,
    time_ms bigint NOT NULL,
    context jsonb NOT NULL,
    UNIQUE (namespace, key, version)
);
CREATE INDEX events_by_type ON meta.events (type, event_offset);
COMMENT ON TABLE meta.events IS 'The log of notifications. Append-only; NOTIFY rtrec_events tells that it grew.';
COMMENT ON COLUMN meta.events.event_offset IS 'Place in the log: rises by one in commit order.';
COMMENT ON COLUMN meta.events.namespace IS 'Keys of different namespaces are different keys.';
COMMENT ON COLUMN meta.events.key IS 'What the event is about: model, ...';
COMMENT ON COLUMN meta.events.version IS 'Rises by one per (namespace, key), from 1.';
COMMENT ON COLUMN meta.events.value IS 'What happened to it; for a model, its version.';
COMMENT ON COLUMN meta.events.type IS 'Kind of event: MODEL_GENERATED, MODEL_VALIDATED, ...; may be empty.';
COMMENT ON COLUMN meta.events.sender IS 'Who sent it; may be empty.';
COMMENT ON COLUMN meta.events.time_ms IS 'When it was sent by the system''s clock, ms UTC.';
COMMENT ON COLUMN meta.events.context IS 'What listeners need beside the value: metrics, a reason.';

CREATE TABLE meta.event_versions (
    namespace text NOT NULL,
    key text NOT NULL,
    version bigint NOT NULL,
    PRIMARY KEY (namespace, key)
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.event_versions IS 'The last version of each key; outlives the events themselves.';
COMMENT ON COLUMN meta.event_versions.namespace IS 'As in meta.events.';
COMMENT ON COLUMN meta.event_versions.key IS 'As in meta.events.';
COMMENT ON COLUMN meta.event_versions.version IS 'The version of the key''s last event.';

CREATE TABLE meta.event_cursors (
    name text PRIMARY KEY,
    acked_offset bigint NOT NULL,
    acked_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.event_cursors IS 'How far each durable listener has got.';
COMMENT ON COLUMN meta.event_cursors.name IS 'The listener''s name.';
COMMENT ON COLUMN meta.event_cursors.acked_offset IS 'Every event up to this offset is done.';
COMMENT ON COLUMN meta.event_cursors.acked_at IS 'When it said so.';
