-- What a commit counted is some kB: kept in the row, and not cut into pieces of 2 kB in another table, it is written, read by the
-- next owner and deleted in less than half the time. Longer ones go there as before.
ALTER TABLE features.seen SET (toast_tuple_target = 8160);
