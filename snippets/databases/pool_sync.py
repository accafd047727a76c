"""A PostgreSQL pool that survives a database restart and fails fast when it is empty (sync).

psycopg-pool lends, grows and reconnects. Added here: a start that waits for the server but not for
a wrong password, a ping before a connection is lent, and no trace of whoever had it before.
"""

from __future__ import annotations

import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import psycopg
import psycopg_pool
from psycopg import Connection, generators, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import DictRow, dict_row

_Connection = Connection[DictRow]
_Pool = psycopg_pool.ConnectionPool[_Connection]
_N = TypeVar("_N", int, float)

_FIRST_DELAY, _LONGEST_DELAY = 0.1, 2.0  # seconds between the attempts of open()
_ANSWER_WITHIN = 1.0  # seconds for a ping or a reset; a healthy server takes less than a thousandth

# A failed connection has no SQLSTATE, only the server's words. These mean 28P01, 28000, 3D000 or a
# bad setting, and another attempt cannot help. Words that are not recognized are tried again.
_HOPELESS = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|does not exist|invalid \w+ value"
)

# DISCARD ALL without its DEALLOCATE ALL, which would empty the server's prepared statements behind
# psycopg's back. RESET ALL alone would leave the role, the locks, the temp tables and the LISTENs.
_RESET = (
    b"CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; "
    b"SELECT pg_advisory_unlock_all(); UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES"
)

# A peer that vanished without a goodbye is given up after a minute. Without these: hours.
_KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_KEEPALIVE |= {"tcp_user_timeout": 60_000}


class PoolUnavailable(Exception):
    """The server could not be reached, or no connection became free in time."""


class PoolClosed(Exception):
    """The pool is not open: not yet, or no longer."""


@dataclass(frozen=True)
class PoolConfig:
    """Settings of a pool, in seconds unless a name ends in `_ms`. A bad one raises `ValueError`.

    Attributes:
        dsn: `postgresql://user:password@host:port/dbname`; shown nowhere with its password.
        min_size: Connections to keep open.
        max_size: Connections this process may hold, see `pool_size_for`.
        acquire_timeout: How long a caller waits for a connection.
        connect_timeout: How long an attempt to connect may take: whole seconds, 2 at least.
        open_deadline: How long `open()` goes on trying.
        statement_timeout_ms: The server cancels a statement that takes longer; 0 never.
        idle_in_tx_timeout_ms: The server ends a session that idles in a transaction; 0 never.
        max_lifetime: Age at which a returned connection is replaced.
        app_name: The `application_name` in `pg_stat_activity`.

    """

    dsn: str
    min_size: int = 1
    max_size: int = 10
    acquire_timeout: float = 5.0
    connect_timeout: int = 5
    open_deadline: float = 30.0
    statement_timeout_ms: int = 30_000
    idle_in_tx_timeout_ms: int = 60_000
    max_lifetime: float = 1800.0
    app_name: str = "app"

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> PoolConfig:
        """Read DATABASE_URL and, if set, DB_POOL_MIN, DB_POOL_MAX and DB_ACQUIRE_TIMEOUT.

        A missing or malformed variable raises `ValueError`, which names it.
        """

        def number(variable: str, default: _N) -> _N:
            try:
                return type(default)(env.get(variable) or default)
            except ValueError:
                raise ValueError(f"{variable} is not a number: {env[variable]!r}") from None

        if not env.get("DATABASE_URL"):
            raise ValueError("DATABASE_URL is not set")
        return cls(
            env["DATABASE_URL"],
            min_size=number("DB_POOL_MIN", cls.min_size),
            max_size=number("DB_POOL_MAX", cls.max_size),
            acquire_timeout=number("DB_ACQUIRE_TIMEOUT", cls.acquire_timeout),
        )

    def __post_init__(self) -> None:
        try:
            target = conninfo_to_dict(self.dsn)
        except (psycopg.ProgrammingError, UnicodeError):  # they quote the DSN: go no further
            target = {}
        # An @ or a / left bare in a password, or no host, moves a part of it into one of these.
        ports = str(target.get("port") or 0).replace(",", "")
        misplaced = "@" in f"{target.get('host')}{target.get('dbname')}" or not ports.isdigit()
        if not target or misplaced:
            raise ValueError(
                "dsn (DATABASE_URL) is not postgresql://user:password@host:port/dbname "
                "with the password percent-encoded"
            )
        if not 0 <= self.min_size <= self.max_size or self.max_size < 1:
            raise ValueError(
                f"min_size {self.min_size} and max_size {self.max_size} (DB_POOL_MIN, DB_POOL_MAX) "
                "are not 0 <= min <= max and 1 <= max"
            )
        timeout = "acquire_timeout (DB_ACQUIRE_TIMEOUT)"
        for name in (timeout, "connect_timeout", "open_deadline", "max_lifetime"):
            if not 0 < (value := getattr(self, name.split()[0])) < math.inf:
                raise ValueError(f"{name} is not a positive number of seconds: {value}")

    def __repr__(self) -> str:
        target = conninfo_to_dict(self.dsn)
        shown: dict[str, Any] = {k: target.get(k) for k in ("user", "host", "port", "dbname")}
        rest = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self)[1:])
        return f"PoolConfig({make_conninfo('', **shown)!r}, {rest})"

    def conninfo(self) -> str:
        """Return what psycopg connects with: the DSN, password included, and the settings above."""
        given: dict[str, Any] = conninfo_to_dict(self.dsn)
        # As start-up options the timeouts are this session's defaults: RESET ALL returns to them.
        options = (
            f"{given.get('options', '')} -c statement_timeout={self.statement_timeout_ms}"
            f" -c idle_in_transaction_session_timeout={self.idle_in_tx_timeout_ms}"
        )
        own = {"application_name": self.app_name, "connect_timeout": self.connect_timeout}
        return make_conninfo("", **_KEEPALIVE | given | own | {"options": options.strip()})


