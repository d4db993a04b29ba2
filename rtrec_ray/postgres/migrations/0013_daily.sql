-- Static features, T+1. A day is counted whole and replaces itself, so a run may be repeated, and a late event or retraction
-- corrects the days it concerns, however late.
CREATE TABLE features.daily_counts (
    day date NOT NULL,
    entity text COLLATE "C" NOT NULL,
    key bigint NOT NULL,
    impression bigint NOT NULL,
    click bigint NOT NULL,
    view bigint NOT NULL,
    favorite bigint NOT NULL,
    cart bigint NOT NULL,
    consult bigint NOT NULL,
    comment bigint NOT NULL,
    search bigint NOT NULL,
    PRIMARY KEY (day, entity, key)
);
COMMENT ON TABLE features.daily_counts IS 'Events of each UTC day by user, item, category; a key without events has no row.';
COMMENT ON COLUMN features.daily_counts.day IS 'UTC day of the event time.';
COMMENT ON COLUMN features.daily_counts.entity IS 'user, item, category.';
COMMENT ON COLUMN features.daily_counts.key IS 'user_id, item_id, category_id.';
COMMENT ON COLUMN features.daily_counts.impression IS 'Number of impressions.';
COMMENT ON COLUMN features.daily_counts.click IS 'Number of clicks, of impressions of whatever day.';
COMMENT ON COLUMN features.daily_counts.view IS 'Number of views.';
COMMENT ON COLUMN features.daily_counts.favorite IS 'Number of favourites.';
COMMENT ON COLUMN features.daily_counts.cart IS 'Number of times put into the cart.';
COMMENT ON COLUMN features.daily_counts.consult IS 'Number of consultations.';
COMMENT ON COLUMN features.daily_counts.comment IS 'Number of comments.';
COMMENT ON COLUMN features.daily_counts.search IS 'Number of searches.';

CREATE TABLE features.daily_days (
    day date PRIMARY KEY,
    pending boolean NOT NULL
) WITH (fillfactor = 50);
CREATE INDEX daily_days_pending ON features.daily_days (day) WHERE pending;
COMMENT ON TABLE features.daily_days IS 'The days that have events, or had.';
COMMENT ON COLUMN features.daily_days.day IS 'UTC day of the event time.';
COMMENT ON COLUMN features.daily_days.pending IS 'Whether something came for it since it was counted.';

CREATE TABLE features.daily_taken_back (
    minute bigint NOT NULL,
    partition int NOT NULL,
    event_id text COLLATE "C" NOT NULL
);
-- Over a digest, as an id may be longer than an index entry.
CREATE UNIQUE INDEX daily_taken_back_once ON features.daily_taken_back (minute, partition, md5(event_id));
COMMENT ON TABLE features.daily_taken_back IS 'Names of the events that some retraction in the history takes back.';
COMMENT ON COLUMN features.daily_taken_back.minute IS 'Of the event''s time, minutes since 1970 UTC.';
COMMENT ON COLUMN features.daily_taken_back.partition IS 'Kafka partition of the event and of its retraction.';
COMMENT ON COLUMN features.daily_taken_back.event_id IS 'The event.';

CREATE TABLE features.daily_values (
    entity text COLLATE "C" NOT NULL,
    key bigint NOT NULL,
    as_of_day date NOT NULL,
    impression_1d bigint NOT NULL,
    click_1d bigint NOT NULL,
    view_1d bigint NOT NULL,
    favorite_1d bigint NOT NULL,
    cart_1d bigint NOT NULL,
    consult_1d bigint NOT NULL,
    comment_1d bigint NOT NULL,
    search_1d bigint NOT NULL,
    click_rate_1d double precision,
    impression_7d bigint NOT NULL,
    click_7d bigint NOT NULL,
    view_7d bigint NOT NULL,
    favorite_7d bigint NOT NULL,
    cart_7d bigint NOT NULL,
    consult_7d bigint NOT NULL,
    comment_7d bigint NOT NULL,
    search_7d bigint NOT NULL,
    click_rate_7d double precision,
    PRIMARY KEY (entity, key)
);
COMMENT ON TABLE features.daily_values IS
    'The static features of each key with an event within 7 days; all rows are replaced in one transaction.';
COMMENT ON COLUMN features.daily_values.entity IS 'user, item, category.';
COMMENT ON COLUMN features.daily_values.key IS 'user_id, item_id, category_id.';
COMMENT ON COLUMN features.daily_values.as_of_day IS 'The windows end with this UTC day, the same in every row.';
COMMENT ON COLUMN features.daily_values.impression_1d IS 'Impressions of the day.';
COMMENT ON COLUMN features.daily_values.click_1d IS 'Clicks of the day.';
COMMENT ON COLUMN features.daily_values.view_1d IS 'Views of the day.';
COMMENT ON COLUMN features.daily_values.favorite_1d IS 'Favourites of the day.';
COMMENT ON COLUMN features.daily_values.cart_1d IS 'Times put into the cart, of the day.';
COMMENT ON COLUMN features.daily_values.consult_1d IS 'Consultations of the day.';
COMMENT ON COLUMN features.daily_values.comment_1d IS 'Comments of the day.';
COMMENT ON COLUMN features.daily_values.search_1d IS 'Searches of the day.';
COMMENT ON COLUMN features.daily_values.click_rate_1d IS 'click_1d / impression_1d, null without impressions.';
COMMENT ON COLUMN features.daily_values.impression_7d IS 'Impressions of 7 days.';
COMMENT ON COLUMN features.daily_values.click_7d IS 'Clicks of 7 days.';
COMMENT ON COLUMN features.daily_values.view_7d IS 'Views of 7 days.';
COMMENT ON COLUMN features.daily_values.favorite_7d IS 'Favourites of 7 days.';
COMMENT ON COLUMN features.daily_values.cart_7d IS 'Times put into the cart, of 7 days.';
COMMENT ON COLUMN features.daily_values.consult_7d IS 'Consultations of 7 days.';
COMMENT ON COLUMN features.daily_values.comment_7d IS 'Comments of 7 days.';
COMMENT ON COLUMN features.daily_values.search_7d IS 'Searches of 7 days.';
COMMENT ON COLUMN features.daily_values.click_rate_7d IS 'click_7d / impression_7d, null without impressions.';

CREATE TABLE features.daily_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    offsets jsonb NOT NULL DEFAULT '{}',
    as_of_day date,
    stale boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
INSERT INTO features.daily_state DEFAULT VALUES;
COMMENT ON TABLE features.daily_state IS 'How far the static features have come.';
COMMENT ON COLUMN features.daily_state.one IS 'There is one row.';
COMMENT ON COLUMN features.daily_state.offsets IS
    'Partition → behaviour offset: what lies before it in the history has made its days pending, or is counted.';
COMMENT ON COLUMN features.daily_state.as_of_day IS 'The windows of features.daily_values end with this UTC day; null: there are none.';
COMMENT ON COLUMN features.daily_state.stale IS 'Whether a day of these windows was counted anew since.';
