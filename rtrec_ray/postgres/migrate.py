"""Plain SQL migrations, applied in order under a lock."""

from __future__ import annotations

import logging
from importlib import resources

from rtrec_ray.postgres.connection import PostgresOptions, connect, transaction, translated

log = logging.getLogger(__name__)

_LOCK = 0x7274_7265  # "rtre": any number that no other program of the database locks
_BOOK = """
CREATE SCHEMA IF NOT EXISTS meta;
CREATE TABLE IF NOT EXISTS meta.migrations (
    name text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON SCHEMA meta IS 'Leases, positions, events, datasets and lineage.';
COMMENT ON TABLE meta.migrations IS 'The migrations applied to this database.';
COMMENT ON COLUMN meta.migrations.name IS 'File name, NNNN_what.sql; they are applied in this order.';
COMMENT ON COLUMN meta.migrations.applied_at IS 'When it was applied.';
"""


def files() -> dict[str, str]:
    """Every migration's text by file name, in order."""
    folder = resources.files(__package__) / "migrations"
    found = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return {entry.name: entry.read_text(encoding="utf-8") for entry in found}


def migrate(options: PostgresOptions) -> list[str]:
    """Apply what is missing, each in a transaction of its own; answers the names applied. Raises StoreUnavailable."""
    applied = []
    connection = connect(options, application="rtrec-migrate")
    try:
        with translated(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            cursor.execute(_BOOK)
            connection.commit()
        for name, text in files().items():
            with transaction(connection) as cursor:
                cursor.execute("SELECT 1 FROM meta.migrations WHERE name = %s", (name,))
                if cursor.fetchone() is None:
                    cursor.execute(text)
                    cursor.execute("INSERT INTO meta.migrations (name) VALUES (%s)", (name,))
                    applied.append(name)
    finally:
        connection.close()  # ends the session and with it the advisory lock
    log.info("migrations_applied", extra={"names": applied})
    return applied