@dataclass(frozen=True)
class PoolStats:
    """Connections of this process, those of them that idle, and callers that wait for one.

    `waiting` includes callers who gave up since a connection came back last.
    """

    size: int = 0
    max_size: int = 0
    idle: int = 0
    waiting: int = 0


def pool_size_for(max_connections: int, reserved: int, processes: int) -> int:
    """Return the largest `max_size` with which all processes together fit into one server.

    `max_connections` is the server's setting, `reserved` what superusers, migrations and other
    programs need, `processes` the workers on all hosts, both generations of a rolling deployment.
    Raises `ValueError` if there is not one connection for each.
    """
    size = (max_connections - reserved) // processes if processes > 0 else 0
    if size < 1:
        raise ValueError(
            f"{max_connections} connections, {reserved} of them reserved, are too few for "
            f"{processes} processes: start fewer, or put PgBouncer in between"
        )
    return size


class Database:
    """A pool whose connections are pinged before they are lent and cleaned when they come back.

    Use it as `with Database(config) as db:`, or call `open()` and always `close()`.
    `clock` (monotonic seconds), `sleep` and `rng` (0 to 1) are there for tests.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._clock, self._sleep, self._rng = clock, sleep, rng
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._drained_at = -math.inf

    def __enter__(self) -> Database:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def open(self) -> None:
        """Wait until the server can be reached, then start the pool; do nothing if it is open.

        Raises `PoolUnavailable` if the server refuses the user, the password or the database (at
        once), or if there was no server within `open_deadline`.
        """
        with self._lock:  # or ten first requests would build ten pools
            if self._pool is not None:
                return
            self._reach_the_server()
            pool: _Pool = psycopg_pool.ConnectionPool(
                self.config.conninfo(),
                kwargs={"row_factory": dict_row},
                min_size=self.config.min_size,
                max_size=self.config.max_size,
                max_lifetime=self.config.max_lifetime,
                # psycopg-pool doubles its delay for 5 minutes, in which callers wait in vain for a
                # server that is back. Given up as early as a caller, the next connects at once.
                reconnect_timeout=self.config.acquire_timeout,
                name=self.config.app_name,
                open=False,
            )
            pool.open()
            self._pool = pool

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool, with `timeout` seconds for its own threads; do nothing if it is closed.

        Lent connections are closed when they come back.
        """
        pool, self._pool = self._pool, None
        if pool:
            pool.close(timeout)

    @contextmanager
    def connection(
        self,
        timeout: float | None = None,
    ) -> Iterator[Connection[DictRow]]:
        """Lend a connection for one transaction; `timeout` replaces `acquire_timeout`.

        The end of the block commits; an exception that leaves it rolls back.
        Raises `PoolUnavailable` if no connection was free in time or the server is gone, and
        `PoolClosed` if the pool is not open.
        """
        if (pool := self._pool) is None:
            raise PoolClosed("the pool is not open: call open() first")
        conn = self._borrow(pool, self.config.acquire_timeout if timeout is None else timeout)
        try:
            with conn:
                yield conn
        finally:
            try:
                _clean(conn)
            except BaseException as error:
                conn.close()  # what cannot be cleaned is replaced
                if not isinstance(error, psycopg.Error):
                    raise
            finally:
                pool.putconn(conn)

    def healthy(self) -> bool:
        """Tell whether a connection can be borrowed now: the server answers. Never raises."""
        try:
            with self.connection():
                return True
        except (PoolUnavailable, PoolClosed):
            return False

    def stats(self) -> PoolStats:
        """Return the numbers of this moment, all zero if the pool is not open."""
        now = self._pool.get_stats() if self._pool else {}
        names = ("pool_size", "pool_max", "pool_available", "requests_waiting")
        return PoolStats(*(now.get(name, 0) for name in names))

    def _reach_the_server(self) -> None:
        deadline, delay = self._clock() + self.config.open_deadline, _FIRST_DELAY
        while True:
            # The last attempt starts at the deadline; psycopg gives each two seconds at least.
            left = math.ceil(max(deadline - self._clock(), 0.5))
            seconds = min(self.config.connect_timeout, left)
            try:
                Connection.connect(self.config.conninfo(), connect_timeout=seconds).close()
            except psycopg.OperationalError as error:
                reason = str(error)
                if _HOPELESS.search(reason):
                    raise PoolUnavailable(f"the server refuses: {reason}") from error
                if (pause := deadline - self._clock()) <= 0:
                    waited = f"{self.config.open_deadline:g} s"
                    raise PoolUnavailable(f"no server within {waited}: {reason}") from error
            else:
                return
            self._sleep(min(self._rng() * delay, pause))
            delay = min(2 * delay, _LONGEST_DELAY)

    def _borrow(self, pool: _Pool, seconds: float) -> _Connection:
        deadline, dead = self._clock() + seconds, None
        while True:
            try:
                conn = pool.getconn(deadline - self._clock())
            except psycopg_pool.PoolTimeout:
                found = f"{self.stats()}, last seen: {dead}" if dead else f"{self.stats()}"
                raise PoolUnavailable(f"no connection within {seconds:g} s: {found}") from dead
            except psycopg_pool.PoolClosed:
                raise PoolClosed("the pool was closed") from None
            asked_at = self._clock()
            try:
                _ask(conn, b"", min(_ANSWER_WITHIN, seconds))
            except BaseException as error:
                silent = not conn.closed  # what is broken counts as closed by now
                conn.close()
                pool.putconn(conn)  # given back closed, it is replaced
                if not isinstance(error, psycopg.Error):
                    raise
                dead = error
            else:
                return conn
            # If the next ones are broken too, a ping shows it at once. But every silent one would
            # cost the whole wait, so the idle ones are then replaced together and unseen.
            if silent and asked_at > self._drained_at:
                self._drained_at = self._clock()
                pool.drain()


def _clean(conn: _Connection) -> None:
    """Take back whatever a borrower may have set, on the server and in the client."""
    _ask(conn, _RESET, _ANSWER_WITHIN)
    for _ in conn.notifies(timeout=0):
        pass  # notifications that came before UNLISTEN and that nobody read
    conn.set_autocommit(False)
    conn.set_isolation_level(None)
    conn.set_read_only(None)
    conn.set_deferrable(None)
    conn.row_factory = dict_row


def _ask(conn: _Connection, command: bytes, seconds: float) -> None:
    """Run a command with a deadline; `execute()` would wait for a silent peer without end."""
    conn.pgconn.send_query(command)
    for result in conn.wait(generators.execute(conn.pgconn), timeout=seconds):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())
