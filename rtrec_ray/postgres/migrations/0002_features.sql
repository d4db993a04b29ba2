CREATE TABLE features.views (
    view_id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    version int NOT NULL,
    definition text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (name, version)
);
COMMENT ON TABLE features.views IS 'Every version of every feature view that was ever applied.';
COMMENT ON COLUMN features.views.view_id IS 'Stands for (name, version) in the tiles.';
COMMENT ON COLUMN features.views.name IS 'As in features.yaml.';
COMMENT ON COLUMN features.views.version IS 'As in features.yaml; values of different versions never mix.';
COMMENT ON COLUMN features.views.definition IS 'The whole definition as JSON; one version has one definition.';
COMMENT ON COLUMN features.views.applied_at IS 'When it was first applied.';

-- Append-only: a commit adds rows, a read adds them up, a whole partition is dropped when no window reaches it.
CREATE TABLE features.tiles (
    tile_start_ms bigint NOT NULL,
    view_id int NOT NULL,
    partition int NOT NULL,
    key text COLLATE "C" NOT NULL,
    state text NOT NULL
) PARTITION BY RANGE (tile_start_ms);
CREATE INDEX tiles_by_key ON features.tiles (view_id, key, tile_start_ms);
COMMENT ON TABLE features.tiles IS 'Partial aggregates of short stretches of event time: the feature and its checkpoint in one.';
COMMENT ON COLUMN features.tiles.tile_start_ms IS 'The tile is [start, start + tile of features.yaml), ms UTC.';
COMMENT ON COLUMN features.tiles.view_id IS 'features.views.';
COMMENT ON COLUMN features.tiles.partition IS 'Kafka partition the events came from.';
COMMENT ON COLUMN features.tiles.key IS 'Key of the view: a user, a category, all, country|gender|page.';
COMMENT ON COLUMN features.tiles.state IS 'JSON list: the partial of each aggregation, in the order of the definition. Rows add up.';

-- CREATE TABLE ... PARTITION OF would lock out every reader of the parent until the commit; ATTACH does not.
CREATE FUNCTION features.ensure_tiles(hours bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    hour bigint;
    name text;
BEGIN
    FOREACH hour IN ARRAY hours LOOP
        name := 'tiles_' || replace(hour::text, '-', 'm');
        CONTINUE WHEN to_regclass('features.' || name) IS NOT NULL;
        PERFORM pg_advisory_xact_lock(hashtext('features.tiles'));
        CONTINUE WHEN to_regclass('features.' || name) IS NOT NULL;
        EXECUTE format('CREATE TABLE features.%I (LIKE features.tiles INCLUDING ALL)', name);
        EXECUTE format('COMMENT ON TABLE features.%I IS %L', name, 'Tiles of one hour of event time.');
        EXECUTE format('ALTER TABLE features.tiles ATTACH PARTITION features.%I FOR VALUES FROM (%s) TO (%s)',
                       name, hour * 3600000, (hour + 1) * 3600000);
    END LOOP;
END $$;
COMMENT ON FUNCTION features.ensure_tiles IS 'Make the partitions of features.tiles for these hours since 1970.';

CREATE TABLE features.seen (
    partition int NOT NULL,
    minute_ms bigint NOT NULL,
    hashes bytea NOT NULL
);
ALTER TABLE features.seen ALTER COLUMN hashes SET STORAGE EXTERNAL; -- hashes do not compress
CREATE INDEX seen_by_partition ON features.seen (partition, minute_ms);
COMMENT ON TABLE features.seen IS 'Which events were counted, so that one that comes twice counts once.';
COMMENT ON COLUMN features.seen.partition IS 'Kafka partition the events came from.';
COMMENT ON COLUMN features.seen.minute_ms IS 'The events'' minute, ms UTC.';
COMMENT ON COLUMN features.seen.hashes IS '64-bit hashes of event_id, little endian, eight bytes each.';

CREATE TABLE features.partitions (
    partition int PRIMARY KEY,
    watermark_ms bigint
) WITH (fillfactor = 50);
COMMENT ON TABLE features.partitions IS 'How far event time has come in each source partition: what is older is late.';
COMMENT ON COLUMN features.partitions.partition IS 'Kafka partition.';
COMMENT ON COLUMN features.partitions.watermark_ms IS 'No event older than this is expected, ms UTC. Never moves back.';

CREATE TABLE features.profiles (
    user_id bigint NOT NULL,
    ts_ms bigint NOT NULL,
    country text,
    gender text,
    city text,
    age_band text,
    partition int NOT NULL,
    PRIMARY KEY (user_id, ts_ms)
);
CREATE INDEX profiles_by_partition ON features.profiles (partition);
COMMENT ON TABLE features.profiles IS 'Every version of every user''s profile.';
COMMENT ON COLUMN features.profiles.user_id IS 'The user.';
COMMENT ON COLUMN features.profiles.ts_ms IS 'Holds from then on, ms UTC.';
COMMENT ON COLUMN features.profiles.country IS 'Country.';
COMMENT ON COLUMN features.profiles.gender IS 'Gender.';
COMMENT ON COLUMN features.profiles.city IS 'City.';
COMMENT ON COLUMN features.profiles.age_band IS 'Band of age.';
COMMENT ON COLUMN features.profiles.partition IS 'Kafka partition the version came from; the user''s events come from the same.';

CREATE TABLE features.items (
    item_id bigint PRIMARY KEY,
    ts_ms bigint NOT NULL,
    item_type text,
    category_id bigint,
    title text
);
COMMENT ON TABLE features.items IS 'The catalogue: the newest version of every item.';
COMMENT ON COLUMN features.items.item_id IS 'The item.';
COMMENT ON COLUMN features.items.ts_ms IS 'Holds from then on, ms UTC.';
COMMENT ON COLUMN features.items.item_type IS 'product, article, video, ad.';
COMMENT ON COLUMN features.items.category_id IS 'Category.';
COMMENT ON COLUMN features.items.title IS 'Title.';

CREATE TABLE features.top_lists (
    view_id int NOT NULL,
    key text COLLATE "C" NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (view_id, key)
);
COMMENT ON TABLE features.top_lists IS 'Cache for serving: values of the views with many events a key, rebuilt on a timer.';
COMMENT ON COLUMN features.top_lists.view_id IS 'features.views.';
COMMENT ON COLUMN features.top_lists.key IS 'Key of the view.';
COMMENT ON COLUMN features.top_lists.value IS 'The value as JSON.';

CREATE TABLE features.top_list_rounds (
    view_id int PRIMARY KEY,
    as_of_ms bigint NOT NULL,
    rebuilt_at timestamptz NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE features.top_list_rounds IS 'How fresh the cached lists are; a reader falls back to the tiles when they are not.';
COMMENT ON COLUMN features.top_list_rounds.view_id IS 'features.views.';
COMMENT ON COLUMN features.top_list_rounds.as_of_ms IS 'The values are as of this event time, ms UTC.';
COMMENT ON COLUMN features.top_list_rounds.rebuilt_at IS 'When they were made, by this server''s clock.';
