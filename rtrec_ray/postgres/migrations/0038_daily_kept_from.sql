-- Days that no window reaches any more are dropped by the run that brings the static features to a later day.
ALTER TABLE features.daily_state ADD COLUMN kept_from date;
COMMENT ON COLUMN features.daily_state.kept_from IS
    'Of earlier UTC days neither counts nor names of what was taken back are kept, and nothing is counted; null: of none.';
