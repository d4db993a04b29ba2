ALTER TABLE samples.actions ADD COLUMN spilled boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN samples.actions.spilled IS 'Of a held one: its stage has it no longer in memory, and reads it back when its impression comes.';
DROP INDEX samples.actions_held;
CREATE INDEX actions_held ON samples.actions (source_partition) WHERE held AND NOT spilled;
CREATE INDEX actions_spilled ON samples.actions (source_partition, expires_ms) WHERE held AND spilled;
