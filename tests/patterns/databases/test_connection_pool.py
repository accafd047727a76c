"""Proves docs/patterns/databases/connection-pool.md: borrowing, dead connections, restarts, deadlines, clean sessions.

Every proof runs over both twins: the blocking one answers through threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import inspect
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar
from urllib.parse import quote

import httpx2
import psycopg
import psycopg_pool
import pytest
from fastapi import Depends, FastAPI
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import tuple_row

import pool
import pool_sync
from servers.faults import FaultProxy
from servers.postgres import Postgres

THREADS = concurrent.futures.ThreadPoolExecutor(120)
NOWHERE = "postgresql://app:hunter2@127.0.0.1:1/app"


async def in_thread(call: Callable[..., Any], *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(THREADS, call, *args)


class BlockingTwin:
    """`pool_sync.Database` behind the interface of `pool.AsyncDatabase`."""

    def __init__(self, config: Any, **tools: Any) -> None:
        self.db = pool_sync.Database(config, **tools)
        self.stats = self.db.stats

    async def open(self) -> None:
        await in_thread(self.db.open)

    async def close(self, timeout: float = 5.0) -> None:
        await in_thread(self.db.close, timeout)

    async def healthy(self) -> bool:
        return bool(await in_thread(self.db.healthy))

    @contextlib.asynccontextmanager
    async def connection(self, timeout: float | None = None) -> AsyncIterator[Any]:
        block = self.db.connection(timeout)
        conn = await in_thread(block.__enter__)
        try:
            yield conn
        except BaseException as error:
            await in_thread(block.__exit__, type(error), error, error.__traceback__)
            raise
        else:
            await in_thread(block.__exit__, None, None, None)

    async def __aenter__(self) -> BlockingTwin:
        await in_thread(self.db.__enter__)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await in_thread(self.db.__exit__, *exc_info)


async def run(conn: Any, query: str, *params: object) -> list[Any]:
    """Execute on either kind of connection and return the rows."""

    def blocking() -> list[Any]:
        cursor = conn.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    if isinstance(conn, psycopg.Connection):
        return list(await in_thread(blocking))
    cursor = await conn.execute(query, params or None)
    return list(await cursor.fetchall()) if cursor.description else []


async def value(conn: Any, query: str, *params: object) -> Any:
    """Return the one value of the one row."""
    (row,) = await run(conn, query, *params)
    (found,) = row.values()
    return found


async def pid_of(db: Any) -> int:
    """Borrow a connection and tell which backend serves it."""
    async with db.connection() as conn:
        return int(await value(conn, "SELECT pg_backend_pid()"))


async def until(true: Callable[[], bool], within: float = 1.0) -> None:
    """Poll until it is true, and fail if that takes longer."""
    deadline = time.monotonic() + within
    while not true():
        assert time.monotonic() < deadline, f"not so within {within} s"
        await asyncio.sleep(0.002)


class Watch:
    """A clock that only pauses move, and the record of those pauses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []
        self.at: dict[float, Callable[[], None]] = {}

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds
        for moment in [m for m in self.at if sum(self.pauses) >= m]:
            self.at.pop(moment)()


class Twin:
    """One of the two modules, and databases of it that are closed after the test."""

    def __init__(self, name: str, url: str) -> None:
        self.module: Any = {"async": pool, "sync": pool_sync}[name]
        self.name, self.url = name, url
        self.made: list[Any] = []

    def config(self, dsn: str | None = None, **settings: Any) -> Any:
        settings.setdefault("app_name", f"app-{uuid.uuid4().hex}")
        return self.module.PoolConfig(dsn or self.url, **settings)

    def database(self, dsn: str | None = None, watch: Watch | None = None, **settings: Any) -> Any:
        rng = settings.pop("rng", None)
        tools: dict[str, Any] = {"rng": rng} if rng else {}
        if watch:
            tools |= {"clock": watch.clock, "sleep": watch.sleep}
        if watch and self.name == "async":

            async def sleep(seconds: float) -> None:
                watch.sleep(seconds)

            tools["sleep"] = sleep
        kind = pool.AsyncDatabase if self.name == "async" else BlockingTwin
        self.made.append(kind(self.config(dsn, **settings), **tools))
        return self.made[-1]

    async def opened(self, dsn: str | None = None, **settings: Any) -> Any:
        """Open a database and wait until its `min_size` connections idle."""
        db = self.database(dsn, **settings)
        await db.open()
        await until(lambda: db.stats().idle >= settings.get("min_size", 1))
        return db


@pytest.fixture(scope="module")
def admin(postgres_url: str) -> Iterator[psycopg.Connection[Any]]:
    """An observer's connection, in a database of this module's own."""
    name = f"pool_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as maintenance:
        maintenance.execute(f'CREATE DATABASE "{name}"')
        try:
            with psycopg.connect(postgres_url, dbname=name, autocommit=True) as admin:
                yield admin
        finally:
            maintenance.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


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


@pytest.fixture(params=["async", "sync"])
async def twin(request: pytest.FixtureRequest, admin: psycopg.Connection[Any]) -> AsyncIterator[Twin]:
    password = admin.info.password
    twin = Twin(request.param, admin.info.dsn + (f" password='{password}'" if password else ""))
    yield twin
    for db in twin.made:
        await db.close()


@pytest.fixture
async def solo(admin: psycopg.Connection[Any]) -> AsyncIterator[pool.AsyncDatabase]:
    """An async pool of exactly one connection."""
    twin = Twin("async", f"{admin.info.dsn} password='{admin.info.password}'")
    yield await twin.opened(max_size=1)
    for db in twin.made:
        await db.close()


