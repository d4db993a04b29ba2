-- The ledger as a stream. Inserts alone: it only grows, so neither replica identities nor unchanged TOASTed columns
-- matter. Through the root, so that a new day's partition is in it from its first row on.
DO $$
BEGIN
    CREATE PUBLICATION rtrec_samples FOR TABLE samples.revisions
        WITH (publish = 'insert', publish_via_partition_root = true);
    COMMENT ON PUBLICATION rtrec_samples IS 'Every revision of every sample: the change log that training follows.';
EXCEPTION WHEN insufficient_privilege OR feature_not_supported THEN
    -- Another server than ours may not allow it: consumers then follow by commit_seq, and say so.
    RAISE WARNING 'no publication of the change log: %', SQLERRM;
END $$;

ALTER TABLE meta.training_runs
    ADD COLUMN lsn pg_lsn,
    ADD COLUMN followed_by text,
    ADD COLUMN fallbacks int NOT NULL DEFAULT 0,
    ADD COLUMN fallback_reason text NOT NULL DEFAULT '';
COMMENT ON COLUMN meta.training_runs.lsn IS 'Where its last stored version stands in the write-ahead log: its slot may be here, no further.';
COMMENT ON COLUMN meta.training_runs.followed_by IS 'How it follows the ledger: stream (logical replication) or scan (by commit_seq).';
COMMENT ON COLUMN meta.training_runs.fallbacks IS 'How often since this start its slot was lost and a scan closed the gap.';
COMMENT ON COLUMN meta.training_runs.fallback_reason IS 'Why it scanned last, or why it cannot stream.';
