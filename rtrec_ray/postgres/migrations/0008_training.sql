CREATE TABLE meta.training_runs (
    run text PRIMARY KEY,
    epoch bigint NOT NULL DEFAULT 1,
    state text NOT NULL DEFAULT 'starting',
    stop_requested boolean NOT NULL DEFAULT false,
    commit_seq bigint,
    event_time_ms bigint,
    lag_rows bigint,
    rows_trained bigint NOT NULL DEFAULT 0,
    version text,
    base_version text,
    mlflow_run text,
    message text NOT NULL DEFAULT '',
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);
COMMENT ON TABLE meta.training_runs IS 'What each training run does now: the heartbeat that status and the supervisor read.';
COMMENT ON COLUMN meta.training_runs.run IS 'Name of the run: base, incremental.';
COMMENT ON COLUMN meta.training_runs.epoch IS 'Rises with each start; workers of an older one stop at their next beat.';
COMMENT ON COLUMN meta.training_runs.state IS 'starting, waiting (no champion yet), running, stopped, finished or failed.';
COMMENT ON COLUMN meta.training_runs.stop_requested IS 'Somebody wants the run to end with a last version.';
COMMENT ON COLUMN meta.training_runs.commit_seq IS 'The last sample taken in.';
COMMENT ON COLUMN meta.training_runs.event_time_ms IS 'Event time of the newest sample taken in, ms UTC.';
COMMENT ON COLUMN meta.training_runs.lag_rows IS 'Samples in the ledger behind commit_seq, when last looked.';
COMMENT ON COLUMN meta.training_runs.rows_trained IS 'Rows trained on since this start.';
COMMENT ON COLUMN meta.training_runs.version IS 'The last model version it published, or began from.';
COMMENT ON COLUMN meta.training_runs.base_version IS 'The base model version at the root of its chain.';
COMMENT ON COLUMN meta.training_runs.mlflow_run IS 'Its run in MLflow, where the progressive metrics are.';
COMMENT ON COLUMN meta.training_runs.message IS 'Why it failed or waits, for people.';
COMMENT ON COLUMN meta.training_runs.started_at IS 'When this epoch began.';
COMMENT ON COLUMN meta.training_runs.beat_at IS 'Last sign of life, by this server''s clock.';

CREATE TABLE meta.training_progress (
    run text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    commit_seq bigint NOT NULL,
    event_time_ms bigint NOT NULL,
    rows bigint NOT NULL,
    positives bigint NOT NULL,
    log_loss double precision,
    base_log_loss double precision,
    auc double precision,
    base_auc double precision,
    calibration double precision,
    base_calibration double precision,
    lag_rows bigint NOT NULL,
    base_version text NOT NULL,
    PRIMARY KEY (run, at)
);
COMMENT ON TABLE meta.training_progress IS
    'Each sample is scored before it is trained on: these scores over time, for the model that learns and for its base.';
COMMENT ON COLUMN meta.training_progress.run IS 'Name of the run.';
COMMENT ON COLUMN meta.training_progress.at IS 'When the row was written.';
COMMENT ON COLUMN meta.training_progress.commit_seq IS 'The last sample in this row.';
COMMENT ON COLUMN meta.training_progress.event_time_ms IS 'Its event time, ms UTC.';
COMMENT ON COLUMN meta.training_progress.rows IS 'Samples scored since the row before; first revisions only.';
COMMENT ON COLUMN meta.training_progress.positives IS 'Clicks among them.';
COMMENT ON COLUMN meta.training_progress.log_loss IS 'Mean log loss over them of the model that learns, nats.';
COMMENT ON COLUMN meta.training_progress.base_log_loss IS 'The same of the base model, which stands still.';
COMMENT ON COLUMN meta.training_progress.auc IS 'AUC of the model that learns over the last rows scored; null without clicks.';
COMMENT ON COLUMN meta.training_progress.base_auc IS 'The same of the base model.';
COMMENT ON COLUMN meta.training_progress.calibration IS
    'Predicted clicks over clicks of the model that learns over the last rows scored; null without clicks.';
COMMENT ON COLUMN meta.training_progress.base_calibration IS 'The same of the base model.';
COMMENT ON COLUMN meta.training_progress.lag_rows IS 'Samples in the ledger that were still ahead.';
COMMENT ON COLUMN meta.training_progress.base_version IS 'The base model version compared with.';
