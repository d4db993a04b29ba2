"""A consumer that keeps its checkpoint in a file: python -m tests.server.change_log_worker DSN FILE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from rtrec_ray.errors import StoreUnavailable
from rtrec_ray.postgres.connection import PostgresOptions
from rtrec_ray.stores.changes.log import LogPlace
from rtrec_ray.stores.changes.postgres import PostgresChangeLog


def main(dsn: str, file: Path) -> None:
    """Follow for ever; a checkpoint holds the numbers of all rows seen, and is replaced whole."""
    kept = json.loads(file.read_text()) if file.exists() else {"seq": 0, "lsn": None, "numbers": [], "features": 0}
    log = PostgresChangeLog(PostgresOptions(dsn=dsn), name="worker", columns=("commit_seq", "features"))
    log.begin(LogPlace(commit_seq=kept["seq"], lsn=kept["lsn"]))
    while True:
        try:
            changes = log.poll(max_rows=37, timeout_s=0.2)
        except StoreUnavailable:
            continue
        if changes is None:
            continue
        kept["numbers"] += changes.rows["commit_seq"].to_list()
        kept["features"] += int((changes.rows["features"].str.len_bytes() > 2).sum())
        kept["fallbacks"] = log.health.fallbacks
        kept |= {"seq": changes.place.commit_seq, "lsn": changes.place.lsn}
        fresh = file.with_suffix(".new")
        fresh.write_text(json.dumps(kept))
        os.replace(fresh, file)
        log.acknowledge(changes.place)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