@pytest.fixture(params=[pool, pool_sync], ids=["async", "sync"])
def module(request: pytest.FixtureRequest) -> Any:
    return request.param


def backends(admin: psycopg.Connection[Any], db: Any) -> set[int]:
    """The server's processes that serve this database object."""
    name = getattr(db, "db", db).config.app_name
    query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
    return {row[0] for row in admin.execute(query, (name,))}


def kill(admin: psycopg.Connection[Any], pids: set[int]) -> None:
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


# ---- configuration -----------------------------------------------------------------------------


def test_both_twins_have_the_same_names_defaults_and_signatures() -> None:
    def public(module: ModuleType) -> dict[str, object]:
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
        return {k.removeprefix("Async"): v for k, v in own.items() if not k.startswith("_")}

    one, other = public(pool), public(pool_sync)
    assert (
        set(one)
        == set(other)
        == {"PoolClosed", "PoolConfig", "PoolStats", "PoolUnavailable", "Database", "pool_size_for"}
    )
    for name in set(one) - {"Database"}:
        assert inspect.getsource(one[name]) == inspect.getsource(other[name])  # type: ignore[arg-type]
    for name in ("open", "close", "connection", "healthy", "stats"):
        a, b = (inspect.signature(getattr(m, name)) for m in (pool.AsyncDatabase, pool_sync.Database))
        assert [(p.name, p.default) for p in a.parameters.values()] == [
            (p.name, p.default) for p in b.parameters.values()
        ]


def test_the_defaults_are_those_the_page_names(module: Any) -> None:
    assert dataclasses.asdict(module.PoolConfig("host=h")) == {
        "dsn": "host=h",
        "min_size": 1,
        "max_size": 10,
        "acquire_timeout": 5.0,
        "connect_timeout": 5,
        "open_deadline": 30.0,
        "statement_timeout_ms": 30_000,
        "idle_in_tx_timeout_ms": 60_000,
        "max_lifetime": 1800.0,
        "app_name": "app",
    }


def test_settings_come_from_the_environment(module: Any) -> None:
    env = {"DATABASE_URL": "host=h", "DB_POOL_MIN": "2", "DB_POOL_MAX": "7", "DB_ACQUIRE_TIMEOUT": "0.5"}
    assert module.PoolConfig.from_env(env) == module.PoolConfig("host=h", min_size=2, max_size=7, acquire_timeout=0.5)
    unset = {"DATABASE_URL": "host=h", "DB_POOL_MIN": "", "DB_POOL_MAX": ""}
    assert module.PoolConfig.from_env(unset) == module.PoolConfig("host=h")


