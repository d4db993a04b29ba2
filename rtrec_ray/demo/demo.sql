-- name: applied (offsets begin at 0 and the topics have no transactions, so positions add up to events)
SELECT task, sum(next_offset)::bigint FROM meta.positions WHERE topic = %(topic)s GROUP BY task;
