"""What the proofs of connection-pool share: pools of either color, an observer, a server to break, frozen backends."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import psycopg
import pytest

import pool_async
import pool_sync
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.waiting import until
from pool_core import PING, PoolConfig
from servers.postgres import Postgres

NOWHERE = "postgresql://app:hunter2@127.0.0.1:1/app"

Admin = psycopg.Connection[Any]


class Pools:
    """Makes pools of one color, which are closed after the test."""

    def __init__(self, color: Color, url: str) -> None:
        self.color, self.url = color, url
        self.module: ModuleType = color.pick(pool_async, pool_sync)

    def database(self, dsn: str | None = None, clock: Clock | None = None, **settings: Any) -> Blocking:
        """Make one that is not open yet."""
        tools: dict[str, Any] = {"rng": settings.pop("rng")} if "rng" in settings else {}
        if clock:
            tools |= {"clock": clock, "sleep": self.color.pick(clock.asleep, clock.sleep)}
        config = PoolConfig(dsn or self.url, **{"app_name": f"app-{uuid.uuid4().hex}"} | settings)
        kind: Any = self.color.pick(pool_async.AsyncDatabase, pool_sync.Database)
        return Blocking(self.color, self.color.closing(kind(config, **tools)))

    def opened(self, dsn: str | None = None, **settings: Any) -> Blocking:
        """Make one, open it and wait until its `min_size` connections idle."""
        db = self.database(dsn, **settings)
        db.open()
        until(lambda: db.stats().idle >= settings.get("min_size", 1))
        return db


@contextlib.contextmanager
def lent(db: Blocking, timeout: float | None = None) -> Iterator[Blocking]:
    """Borrow a connection; its methods are called as if it were sync."""
    with db.connection(timeout) as conn:
        yield db.color.blocking(conn)


def run(conn: Blocking, query: str, *params: object) -> list[Any]:
    """Execute on either kind of connection and return the rows."""
    cursor = conn.color.call(conn.inner.execute, query, params or None)
    return list(conn.color.run(cursor.fetchall())) if cursor.description else []


def value(conn: Blocking, query: str, *params: object) -> Any:
    """Return the one value of the one row."""
    (row,) = run(conn, query, *params)
    (found,) = row.values()
    return found


def pid_of(db: Blocking, timeout: float | None = None) -> int:
    """Borrow a connection and tell which backend serves it."""
    with lent(db, timeout) as conn:
        return int(value(conn, "SELECT pg_backend_pid()"))


class Asked(NamedTuple):
    """A ping or a reset: which backend was asked, what, and how many seconds it had."""

    pid: int
    command: bytes
    seconds: float


class Asking(list[Asked]):
    """Every ping and reset, in order, of a module whose `_ask_server` is watched."""

    def pings(self, pids: set[int]) -> list[Asked]:
        """The pings that these backends got."""
        return [asked for asked in self if asked.command == PING and asked.pid in pids]


def watch_asking(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Asking:
    """Keep what the module asks its server from now on."""
    asking, ask = Asking(), module._ask_server

    def watched(conn: Any, command: bytes, seconds: float) -> Any:
        asking.append(Asked(conn.info.backend_pid, command, seconds))
        return ask(conn, command, seconds)

    monkeypatch.setattr(module, "_ask_server", watched)
    return asking


@pytest.fixture(scope="module")
def admin(module_database_url: str) -> Iterator[Admin]:
    """An observer's connection, in a database of this file's own."""
    with psycopg.connect(module_database_url, autocommit=True) as admin:
        yield admin


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that these proofs restart, freeze and give a password."""
    server = Postgres(max_connections=60)
    try:
        with psycopg.connect(server.url, autocommit=True) as admin:
            admin.execute("CREATE ROLE guarded LOGIN PASSWORD 'p@ss:word/1'")
            (file,) = admin.execute("SHOW hba_file").fetchone() or ("",)
            rules = "host all guarded all scram-sha-256\nhost all barred all reject\nhost all all all trust\n"
            admin.execute(f"COPY (SELECT regexp_split_to_table('{rules}', '\n')) TO '{file}'")
        server.stop(keep=True)
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def pools(color: Color, module_database_url: str) -> Pools:
    """Pools of either color."""
    return Pools(color, module_database_url)


def backends(admin: Admin, db: Blocking) -> set[int]:
    """The server's processes that serve this database object."""
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return {row[0] for row in admin.execute(query, (db.config.app_name,))}


def kill(admin: Admin, pids: set[int]) -> None:
    """End these backends and wait until the server has forgotten them."""
    admin.execute("SELECT pg_terminate_backend(p) FROM unnest(%s::int[]) p", (list(pids),))
    alive = "SELECT FROM pg_stat_activity WHERE pid = ANY (%s)"
    while admin.execute(alive, (list(pids),)).fetchone():
        time.sleep(0.001)


@contextlib.contextmanager
def frozen(pids: set[int]) -> Iterator[None]:
    """Connected, and silent: what a firewall that forgot the connection looks like."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def spied(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, seen: Callable[..., object]) -> None:
    """Have `seen` called with the arguments of each call of a function or method, which goes on as before."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        seen(*args, **kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