def test_the_real_environment_is_the_default(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "host=elsewhere")
    assert module.PoolConfig.from_env().dsn == "host=elsewhere"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
        ({"DB_POOL_MIN": "few"}, "DB_POOL_MIN is not a number: 'few'"),
        ({"DB_POOL_MAX": "1.5"}, "DB_POOL_MAX is not a number: '1.5'"),
        ({"DB_ACQUIRE_TIMEOUT": "5s"}, "DB_ACQUIRE_TIMEOUT is not a number: '5s'"),
        (
            {"DB_ACQUIRE_TIMEOUT": "nan"},
            "acquire_timeout (DB_ACQUIRE_TIMEOUT) is not a positive number of seconds: nan",
        ),
        ({"DB_POOL_MIN": "3", "DB_POOL_MAX": "2"}, "min_size 3 and max_size 2 (DB_POOL_MIN, DB_POOL_MAX)"),
        ({"DATABASE_URL": "postgresql+psycopg://u:hunter2@h/db"}, "dsn (DATABASE_URL) is not postgresql://"),
    ],
)
def test_a_missing_or_malformed_variable_is_named(module: Any, env: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        module.PoolConfig.from_env({"DATABASE_URL": "host=h"} | env)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_size": -1},
        {"min_size": 11},
        {"min_size": 0, "max_size": 0},
        {"acquire_timeout": 0},
        {"connect_timeout": 0},
        {"open_deadline": -1},
        {"max_lifetime": float("inf")},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused(module: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        module.PoolConfig("host=h", **wrong)


def test_a_pool_may_keep_no_idle_connection_or_exactly_its_maximum(module: Any) -> None:
    assert module.PoolConfig("host=h", min_size=0, max_size=1).min_size == 0
    assert module.PoolConfig("host=h", min_size=1, max_size=1).max_size == 1


@pytest.mark.parametrize("module", [pool, pool_sync], ids=["async", "sync"])
@given(middle=st.text("@/:?#[]%&=,. 1a'\\", max_size=6), encoded=st.booleans())
@example(middle="@", encoded=False)
@example(middle="/", encoded=False)
@example(middle="%a1", encoded=False)
@example(middle="@/:", encoded=True)
@settings(max_examples=40, deadline=None)
def test_no_message_and_no_repr_shows_the_password(module: Any, middle: str, encoded: bool) -> None:
    password = f"hunter2{middle}hunter2"
    dsn = f"postgresql://app:{quote(password, safe='') if encoded else password}@db.example:5433/shop"
    config, refused = None, None
    try:
        config = module.PoolConfig(dsn)
    except ValueError as error:
        refused = error
    if config:
        assert "hunter2" not in f"{config!r} {config}"
        assert "user=app host=db.example port=5433 dbname=shop" in repr(config)
        assert "dbname=shop', min_size=1, max_size=10, acquire_timeout=5.0" in repr(config)
    if encoded:
        assert config
        assert conninfo_to_dict(config.conninfo())["password"] == password
    if refused:
        assert "hunter2" not in str(refused)
        assert "percent-encoded" in str(refused)
        assert refused.__context__ is None  # nor does a logged chain show libpq's message


@pytest.mark.parametrize("dsn", ["postgresql://app:hunter2", "postgresql://app:hunter2/shop"])
def test_a_dsn_without_a_host_is_refused_and_not_shown(module: Any, dsn: str) -> None:
    with pytest.raises(ValueError, match="DATABASE_URL") as caught:
        module.PoolConfig(dsn)
    assert "hunter2" not in str(caught.value)


def test_several_hosts_each_with_a_port_are_accepted(module: Any) -> None:
    assert "port=5432,5433" in repr(module.PoolConfig("postgresql://app@a:5432,b:5433/shop"))


def test_libpq_repeats_a_malformed_dsn_with_its_password() -> None:
    with pytest.raises(psycopg.ProgrammingError, match="hunter2"):
        conninfo_to_dict("postgresql+psycopg://app:hunter2@db.example/shop")


async def test_a_percent_encoded_password_logs_in(twin: Twin, server: Postgres) -> None:
    dsn = server.url.replace("postgres@", "guarded:p%40ss%3Aword%2F1@")
    async with (await twin.opened(dsn)).connection() as conn:
        assert await value(conn, "SELECT current_user") == "guarded"


@pytest.mark.parametrize(
    ("connections", "reserved", "processes", "size"), [(100, 10, 8, 11), (10, 2, 8, 1), (10, 0, 3, 3)]
)
def test_the_size_of_a_pool_is_its_share_of_the_server(
    module: Any, connections: int, reserved: int, processes: int, size: int
) -> None:
    assert module.pool_size_for(connections, reserved, processes) == size


@pytest.mark.parametrize("numbers", [(100, 93, 8), (10, 20, 1), (10, 3, 0), (10, 3, -1)])
def test_too_many_processes_for_the_server_are_refused(module: Any, numbers: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=f"too few for {numbers[2]} processes"):
        module.pool_size_for(*numbers)


def test_a_vanished_server_is_noticed_by_keepalives_that_the_dsn_may_change(module: Any) -> None:
    config = module.PoolConfig("host=h keepalives_idle=7 options='-c search_path=shop'", connect_timeout=3)
    given = conninfo_to_dict(config.conninfo())
    assert {k: str(v) for k, v in given.items() if k not in ("host", "application_name")} == {
        "keepalives_idle": "7",
        "keepalives_interval": "10",
        "keepalives_count": "3",
        "tcp_user_timeout": "60000",
        "connect_timeout": "3",
        "options": "-c search_path=shop -c statement_timeout=30000 -c idle_in_transaction_session_timeout=60000",
    }
    assert conninfo_to_dict(module.PoolConfig("host=h").conninfo())["keepalives_idle"] == "30"


# ---- open and close ----------------------------------------------------------------------------


async def test_open_finds_a_server_that_starts_two_seconds_late(twin: Twin, server: Postgres) -> None:
    watch = Watch()
    db = twin.database(server.url, watch, open_deadline=5.0)
    server.stop(keep=True)
    watch.at[2.0] = server.start
    await db.open()
    assert watch.at == {}
    assert len(watch.pauses) > 3
    assert sum(watch.pauses) < 5
    async with db.connection() as conn:
        assert await run(conn, "SELECT 1 AS one") == [{"one": 1}]


async def test_open_gives_up_between_its_deadline_and_a_second_later(twin: Twin) -> None:
    db = twin.database(NOWHERE, open_deadline=0.2)
    begun = time.monotonic()
    with pytest.raises(twin.module.PoolUnavailable, match=r"no server within 0\.2 s.*refused") as caught:
        await db.open()
    assert 0.2 <= time.monotonic() - begun < 1.2
    assert "hunter2" not in str(caught.value)
    with pytest.raises(twin.module.PoolClosed):
        async with db.connection():
            pass


@pytest.mark.parametrize("jitter", [1.0, 0.5, 0.0001])
async def test_open_pauses_twice_as_long_each_time_up_to_two_seconds_with_full_jitter(
    twin: Twin, jitter: float
) -> None:
    watch = Watch()
    with pytest.raises(twin.module.PoolUnavailable):
        await twin.database(NOWHERE, watch, rng=lambda: jitter, open_deadline=0.01 * jitter + 7.1 * jitter).open()
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.01]
    assert watch.pauses == pytest.approx([jitter * pause for pause in longest])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("user=guarded password=hunter2", "password authentication failed"),
        ("user=guarded", "no password supplied"),
        ("user=barred", "pg_hba.conf rejects connection"),
        ("dbname=nowhere", 'database "nowhere" does not exist'),
        ("user=nobody", 'role "nobody" does not exist'),
        ("sslmode=maybe", "invalid sslmode value"),
    ],
)
async def test_a_login_that_is_refused_fails_at_the_first_attempt(
    twin: Twin, server: Postgres, wrong: str, words: str
) -> None:
    watch = Watch()
    dsn = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres {wrong}"
    with pytest.raises(twin.module.PoolUnavailable, match=f"the server refuses: .*{words}") as caught:
        await twin.database(dsn, watch).open()
    assert watch.pauses == []
    assert "hunter2" not in str(caught.value)


