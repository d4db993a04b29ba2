-- Lists of one key, sender or stretch of time must not walk a log of millions.
CREATE INDEX events_by_key ON meta.events (key, event_offset);
CREATE INDEX events_by_sender ON meta.events (sender, event_offset);
CREATE INDEX events_by_time ON meta.events (time_ms);
COMMENT ON TABLE meta.events IS
    'The log of notifications; NOTIFY rtrec_events tells that it grew. Its oldest events are trimmed, never past a durable cursor that is alive.';
COMMENT ON COLUMN meta.event_cursors.acked_at IS 'When it said so: one that has said nothing for long is dead, and holds up no trimming.';
COMMENT ON COLUMN meta.counters.name IS 'What is numbered: samples, events. That of events is the end of the log, also when its last events were trimmed.';
