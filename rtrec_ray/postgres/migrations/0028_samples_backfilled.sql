-- Features that samples did not have when they were made, computed afterwards. What was logged stays as it was.
CREATE TABLE samples.backfilled (
    event_day date NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    view text COLLATE "C" NOT NULL,
    version int NOT NULL,
    features jsonb NOT NULL,
    items jsonb NOT NULL,
    computed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (request_id, event_day, view)
);
COMMENT ON TABLE samples.backfilled IS
    'Features of past requests by view, out of the history: what the view said as of the request, floored to the tile.';
COMMENT ON COLUMN samples.backfilled.event_day IS 'UTC day of the request.';
COMMENT ON COLUMN samples.backfilled.request_id IS 'The request, with event_day.';
COMMENT ON COLUMN samples.backfilled.view IS 'Name of the feature view.';
COMMENT ON COLUMN samples.backfilled.version IS 'Its version; a later backfill of another one replaces the row.';
COMMENT ON COLUMN samples.backfilled.features IS 'Features of the request, name → number or list, as serving names them.';
COMMENT ON COLUMN samples.backfilled.items IS 'item_id → name → features of that item.';
COMMENT ON COLUMN samples.backfilled.computed_at IS 'When it was computed.';

-- Whatever columns the two views have, they get one more at their end. A reader that does not ask for it pays nothing.
DO $$
DECLARE
    ledger text := rtrim(pg_get_viewdef('samples.ledger'::regclass), ';');
    newest text := rtrim(pg_get_viewdef('samples.current'::regclass), ';');
    source text := '\s+FROM samples\.ledger l\M';
BEGIN
    IF newest !~ source THEN
        RAISE 'samples.current is not read from samples.ledger l: %', newest;
    END IF;
    EXECUTE format($view$
        CREATE OR REPLACE VIEW samples.ledger AS
        SELECT logged.*, (
            SELECT jsonb_object_agg(feature.key, feature.value)
            FROM samples.backfilled b, jsonb_each(b.features || coalesce(b.items -> logged.item_id::text, '{}')) feature
            WHERE b.request_id = logged.request_id AND b.event_day = logged.event_day
        ) AS backfilled
        FROM (%s) logged
    $view$, ledger);
    EXECUTE 'CREATE OR REPLACE VIEW samples.current AS '
        || regexp_replace(newest, source, ', l.backfilled FROM samples.ledger l');
END $$;
COMMENT ON COLUMN samples.ledger.backfilled IS 'Features computed afterwards, name → value, beside those that were logged; null: none.';
COMMENT ON COLUMN samples.current.backfilled IS 'Features computed afterwards, name → value, beside those that were logged; null: none.';