async def test_open_does_not_wait_for_ever_for_a_server_that_accepts_and_says_nothing(
    twin: Twin, admin: psycopg.Connection[Any], fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy(admin.info.hostaddr or admin.info.host, admin.info.port)
    proxy.blackhole = True
    db = twin.database(f"{twin.url} host=127.0.0.1 hostaddr=127.0.0.1 port={proxy.port}", open_deadline=0.1)
    begun = time.monotonic()
    with pytest.raises(twin.module.PoolUnavailable, match=r"no answer|timeout expired"):
        await db.open()
    slack = 1.0 if twin.name == "async" else 2.4  # a blocking attempt takes two whole seconds
    assert time.monotonic() - begun < 0.1 + slack


def test_a_blocking_attempt_takes_connect_timeout_or_what_is_left_of_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def refuse(conninfo: str, *, connect_timeout: int) -> None:
        seen.append(connect_timeout)
        raise psycopg.OperationalError("refused")

    monkeypatch.setattr(psycopg.Connection, "connect", refuse)
    watch = Watch()
    config = pool_sync.PoolConfig(NOWHERE, connect_timeout=5, open_deadline=7.3)
    db = pool_sync.Database(config, clock=watch.clock, sleep=watch.sleep, rng=lambda: 1.0)
    with pytest.raises(pool_sync.PoolUnavailable):
        db.open()
    assert seen == [5, 5, 5, 5, 5, 5, 3, 1, 1]  # psycopg makes two of one; 0 would be no limit at all


async def test_ten_concurrent_opens_build_one_pool(twin: Twin, admin: psycopg.Connection[Any]) -> None:
    db = twin.database(min_size=2)
    await asyncio.gather(*(db.open() for _ in range(10)))
    await until(lambda: db.stats().idle == 2)
    assert len(backends(admin, db)) == 2


async def test_a_pool_built_on_first_use_is_built_several_times() -> None:
    class Naive:
        built: ClassVar[list[object]] = []
        pool: object = None

        async def get(self) -> object:
            if self.pool is None:
                self.pool = await self.create()
            return self.pool

        async def create(self) -> object:
            await asyncio.sleep(0)  # any await at all: connecting takes many
            self.built.append(object())
            return self.built[-1]

    naive = Naive()
    await asyncio.gather(*(naive.get() for _ in range(5)))
    assert len(naive.built) == 5


async def test_opening_and_closing_twice_is_harmless_and_a_closed_pool_can_be_opened_again(
    twin: Twin, admin: psycopg.Connection[Any]
) -> None:
    db = await twin.opened()
    first = backends(admin, db)
    await db.open()
    assert backends(admin, db) == first
    await db.close()
    await db.close()
    await until(lambda: backends(admin, db) == set())
    with pytest.raises(twin.module.PoolClosed, match="call open"):
        async with db.connection():
            pass
    await db.open()
    assert await pid_of(db) not in first


async def test_a_caller_who_waits_while_the_pool_closes_is_told_so(twin: Twin) -> None:
    db = await twin.opened(max_size=1)
    async with db.connection() as conn:
        waiting = asyncio.create_task(pid_of(db))
        await until(lambda: db.stats().waiting == 1)
        await db.close()
        with pytest.raises(twin.module.PoolClosed, match="was closed"):
            await waiting
        assert await value(conn, "SELECT 1") == 1  # whoever holds one may finish
    assert conn.closed


async def test_the_with_block_opens_and_closes_the_pool(twin: Twin) -> None:
    async with twin.database() as db:
        assert await db.healthy()
    assert not await db.healthy()


async def test_a_pool_that_is_never_closed_can_keep_the_program_from_ending(admin: psycopg.Connection[Any]) -> None:
    # psycopg-pool's workers take a cancellation for a failed task and go on: asyncio.run() waits for them.
    workers: list[asyncio.Task[Any]] = []
    loops: list[asyncio.AbstractEventLoop] = []
    dsn = f"{admin.info.dsn} password='{admin.info.password}'"

    async def naive() -> None:
        db = pool.AsyncDatabase(pool.PoolConfig(dsn, min_size=3))
        await db.open()
        loops.append(asyncio.get_running_loop())
        workers.extend(asyncio.all_tasks() - {t for t in [asyncio.current_task()] if t})
        await asyncio.sleep(0)  # the workers are connecting now
        raise KeyError("the program fails here")

    async def closed() -> None:
        async with pool.AsyncDatabase(pool.PoolConfig(dsn, min_size=3)):
            await asyncio.sleep(0)
            raise KeyError("and here")

    def program() -> None:
        with contextlib.suppress(KeyError):
            asyncio.run(naive())

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    await in_thread(thread.join, 0.3)
    assert thread.is_alive()
    for worker in workers:  # a second cancellation meets them idle
        loops[0].call_soon_threadsafe(worker.cancel)
    await in_thread(thread.join, 5)
    assert not thread.is_alive()
    with pytest.raises(KeyError, match="and here"):
        await in_thread(asyncio.run, closed())


# ---- dead connections --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 5, 20])
async def test_after_all_idle_connections_died_a_lone_caller_is_served_within_a_second(
    twin: Twin, admin: psycopg.Connection[Any], size: int
) -> None:
    db = await twin.opened(min_size=size, max_size=size)
    await until(lambda: len(backends(admin, db)) == size)  # the one that open() tried with is gone
    dead = backends(admin, db)
    kill(admin, dead)
    begun = time.monotonic()
    assert await pid_of(db) not in dead
    assert time.monotonic() - begun < 1
    await until(lambda: db.stats().idle == size)
    kill(admin, backends(admin, db))
    await asyncio.gather(*(pid_of(db) for _ in range(size)))  # nor does anyone of many see an error


async def test_the_check_of_psycopg_pool_alone_makes_a_lone_caller_wait_for_seconds(
    twin: Twin, admin: psycopg.Connection[Any]
) -> None:
    name = f"naive-{uuid.uuid4().hex}"
    naive = psycopg_pool.AsyncConnectionPool(
        twin.url, kwargs={"application_name": name}, min_size=3, timeout=0.4, open=False,
        check=psycopg_pool.AsyncConnectionPool.check_connection,
    )  # fmt: skip
    async with naive:
        await naive.wait()
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        kill(admin, {row[0] for row in admin.execute(query, (name,))})
        with pytest.raises(psycopg_pool.PoolTimeout):  # the server is up all the while
            async with naive.connection():
                pass
    db = await twin.opened(min_size=3, acquire_timeout=0.4)
    kill(admin, backends(admin, db))
    assert await pid_of(db)


async def test_one_dead_connection_does_not_cost_the_others(twin: Twin, admin: psycopg.Connection[Any]) -> None:
    db = await twin.opened(min_size=4, max_size=4)
    before = backends(admin, db)
    dead = await pid_of(db)
    kill(admin, {dead})
    for _ in range(4):
        assert await pid_of(db) != dead
    await until(lambda: db.stats().idle == 4)
    after = backends(admin, db)
    assert before - after == {dead}
    assert len(after) == 4


async def test_silent_connections_are_replaced_together_after_one_unanswered_ping(
    twin: Twin, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin.module, "_ANSWER_WITHIN", 0.1)
    db = await twin.opened(server.url, min_size=10, max_size=10)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(silent := backends(admin, db)):
        assert len(silent) == 10
        begun = time.monotonic()
        assert await pid_of(db) not in silent
        assert 0.1 <= time.monotonic() - begun < 0.6  # not ten unanswered pings
        await until(lambda: db.stats().idle == 10)
        begun = time.monotonic()
        await asyncio.gather(*(pid_of(db) for _ in range(10)))
        assert time.monotonic() - begun < 0.6


async def test_sweeping_with_the_check_of_psycopg_pool_waits_for_silent_connections_without_end(
    server: Postgres,
) -> None:
    async with psycopg_pool.AsyncConnectionPool(server.url, min_size=2, open=False) as naive:
        await naive.wait()
        async with naive.connection() as a, naive.connection() as b:
            silent = {a.info.backend_pid, b.info.backend_pid}
        with frozen(silent):
            sweep = asyncio.create_task(naive.check())
            await asyncio.sleep(0.3)
            assert not sweep.done()
        await sweep


async def test_callers_who_meet_silence_at_the_same_time_replace_the_pool_once(
    twin: Twin, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    drains: list[object] = []

    def counted(drain: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def call(pool: Any) -> Any:
            drains.append(pool)
            return drain(pool)

        return call

    for kind in (psycopg_pool.AsyncConnectionPool, psycopg_pool.ConnectionPool):
        monkeypatch.setattr(kind, "drain", counted(kind.drain))
    monkeypatch.setattr(twin.module, "_ANSWER_WITHIN", 0.1)
    db = await twin.opened(server.url, min_size=4, max_size=4)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(backends(admin, db)):
        await asyncio.gather(*(pid_of(db) for _ in range(4)))
        assert len(drains) == 1
        await until(lambda: db.stats().idle == 4)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(backends(admin, db)):
        await pid_of(db)
        assert len(drains) == 2  # silent a second time, replaced a second time


async def test_a_ping_takes_no_longer_than_the_caller_would_wait(twin: Twin, server: Postgres) -> None:
    db = await twin.opened(server.url)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(backends(admin, db)):
        begun = time.monotonic()
        with pytest.raises(twin.module.PoolUnavailable, match="last seen: "):
            async with db.connection(timeout=0.1):
                pass
        assert 0.1 <= time.monotonic() - begun < 0.6


async def test_after_an_outage_the_first_caller_connects_at_once(
    twin: Twin, admin: psycopg.Connection[Any], fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy(admin.info.hostaddr or admin.info.host, admin.info.port)
    dsn = f"{twin.url} host=127.0.0.1 hostaddr=127.0.0.1 port={proxy.port}"
    naive = psycopg_pool.AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False)
    db = await twin.opened(dsn, max_size=1, acquire_timeout=0.1)
    async with naive:
        await naive.wait()
        proxy.refuse = True
        proxy.reset_all()
        with pytest.raises(psycopg.OperationalError):
            async with naive.connection() as conn:
                await conn.execute("SELECT 1")
        with pytest.raises(twin.module.PoolUnavailable):
            await pid_of(db)
        assert not await db.healthy()
        await asyncio.sleep(0.05)
        proxy.heal()
        assert await pid_of(db)
        with pytest.raises(psycopg_pool.PoolTimeout):  # it tries again after 1 s, then after 2, 4, 8 ...
            async with naive.connection(timeout=0.3):
                pass


async def test_twenty_busy_callers_survive_a_restart_of_the_server(twin: Twin, server: Postgres) -> None:
    db = await twin.opened(server.url, min_size=5, max_size=5, acquire_timeout=0.5)
    restarted = asyncio.Event()
    errors: list[BaseException] = []

    async def caller() -> None:
        served = 0
        while served < 3:
            try:
                async with db.connection() as conn:
                    await run(conn, "SELECT pg_sleep(0.002)")
                served += restarted.is_set()
            except (psycopg.OperationalError, twin.module.PoolUnavailable) as error:
                errors.append(error)

    def restart() -> None:
        server.stop(keep=True)
        server.start()

    callers = [asyncio.create_task(caller()) for _ in range(20)]
    await asyncio.sleep(0.03)
    await in_thread(restart)
    restarted.set()
    await asyncio.wait_for(asyncio.gather(*callers), 3)
    assert errors  # those whose query the restart cut off, and no others: nobody hangs, nobody stays broken
    await until(lambda: db.stats().idle == db.stats().size)


async def test_a_connection_killed_in_mid_query_fails_that_query_only(
    twin: Twin, admin: psycopg.Connection[Any]
) -> None:
    db = await twin.opened(min_size=2, max_size=2)

    async def busy() -> None:
        async with db.connection() as conn:
            await run(conn, "SELECT pg_sleep(10)")

    query = asyncio.create_task(busy())
    active = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
    name = getattr(db, "db", db).config.app_name
    await until(lambda: admin.execute(active, (name,)).fetchone() is not None)
    kill(admin, {row[0] for row in admin.execute(active, (name,))})
    with pytest.raises(psycopg.OperationalError):
        await query
    assert await pid_of(db)
    await until(lambda: db.stats().idle == 2)


async def test_a_refused_socket_is_no_connection_exception_and_has_no_sqlstate() -> None:
    # So a retry on class 08, or on any SQLSTATE, never fires; asyncpg raises an OSError here.
    with pytest.raises(psycopg.OperationalError) as caught:
        await psycopg.AsyncConnection.connect(NOWHERE)
    assert not isinstance(caught.value, psycopg.errors.ConnectionException)
    assert caught.value.sqlstate is None


# ---- a full pool -------------------------------------------------------------------------------


async def test_a_caller_of_a_full_pool_is_turned_away_after_acquire_timeout(twin: Twin) -> None:
    db = await twin.opened(max_size=2, acquire_timeout=0.3)
    async with db.connection():
        async with db.connection():
            begun = time.monotonic()
            with pytest.raises(twin.module.PoolUnavailable) as caught:
                await pid_of(db)
            assert 0.3 <= time.monotonic() - begun < 0.5
            assert str(caught.value) == ("no connection within 0.3 s: PoolStats(size=2, max_size=2, idle=0, waiting=1)")
            begun = time.monotonic()
            with pytest.raises(twin.module.PoolUnavailable, match=r"within 0\.02 s"):
                async with db.connection(timeout=0.02):
                    pass
            assert time.monotonic() - begun < 0.2
        assert await pid_of(db)


async def test_a_hundred_callers_share_five_connections(twin: Twin, admin: psycopg.Connection[Any]) -> None:
    db = await twin.opened(max_size=5)
    most = 0

    async def caller(number: int) -> int:
        nonlocal most
        async with db.connection() as conn:
            answer = await value(conn, "SELECT %s + 0 * length(pg_sleep(0.001)::text)", number)
            most = max(most, len(backends(admin, db)))
            return int(answer)

    assert await asyncio.gather(*map(caller, range(100))) == list(range(100))
    assert most == 5


async def test_the_numbers_tell_what_the_pool_holds(twin: Twin) -> None:
    db = twin.database(min_size=2, max_size=3)
    stats = twin.module.PoolStats
    assert db.stats() == stats(size=0, max_size=0, idle=0, waiting=0)
    await db.open()
    await until(lambda: db.stats().idle == 2)
    async with db.connection():
        assert db.stats() == stats(size=2, max_size=3, idle=1, waiting=0)
        async with db.connection(), db.connection():
            waiting = asyncio.create_task(pid_of(db))
            await until(lambda: db.stats() == stats(size=3, max_size=3, idle=0, waiting=1))
    await waiting


async def test_the_log_of_psycopg_pool_names_the_application(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "psycopg.pool"):
        await pid_of(await twin.opened(app_name="shop"))
    assert "connection requested from 'shop'" in caplog.text


async def test_callers_who_each_hold_one_and_ask_for_a_second_starve_one_another(twin: Twin) -> None:
    db = await twin.opened(min_size=2, max_size=2, acquire_timeout=0.1)
    both = threading.Barrier(2)

    async def nested() -> None:
        async with db.connection():
            await in_thread(both.wait, 1)
            await pid_of(db)

    async def handed_down() -> int:
        async with db.connection() as conn:
            await in_thread(both.wait, 1)
            return int(await value(conn, "SELECT 1"))

    outcomes = await asyncio.gather(nested(), nested(), return_exceptions=True)
    assert twin.module.PoolUnavailable in {type(outcome) for outcome in outcomes}
    assert list(await asyncio.gather(handed_down(), handed_down())) == [1, 1]


# ---- transactions and clean sessions -----------------------------------------------------------


async def test_the_block_commits_and_an_exception_rolls_back(twin: Twin, admin: psycopg.Connection[Any]) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS written (who text)")
    admin.execute("TRUNCATE written")
    db = await twin.opened(max_size=1)
    async with db.connection() as conn:
        await run(conn, "INSERT INTO written VALUES ('normal')")

    async def failing() -> None:
        async with db.connection() as conn:
            await run(conn, "INSERT INTO written VALUES ('failed')")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await failing()
    entered = asyncio.Event()

    async def cancelled() -> None:
        async with db.connection() as conn:
            await run(conn, "INSERT INTO written VALUES ('cancelled')")
            entered.set()
            await asyncio.sleep(10)

    task = asyncio.create_task(cancelled())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [row[0] for row in admin.execute("SELECT who FROM written")] == ["normal"]
    await until(lambda: db.stats().idle == 1)
    (state,) = admin.execute("SELECT state FROM pg_stat_activity WHERE pid = ANY(%s)", (list(backends(admin, db)),))
    assert state == ("idle",)


TRACES = {
    "a setting": ("SET work_mem = '77kB'", "SELECT current_setting('work_mem') = '77kB'"),
    "a timeout": ("SET statement_timeout = 1", "SELECT current_setting('statement_timeout') <> '30s'"),
    "a role": ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
    "an identity": ("SET SESSION AUTHORIZATION pool_other", "SELECT session_user = 'pool_other'"),
    "a temporary table": ("CREATE TEMP TABLE mine ()", "SELECT to_regclass('mine') IS NOT NULL"),
    "a lock": ("SELECT pg_advisory_lock(7)", "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'"),
    "a subscription": ("LISTEN news; COMMIT", "SELECT count(*) > 0 FROM pg_listening_channels()"),
    "a cursor": ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) > 0 FROM pg_cursors WHERE name = 'c'"),
    "a sequence's value": (
        "CREATE SEQUENCE IF NOT EXISTS s; SELECT nextval('s')",
        "SELECT pg_sequence_last_value('s') IS NULL OR lastval() > 0",
    ),
}  # fmt: skip


@pytest.mark.parametrize("trace", TRACES)
async def test_what_a_borrower_leaves_in_the_session_is_gone_for_the_next(
    twin: Twin, admin: psycopg.Connection[Any], trace: str
) -> None:
    admin.execute("DO $$ BEGIN CREATE ROLE pool_other; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$")
    leave, left = TRACES[trace]
    db = await twin.opened(max_size=1)
    async with db.connection() as conn:
        await run(conn, leave)
        assert await value(conn, left) is True
        pid = conn.info.backend_pid
    async with db.connection() as conn:
        assert conn.info.backend_pid == pid
        if trace == "a sequence's value":
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                await value(conn, left)
        else:
            assert await value(conn, left) is False


async def test_the_configured_timeouts_stay(twin: Twin) -> None:
    db = await twin.opened(max_size=1, statement_timeout_ms=1234, idle_in_tx_timeout_ms=5678)
    for _ in range(2):
        async with db.connection() as conn:
            assert await value(conn, "SHOW statement_timeout") == "1234ms"
            assert await value(conn, "SHOW idle_in_transaction_session_timeout") == "5678ms"
            await run(conn, "SET statement_timeout = 0")


async def test_what_a_borrower_sets_in_the_client_is_gone_for_the_next(twin: Twin) -> None:
    db = await twin.opened(max_size=1)

    async def call(method: Callable[..., Any], *args: object) -> None:
        result = method(*args)
        if isinstance(result, Awaitable):
            await result

    async with db.connection() as conn:
        first = conn
        await call(conn.set_autocommit, True)
        await call(conn.set_isolation_level, psycopg.IsolationLevel.SERIALIZABLE)
        await call(conn.set_read_only, True)
        await call(conn.set_deferrable, True)
        conn.row_factory = tuple_row
    async with db.connection() as conn:
        assert conn is first
        assert (conn.autocommit, conn.isolation_level) == (False, None)
        assert (conn.read_only, conn.deferrable) == (None, None)
        assert await run(conn, "SELECT 1 AS one") == [{"one": 1}]


async def test_a_notification_that_nobody_read_does_not_reach_the_next_borrower(
    twin: Twin, admin: psycopg.Connection[Any]
) -> None:
    db = await twin.opened(max_size=1)
    async with db.connection() as conn:
        await run(conn, "LISTEN news; COMMIT")
        admin.execute("NOTIFY news, 'for the first borrower'")
        await asyncio.sleep(0.02)
        await run(conn, "SELECT 1")
    async with db.connection() as conn:
        if isinstance(conn, psycopg.AsyncConnection):
            assert [n async for n in conn.notifies(timeout=0)] == []
        else:
            assert list(conn.notifies(timeout=0)) == []


async def test_a_commit_in_a_dependency_fails_after_the_answer_and_in_the_endpoint_before_it(
    admin: psycopg.Connection[Any], solo: pool.AsyncDatabase
) -> None:
    admin.execute("DROP TABLE IF EXISTS booked")
    admin.execute("CREATE TABLE booked (seat int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    admin.execute("INSERT INTO booked VALUES (1)")
    app = FastAPI()

    async def borrowed() -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        async with solo.connection() as conn:
            yield conn

    depends = Depends(borrowed)

    @app.post("/dependency")
    async def dependency(conn: Any = depends) -> str:
        await conn.execute("INSERT INTO booked VALUES (1)")
        return "booked"

    @app.post("/endpoint")
    async def endpoint() -> str:
        async with solo.connection() as conn:
            await conn.execute("INSERT INTO booked VALUES (1)")
        return "booked"

    transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://api") as api:
        assert (await api.post("/dependency")).status_code == 200
        assert (await api.post("/endpoint")).status_code == 500
    assert admin.execute("SELECT count(*) FROM booked").fetchone() == (1,)


async def test_reset_all_keeps_the_role(admin: psycopg.Connection[Any]) -> None:
    with psycopg.connect(admin.info.dsn, password=admin.info.password, autocommit=True) as conn:
        conn.execute("SET ROLE pg_monitor")
        conn.execute("RESET ALL")
        assert conn.execute("SELECT current_user").fetchone() == ("pg_monitor",)


async def test_discard_all_breaks_the_statements_that_psycopg_has_prepared(twin: Twin) -> None:
    async def discard(conn: psycopg.AsyncConnection[Any]) -> None:
        await conn.set_autocommit(True)
        await conn.execute("DISCARD ALL")
        await conn.set_autocommit(False)

    failed = 0
    async with psycopg_pool.AsyncConnectionPool(twin.url, min_size=1, reset=discard, open=False) as naive:
        for number in range(20):
            try:
                async with naive.connection() as conn:
                    await conn.execute("SELECT %s::int", (number,))
            except psycopg.errors.InvalidSqlStatementName:
                failed += 1
    assert failed > 0
    db = await twin.opened(max_size=1)
    for number in range(20):
        async with db.connection() as conn:
            assert await value(conn, "SELECT %s::int", number) == number
    async with db.connection() as conn:
        assert await value(conn, "SELECT count(*) FROM pg_prepared_statements") > 0


async def test_a_statement_that_takes_too_long_is_cancelled_and_the_connection_serves_on(twin: Twin) -> None:
    db = await twin.opened(max_size=1, statement_timeout_ms=40)
    first = await pid_of(db)
    with pytest.raises(psycopg.errors.QueryCanceled):
        async with db.connection() as conn:
            await run(conn, "SELECT pg_sleep(5)")
    assert await pid_of(db) == first


async def test_a_borrower_who_idles_in_a_transaction_is_cut_off_and_the_next_is_served(twin: Twin) -> None:
    db = await twin.opened(max_size=1, idle_in_tx_timeout_ms=20)

    async def idler() -> None:
        async with db.connection() as conn:
            await run(conn, "SELECT 1")
            await asyncio.sleep(0.05)
            await run(conn, "SELECT 1")

    with pytest.raises(psycopg.Error):
        await idler()
    assert await pid_of(db)


async def test_a_connection_that_cannot_be_cleaned_is_replaced_and_the_commit_stands(
    twin: Twin, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS kept (who text)")
    admin.execute("TRUNCATE kept")
    db = await twin.opened(max_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(twin.module, "_RESET", b"SELECT 1 / 0")
        async with db.connection() as conn:
            first = conn.info.backend_pid
            await run(conn, "INSERT INTO kept VALUES ('committed')")
    assert await pid_of(db) != first
    assert admin.execute("SELECT who FROM kept").fetchall() == [("committed",)]


async def test_a_connection_that_falls_silent_while_lent_is_replaced_after_one_wait(
    twin: Twin, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(twin.module, "_ANSWER_WITHIN", 0.1)
    db = await twin.opened(server.url, max_size=1)
    begun = time.monotonic()
    with contextlib.ExitStack() as thaw:
        async with db.connection() as conn:
            first = conn.info.backend_pid
            thaw.enter_context(frozen({first}))
        assert 0.1 <= time.monotonic() - begun < 0.6
        assert await pid_of(db) != first


async def test_a_connection_past_its_lifetime_is_replaced_when_it_comes_back(twin: Twin) -> None:
    db = await twin.opened(max_size=1, max_lifetime=0.01)
    async with db.connection() as conn:
        await asyncio.sleep(0.01)
        first = conn.info.backend_pid
    assert await pid_of(db) != first


# ---- cancellation of a task, interruption of a program --------------------------------------------------


async def test_a_task_cancelled_in_mid_query_gives_its_connection_back(solo: pool.AsyncDatabase) -> None:
    async def busy() -> None:
        async with solo.connection() as conn:
            await conn.execute("SELECT pg_sleep(10)")

    task = asyncio.create_task(busy())
    await until(lambda: solo.stats().idle == 0)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: solo.stats() == pool.PoolStats(size=1, max_size=1, idle=1))
    assert await pid_of(solo)


async def test_a_task_cancelled_while_it_waits_takes_no_connection_with_it(solo: pool.AsyncDatabase) -> None:
    async with solo.connection():
        task = asyncio.create_task(pid_of(solo))
        await until(lambda: solo.stats().waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await pid_of(solo)


@pytest.mark.parametrize("moment", ["ping", "cleaning"])
async def test_a_task_cancelled_during_the_ping_or_the_cleaning_loses_no_connection(
    solo: pool.AsyncDatabase, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = asyncio.Event()
    ask = pool._ask

    async def slow(conn: Any, command: bytes, seconds: float) -> None:
        if (command == b"") == (moment == "ping"):
            asking.set()
            command = b"SELECT pg_sleep(10)"
        await ask(conn, command, seconds)

    first = await pid_of(solo)
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_ask", slow)
        task = asyncio.create_task(pid_of(solo))
        await asking.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await pid_of(solo) != first  # half asked, half cleaned: it is replaced
    assert solo.stats() == pool.PoolStats(size=1, max_size=1, idle=1)


@pytest.mark.parametrize("command", [b"", pool_sync._RESET], ids=["ping", "cleaning"])
def test_an_interrupt_during_the_ping_or_the_cleaning_loses_no_connection(
    command: bytes, admin: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = pool_sync._ask

    def interrupted(conn: Any, asked: bytes, seconds: float) -> None:
        if asked == command:
            raise KeyboardInterrupt
        ask(conn, asked, seconds)

    def borrow() -> int:
        with db.connection() as conn:
            return conn.info.backend_pid

    config = pool_sync.PoolConfig(f"{admin.info.dsn} password='{admin.info.password}'", max_size=1)
    with pool_sync.Database(config) as db:
        first = borrow()
        with monkeypatch.context() as patch:
            patch.setattr(pool_sync, "_ask", interrupted)
            with pytest.raises(KeyboardInterrupt):
                borrow()
        assert borrow() != first


# --8<-- [start:own]
async def test_a_failed_order_leaves_nothing_behind(database_url: str) -> None:
    import pytest

    from pool import AsyncDatabase, PoolConfig

    async def place_order(db: AsyncDatabase, item: str, amount: int) -> None:
        async with db.connection() as conn:
            await conn.execute("INSERT INTO orders (item) VALUES (%s)", (item,))
            if amount < 1:
                raise ValueError("nothing ordered")

    async with AsyncDatabase(PoolConfig(database_url, app_name="tests")) as db:
        async with db.connection() as conn:
            await conn.execute("CREATE TABLE orders (item text)")
        await place_order(db, "tea", 1)
        with pytest.raises(ValueError, match="nothing ordered"):
            await place_order(db, "sugar", 0)
        async with db.connection() as conn:
            rows = await (await conn.execute("SELECT item FROM orders")).fetchall()
        assert rows == [{"item": "tea"}]


# --8<-- [end:own]
