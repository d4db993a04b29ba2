-- Two tasks that met in a new hour could both make its table: to_regclass answers out of a cache that waiting for the lock
-- does not refresh. A query has a snapshot of its own.
CREATE OR REPLACE FUNCTION features.ensure_tiles(hours bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    hour bigint;
    name text;
BEGIN
    FOREACH hour IN ARRAY hours LOOP
        name := 'tiles_' || replace(hour::text, '-', 'm');
        CONTINUE WHEN to_regclass('features.' || name) IS NOT NULL;
        PERFORM pg_advisory_xact_lock(hashtext('features.tiles'));
        PERFORM FROM pg_class WHERE relname = name AND relnamespace = 'features'::regnamespace;
        CONTINUE WHEN FOUND;
        EXECUTE format('CREATE TABLE features.%I (LIKE features.tiles INCLUDING ALL)', name);
        EXECUTE format('COMMENT ON TABLE features.%I IS %L', name, 'Tiles of one hour of event time.');
        EXECUTE format('ALTER TABLE features.tiles ATTACH PARTITION features.%I FOR VALUES FROM (%s) TO (%s)',
                       name, hour * 3600000, (hour + 1) * 3600000);
    END LOOP;
END $$;
