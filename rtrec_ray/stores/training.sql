-- name: open_run (the newest start wins: workers of the one before stop at their next beat)
INSERT INTO meta.training_runs (run) VALUES (%(run)s)
ON CONFLICT (run) DO UPDATE
SET epoch = meta.training_runs.epoch + 1, state = 'starting', stop_requested = false, commit_seq = NULL,
    event_time_ms = NULL, lag_rows = NULL, rows_trained = 0, version = NULL, base_version = NULL, mlflow_run = NULL,
    message = '', lsn = NULL, followed_by = NULL, fallbacks = 0, fallback_reason = '', started_at = clock_timestamp(), beat_at = clock_timestamp()
RETURNING epoch;

-- name: beat
UPDATE meta.training_runs
SET state = %(state)s, commit_seq = %(commit_seq)s, event_time_ms = %(event_time_ms)s, lag_rows = %(lag_rows)s,
    rows_trained = %(rows_trained)s, version = %(version)s, base_version = %(base_version)s,
    mlflow_run = coalesce(%(mlflow_run)s, mlflow_run), message = %(message)s,
    lsn = '0/0'::pg_lsn + %(lsn)s::numeric, followed_by = %(followed_by)s, fallbacks = %(fallbacks)s,
    fallback_reason = %(fallback_reason)s, beat_at = clock_timestamp()
WHERE run = %(run)s AND epoch = %(epoch)s
RETURNING stop_requested;

-- name: request_stop
UPDATE meta.training_runs SET stop_requested = true
WHERE run = %(run)s AND state IN ('starting', 'waiting', 'running')
RETURNING run;

-- name: read_runs
SELECT run, epoch,
       state, commit_seq, event_time_ms, lag_rows, rows_trained, version, base_version, mlflow_run, message,
       (lsn - '0/0'::pg_lsn)::bigint, followed_by, fallbacks, fallback_reason,
       stop_requested,
       state IN ('starting', 'waiting', 'running')
       -- Ray Train takes up to a minute to start its workers, and only they beat.
       AND beat_at >= clock_timestamp() - (CASE state WHEN 'starting' THEN 90 ELSE 20 END) * interval '1 s' AS up,
       (extract(epoch FROM clock_timestamp() - beat_at) * 1000)::bigint AS age_ms
FROM meta.training_runs ORDER BY run;

-- name: put_progress
INSERT INTO meta.training_progress
    (run, commit_seq, event_time_ms, rows, positives, log_loss, base_log_loss, auc, base_auc, calibration,
     base_calibration, lag_rows, base_version)
VALUES
    (%(run)s, %(commit_seq)s, %(event_time_ms)s, %(rows)s, %(positives)s, %(log_loss)s, %(base_log_loss)s, %(auc)s,
     %(base_auc)s, %(calibration)s, %(base_calibration)s, %(lag_rows)s, %(base_version)s);

-- name: read_progress
SELECT (extract(epoch FROM at) * 1000)::bigint, commit_seq, event_time_ms, rows, positives, log_loss, base_log_loss, auc,
       base_auc, calibration, base_calibration, lag_rows, base_version
FROM meta.training_progress WHERE run = %(run)s ORDER BY at;
