-- name: watermark
SELECT min(watermark_ms) FROM meta.progress WHERE task = 'samples';

-- name: list_misses
SELECT request_id, item_id FROM samples.misses WHERE event_time_ms >= %(from_ms)s AND event_time_ms < %(to_ms)s;

-- name: list_sampled_out
SELECT request_id, item_id FROM samples.sampled_out WHERE event_time_ms >= %(from_ms)s AND event_time_ms < %(to_ms)s;

-- name: find_origins (where the impressions of some samples came from)
SELECT request_id, item_id, source_partition, source_offset
FROM samples.revisions JOIN unnest(%(request_ids)s::text[], %(item_ids)s::bigint[]) AS k (request_id, item_id)
     USING (request_id, item_id)
WHERE revision = 0;

-- name: read_mixed
SELECT mixed FROM samples.settings;
