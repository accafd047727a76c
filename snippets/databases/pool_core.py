"""What the async and the sync pool share: settings, statements, errors, when to give up."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_N = TypeVar("_N", int, float)

FIRST_DELAY, LONGEST_DELAY = 0.1, 2.0  # seconds between the attempts of open()
ANSWER_WITHIN = 1.0  # seconds for a ping or a reset; a healthy server takes less than a thousandth

PING = b""
# DISCARD ALL without its DEALLOCATE ALL, which would empty the server's prepared statements behind
# psycopg's back. RESET ALL alone would leave the role, the locks, the temp tables and the LISTENs.
RESET = (
    b"CLOSE ALL; RESET SESSION AUTHORIZATION; RESET ALL; "
    b"SELECT pg_advisory_unlock_all(); UNLISTEN *; DISCARD TEMP; DISCARD SEQUENCES"
)

# A failed connection has no SQLSTATE, only the server's words. These mean 28P01, 28000, 3D000 or a
# bad setting, and another attempt cannot help. Words that are not recognized are tried again.
_HOPELESS = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|does not exist|invalid \w+ value"
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
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> PoolConfig:
        """Read DATABASE_URL and, if set, DB_POOL_MIN, DB_POOL_MAX and DB_ACQUIRE_TIMEOUT.

        Raises:
            RuntimeError: DATABASE_URL is not set, or is empty.
            ValueError: A variable is malformed; the message names it.

        """

        def number(variable: str, default: _N) -> _N:
            try:
                return type(default)(environ.get(variable) or default)
            except ValueError:
                kind = "a whole number" if isinstance(default, int) else "a number"
                raise ValueError(f"{variable} must be {kind}, got {environ[variable]!r}") from None

        if not environ.get("DATABASE_URL"):
            raise RuntimeError("DATABASE_URL is not set, or is empty")
        return cls(
            environ["DATABASE_URL"],
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
        _check_count("max_size (DB_POOL_MAX)", self.max_size, 1)
        _check_count("min_size (DB_POOL_MIN)", self.min_size, 0, self.max_size)
        _check_count("connect_timeout", self.connect_timeout, 1)
        _check_count("statement_timeout_ms", self.statement_timeout_ms, 0)
        _check_count("idle_in_tx_timeout_ms", self.idle_in_tx_timeout_ms, 0)
        timeout = "acquire_timeout (DB_ACQUIRE_TIMEOUT)"
        for name in (timeout, "open_deadline", "max_lifetime"):
            value = getattr(self, name.split()[0])
            if not _is_number(value) or value <= 0:
                raise ValueError(f"{name} must be a number of seconds over 0, got {value!r}")

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

    @classmethod
    def of(cls, found: Mapping[str, int]) -> PoolStats:
        """Return what psycopg-pool's own numbers say; all zero if there are none."""
        names = ("pool_size", "pool_max", "pool_available", "requests_waiting")
        return cls(*(found.get(name, 0) for name in names))


def pool_size_for(max_connections: int, reserved: int, processes: int) -> int:
    """Return the largest `max_size` with which all processes together fit into one server.

    `max_connections` is the server's setting, `reserved` what superusers, migrations and other
    programs need, `processes` the workers on all hosts, both generations of a rolling deployment.
    Raises `ValueError` if there is not one connection for each.
    """
    _check_count("max_connections", max_connections, 0)
    _check_count("reserved", reserved, 0)
    _check_count("processes", processes, 1)
    size = (max_connections - reserved) // processes
    if size < 1:
        raise ValueError(
            f"{max_connections} connections, {reserved} of them reserved, are too few for "
            f"{processes} processes: start fewer, or put PgBouncer in between"
        )
    return size


def finite_seconds(timeout: float) -> float:
    """Return a caller's timeout as it is; `ValueError` if it is no finite number."""
    if not _is_number(timeout):
        raise ValueError(f"timeout must be a finite number of seconds, got {timeout!r}")
    return timeout


def why_give_up(failure: Exception, left: float, config: PoolConfig) -> str | None:
    """Return why `open()` must not try again; None if it may. `left` is until the deadline."""
    if _HOPELESS.search(str(failure)):
        return f"the server refuses: {failure}"
    return None if left > 0 else f"no server within {config.open_deadline:g} s: {failure}"


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _check_count(name: str, value: int, least: int, most: float = math.inf) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not least <= value <= most:
        words = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {words}, got {value!r}")
