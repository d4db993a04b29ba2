CREATE TABLE meta.datasets (
    name text PRIMARY KEY,
    address text NOT NULL,
    format text NOT NULL,
    columns jsonb NOT NULL,
    description text NOT NULL,
    version int NOT NULL DEFAULT 1,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE meta.datasets IS 'Data by name: a job asks for a name and finds out where it is and what it looks like.';
COMMENT ON COLUMN meta.datasets.name IS 'samples, behavior-history, topic-behavior, ...';
COMMENT ON COLUMN meta.datasets.address IS 'Relation, topic or URI; never with a secret.';
COMMENT ON COLUMN meta.datasets.format IS 'postgresql, kafka-json, parquet.';
COMMENT ON COLUMN meta.datasets.columns IS 'Column → type.';
COMMENT ON COLUMN meta.datasets.description IS 'What it is, for people.';
COMMENT ON COLUMN meta.datasets.version IS 'Rises by one with each change.';
COMMENT ON COLUMN meta.datasets.changed_at IS 'When it was last changed.';

CREATE TABLE meta.runs (
    run_id text PRIMARY KEY,
    job text NOT NULL,
    kind text NOT NULL CHECK (kind IN ('batch', 'endless')),
    state text NOT NULL CHECK (state IN ('running', 'succeeded', 'failed', 'stopped')),
    started_ms bigint NOT NULL,
    ended_ms bigint,
    context jsonb NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX runs_by_start ON meta.runs (started_ms);
COMMENT ON TABLE meta.runs IS 'One execution of a job each.';
COMMENT ON COLUMN meta.runs.run_id IS 'Its name for good.';
COMMENT ON COLUMN meta.runs.job IS 'train-base, train-incremental, validate, ...';
COMMENT ON COLUMN meta.runs.kind IS 'batch: it ends by itself; endless: it does not.';
COMMENT ON COLUMN meta.runs.state IS 'running, succeeded, failed or stopped.';
COMMENT ON COLUMN meta.runs.started_ms IS 'When it began by the system''s clock, ms UTC.';
COMMENT ON COLUMN meta.runs.ended_ms IS 'When it ended, ms UTC; null while it runs.';
COMMENT ON COLUMN meta.runs.context IS 'Parameters, MLflow run, the reason of a failure.';

CREATE TABLE meta.model_lineage (
    version text PRIMARY KEY,
    kind text NOT NULL,
    parent text,
    run_id text NOT NULL,
    from_seq bigint NOT NULL,
    to_seq bigint NOT NULL,
    feature_version text NOT NULL,
    label_version text NOT NULL,
    created_ms bigint NOT NULL,
    CHECK (from_seq <= to_seq)
);
COMMENT ON TABLE meta.model_lineage IS 'What made each model version.';
COMMENT ON COLUMN meta.model_lineage.version IS 'The registry''s version, as text.';
COMMENT ON COLUMN meta.model_lineage.kind IS 'logistic, dcn, ...';
COMMENT ON COLUMN meta.model_lineage.parent IS 'The version it was trained on top of; null for a base.';
COMMENT ON COLUMN meta.model_lineage.run_id IS 'The run that trained it.';
COMMENT ON COLUMN meta.model_lineage.from_seq IS 'First commit_seq of its own samples (those of its ancestors come before).';
COMMENT ON COLUMN meta.model_lineage.to_seq IS 'The commit_seq after its last sample.';
COMMENT ON COLUMN meta.model_lineage.feature_version IS 'Version of the feature definitions.';
COMMENT ON COLUMN meta.model_lineage.label_version IS 'Version of the label definition.';
COMMENT ON COLUMN meta.model_lineage.created_ms IS 'When it was made by the system''s clock, ms UTC.';
