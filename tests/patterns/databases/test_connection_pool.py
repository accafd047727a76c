"""Proves docs/patterns/databases/connection-pool.md: opening, closing, borrowing, deadlines, clean sessions."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import httpx2
import psycopg
import psycopg_pool
import pytest
from fastapi import Depends, FastAPI
from psycopg.rows import tuple_row

import pool_async
import pool_sync
from harness.clock import Clock
from harness.waiting import at_once, auntil, each_at_once, in_thread, until
from patterns.databases import connection_pool_kit as kit
from patterns.databases.connection_pool_kit import NOWHERE, Admin, Pools, backends, lent, pid_of, run, value
from pool_async import AsyncDatabase
from pool_core import PING, RESET, PoolClosed, PoolConfig, PoolStats, PoolUnavailable
from pool_sync import Database
from servers.faults import FaultProxy
from servers.postgres import Postgres

admin, server, pools = kit.admin, kit.server, kit.pools


@pytest.fixture
async def solo(module_database_url: str) -> AsyncIterator[AsyncDatabase]:
    """An async pool of exactly one connection, on the loop of the proof."""
    async with AsyncDatabase(PoolConfig(module_database_url, max_size=1)) as db:
        await auntil(lambda: db.stats().idle == 1)
        yield db


async def apid_of(db: AsyncDatabase) -> int:
    """Tell which backend serves a borrowed connection of `solo`."""
    async with db.connection() as conn:
        cursor = await conn.execute("SELECT pg_backend_pid() AS pid")
        (row,) = await cursor.fetchall()
    return int(row["pid"])


# ---- open and close ----------------------------------------------------------------------------


def test_a_percent_encoded_password_logs_in(pools: Pools, server: Postgres) -> None:
    dsn = server.url.replace("postgres@", "guarded:p%40ss%3Aword%2F1@")
    with lent(pools.opened(dsn)) as conn:
        assert value(conn, "SELECT current_user") == "guarded"


def test_open_finds_a_server_that_starts_two_seconds_late(pools: Pools, server: Postgres, clock: Clock) -> None:
    db = pools.database(server.url, clock, open_deadline=5.0)
    server.stop(keep=True)
    started: list[float] = []
    begun = clock()

    def start_when_it_is_time(_: float) -> None:
        if clock() - begun >= 2.0 and not started:
            started.append(clock())
            server.start()

    clock.at_pause = start_when_it_is_time
    db.open()
    assert started
    assert len(clock.pauses) > 3
    assert sum(clock.pauses) < 5
    with lent(db) as conn:
        assert run(conn, "SELECT 1 AS one") == [{"one": 1}]


def test_open_gives_up_between_its_deadline_and_a_second_later(pools: Pools, clock: Clock) -> None:
    db = pools.database(NOWHERE, clock, open_deadline=0.2)
    begun = clock()
    with pytest.raises(PoolUnavailable, match=r"no server within 0\.2 s.*refused") as caught:
        db.open()
    assert 0.2 <= clock() - begun + 1e-9 < 1.2
    assert "hunter2" not in str(caught.value)
    with pytest.raises(PoolClosed), db.connection():
        pass


@pytest.mark.parametrize("jitter", [1.0, 0.5, 0.0001])
def test_open_pauses_twice_as_long_each_time_up_to_two_seconds_with_full_jitter(
    pools: Pools, clock: Clock, jitter: float
) -> None:
    with pytest.raises(PoolUnavailable):
        pools.database(NOWHERE, clock, rng=lambda: jitter, open_deadline=0.01 * jitter + 7.1 * jitter).open()
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0, 0.01]
    assert clock.pauses == pytest.approx([jitter * pause for pause in longest])


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
def test_a_login_that_is_refused_fails_at_the_first_attempt(
    pools: Pools, server: Postgres, clock: Clock, wrong: str, words: str
) -> None:
    dsn = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres {wrong}"
    with pytest.raises(PoolUnavailable, match=f"the server refuses: .*{words}") as caught:
        pools.database(dsn, clock).open()
    assert clock.pauses == []
    assert "hunter2" not in str(caught.value)


def test_open_does_not_wait_forever_for_a_server_that_accepts_and_says_nothing(
    pools: Pools, admin: Admin, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy(admin.info.hostaddr or admin.info.host, admin.info.port)
    proxy.blackhole = True
    dsn = f"{pools.url}?host=127.0.0.1&hostaddr=127.0.0.1&port={proxy.port}"
    db = pools.database(dsn, connect_timeout=600, open_deadline=0.1)  # the deadline ends it, or nothing does
    with pytest.raises(PoolUnavailable, match=r"no server within 0\.1 s: .*(no answer|timeout expired)"):
        db.open()


def test_an_async_attempt_takes_what_is_left_and_half_a_second_at_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[float] = []
    clock = Clock()

    async def refuse(conninfo: str) -> None:
        raise psycopg.OperationalError("refused")

    async def opening() -> None:
        kit.spied(monkeypatch, asyncio, "timeout", given.append)
        config = PoolConfig(NOWHERE, connect_timeout=5, open_deadline=7.3)
        await AsyncDatabase(config, clock=clock, sleep=clock.asleep, rng=lambda: 1.0).open()

    monkeypatch.setattr(psycopg.AsyncConnection, "connect", refuse)
    with pytest.raises(PoolUnavailable):
        asyncio.run(opening())
    assert given == pytest.approx([7.3, 7.2, 7.0, 6.6, 5.8, 4.2, 2.2, 0.5, 0.5])


def test_a_blocking_attempt_takes_connect_timeout_or_what_is_left_of_the_deadline(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    seen: list[int] = []

    def refuse(conninfo: str, *, connect_timeout: int) -> None:
        seen.append(connect_timeout)
        raise psycopg.OperationalError("refused")

    monkeypatch.setattr(psycopg.Connection, "connect", refuse)
    config = PoolConfig(NOWHERE, connect_timeout=5, open_deadline=7.3)
    db = Database(config, clock=clock, sleep=clock.sleep, rng=lambda: 1.0)
    with pytest.raises(PoolUnavailable):
        db.open()
    assert seen == [5, 5, 5, 5, 5, 5, 3, 1, 1]  # psycopg makes two of one; 0 would be no limit at all


def test_ten_concurrent_opens_build_one_pool(pools: Pools, admin: Admin) -> None:
    db = pools.database(min_size=2)
    assert at_once(10, db.open) == [None] * 10
    until(lambda: db.stats().idle == 2)
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


def test_opening_and_closing_twice_is_harmless_and_a_closed_pool_can_be_opened_again(
    pools: Pools, admin: Admin
) -> None:
    db = pools.opened()
    until(lambda: len(backends(admin, db)) == 1)  # the one that open() tried with is gone
    first = backends(admin, db)
    db.open()
    assert backends(admin, db) == first
    db.close()
    db.close()
    until(lambda: backends(admin, db) == set())
    with pytest.raises(PoolClosed, match="call open"), db.connection():
        pass
    db.open()
    assert pid_of(db) not in first


def test_a_close_with_a_bad_timeout_leaves_the_pool_open(pools: Pools) -> None:
    db = pools.opened()
    with pytest.raises(ValueError, match="timeout must be a finite number of seconds, got nan"):
        db.close(math.nan)
    assert pid_of(db)


def test_a_caller_who_waits_while_the_pool_closes_is_told_so(pools: Pools) -> None:
    db = pools.opened(max_size=1, acquire_timeout=20.0)
    with lent(db) as conn:
        waiting = in_thread(pid_of, db)
        until(lambda: db.stats().waiting == 1)
        db.close()
        with pytest.raises(PoolClosed, match="was closed"):
            waiting.result(20)
        assert value(conn, "SELECT 1") == 1  # whoever holds one may finish
    assert conn.closed


def test_the_with_block_opens_and_closes_the_pool(pools: Pools) -> None:
    with pools.database() as db:
        assert db.healthy()
    assert not db.healthy()


def test_a_pool_that_is_never_closed_can_keep_the_program_from_ending(module_database_url: str) -> None:
    # psycopg-pool's workers take a cancellation for a failed task and go on: asyncio.run() waits for them.
    workers: list[asyncio.Task[Any]] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def naive() -> None:
        db = AsyncDatabase(PoolConfig(module_database_url, min_size=3))
        await db.open()
        loops.append(asyncio.get_running_loop())
        workers.extend(asyncio.all_tasks() - {t for t in [asyncio.current_task()] if t})
        await asyncio.sleep(0)  # the workers are connecting now
        raise KeyError("the program fails here")

    async def closed() -> None:
        async with AsyncDatabase(PoolConfig(module_database_url, min_size=3)):
            await asyncio.sleep(0)
            raise KeyError("and here")

    def program() -> None:
        with contextlib.suppress(KeyError):
            asyncio.run(naive())

    thread = threading.Thread(target=program, daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive()
    for worker in workers:  # a second cancellation meets them idle
        loops[0].call_soon_threadsafe(worker.cancel)
    thread.join(20)
    assert not thread.is_alive()
    with pytest.raises(KeyError, match="and here"):
        asyncio.run(closed())


# ---- a full pool -------------------------------------------------------------------------------


def test_a_caller_of_a_full_pool_is_turned_away_after_acquire_timeout(
    pools: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    for kind in (psycopg_pool.AsyncConnectionPool, psycopg_pool.ConnectionPool):
        kit.spied(monkeypatch, kind, "getconn", lambda _, seconds: waits.append(seconds))
    db = pools.opened(max_size=2, acquire_timeout=0.3)
    with lent(db, 20), lent(db, 20):
        waits.clear()
        with pytest.raises(PoolUnavailable) as caught:
            pid_of(db)
        assert str(caught.value) == "no connection within 0.3 s: PoolStats(size=2, max_size=2, idle=0, waiting=1)"
        (waited,) = waits
        assert 0 < waited <= 0.3
        patient = in_thread(pid_of, db, 20)
        until(lambda: db.stats().waiting == 2)
        with pytest.raises(PoolUnavailable, match=r"within 0\.02 s"), db.connection(timeout=0.02):
            pass
        assert not patient.done()  # who has less time is turned away before
    assert patient.result(20)
    assert pid_of(db, 20)


def test_a_hundred_callers_share_five_connections(pools: Pools, admin: Admin) -> None:
    db = pools.opened(max_size=5, acquire_timeout=20.0)
    most = 0

    def caller(number: int) -> int:
        nonlocal most
        with lent(db) as conn:
            answer = value(conn, "SELECT %s + 0 * length(pg_sleep(0.001)::text)", number)
            most = max(most, len(backends(admin, db)))
            return int(answer)

    assert each_at_once(caller, range(100)) == list(range(100))
    assert most == 5


def test_the_numbers_tell_what_the_pool_holds(pools: Pools) -> None:
    db = pools.database(min_size=2, max_size=3)
    assert db.stats() == PoolStats(size=0, max_size=0, idle=0, waiting=0)
    db.open()
    until(lambda: db.stats().idle == 2)
    with lent(db):
        assert db.stats() == PoolStats(size=2, max_size=3, idle=1, waiting=0)
        with lent(db), lent(db):
            waiting = in_thread(pid_of, db, 20)
            until(lambda: db.stats() == PoolStats(size=3, max_size=3, idle=0, waiting=1))
    assert waiting.result(20)


def test_the_log_of_psycopg_pool_names_the_application(pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "psycopg.pool"):
        pid_of(pools.opened(app_name="shop"))
    assert "connection requested from 'shop'" in caplog.text


def test_callers_who_each_hold_one_and_ask_for_a_second_starve_one_another(pools: Pools) -> None:
    db = pools.opened(min_size=2, max_size=2, acquire_timeout=0.1)
    both = threading.Barrier(2)

    def nested() -> None:
        with lent(db, 20):
            both.wait(20)
            pid_of(db)

    def handed_down() -> int:
        with lent(db, 20) as conn:
            both.wait(20)
            return int(value(conn, "SELECT 1"))

    outcomes = at_once(2, nested)
    assert PoolUnavailable in {type(outcome) for outcome in outcomes}
    assert at_once(2, handed_down) == [1, 1]


# ---- transactions and clean sessions -----------------------------------------------------------


def test_the_block_commits_and_an_exception_rolls_back(pools: Pools, admin: Admin) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS written (who text)")
    admin.execute("TRUNCATE written")
    db = pools.opened(max_size=1)
    with lent(db) as conn:
        run(conn, "INSERT INTO written VALUES ('normal')")

    def failing(error: BaseException) -> None:
        with lent(db) as conn:
            run(conn, "INSERT INTO written VALUES ('failed')")
            raise error

    for error in (ZeroDivisionError(), asyncio.CancelledError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            failing(error)
    assert [row[0] for row in admin.execute("SELECT who FROM written")] == ["normal"]
    until(lambda: db.stats().idle == 1)
    (state,) = admin.execute("SELECT state FROM pg_stat_activity WHERE pid = ANY(%s)", (list(backends(admin, db)),))
    assert state == ("idle",)


async def test_the_block_of_a_cancelled_task_rolls_back(solo: AsyncDatabase, admin: Admin) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS written (who text)")
    admin.execute("TRUNCATE written")
    entered = asyncio.Event()

    async def cancelled() -> None:
        async with solo.connection() as conn:
            await conn.execute("INSERT INTO written VALUES ('cancelled')")
            entered.set()
            await asyncio.sleep(10)

    task = asyncio.create_task(cancelled())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert admin.execute("SELECT who FROM written").fetchall() == []
    await auntil(lambda: solo.stats().idle == 1)


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
def test_what_a_borrower_leaves_in_the_session_is_gone_for_the_next(pools: Pools, admin: Admin, trace: str) -> None:
    admin.execute("DO $$ BEGIN CREATE ROLE pool_other; EXCEPTION WHEN duplicate_object OR unique_violation THEN END $$")
    leave, left = TRACES[trace]
    db = pools.opened(max_size=1)
    with lent(db) as conn:
        run(conn, leave)
        assert value(conn, left) is True
        pid = conn.info.backend_pid
    with lent(db) as conn:
        assert conn.info.backend_pid == pid
        if trace == "a sequence's value":
            with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
                value(conn, left)
        else:
            assert value(conn, left) is False


def test_the_configured_timeouts_stay(pools: Pools) -> None:
    db = pools.opened(max_size=1, statement_timeout_ms=1234, idle_in_tx_timeout_ms=5678)
    for _ in range(2):
        with lent(db) as conn:
            assert value(conn, "SHOW statement_timeout") == "1234ms"
            assert value(conn, "SHOW idle_in_transaction_session_timeout") == "5678ms"
            run(conn, "SET statement_timeout = 0")


def test_what_a_borrower_sets_in_the_client_is_gone_for_the_next(pools: Pools) -> None:
    db = pools.opened(max_size=1)
    with lent(db) as conn:
        first = conn.inner
        conn.set_autocommit(True)
        conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        conn.set_read_only(True)
        conn.set_deferrable(True)
        first.row_factory = tuple_row
    with lent(db) as conn:
        assert conn.inner is first
        assert (conn.autocommit, conn.isolation_level) == (False, None)
        assert (conn.read_only, conn.deferrable) == (None, None)
        assert run(conn, "SELECT 1 AS one") == [{"one": 1}]


def test_a_notification_that_nobody_read_does_not_reach_the_next_borrower(pools: Pools, admin: Admin) -> None:
    db = pools.opened(max_size=1)
    with lent(db) as conn:
        run(conn, "LISTEN news; COMMIT")
        admin.execute("NOTIFY news, 'for the first borrower'")
        run(conn, "SELECT pg_sleep(0.02)")  # in which it arrives
    with lent(db) as conn:
        assert list(conn.notifies(timeout=0)) == []


async def test_a_commit_in_a_dependency_fails_after_the_answer_in_the_endpoint_before_it(
    admin: Admin, solo: AsyncDatabase
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


def test_reset_all_keeps_the_role(module_database_url: str) -> None:
    with psycopg.connect(module_database_url, autocommit=True) as conn:
        conn.execute("SET ROLE pg_monitor")
        conn.execute("RESET ALL")
        assert conn.execute("SELECT current_user").fetchone() == ("pg_monitor",)


def test_discard_all_breaks_the_statements_that_psycopg_has_prepared(pools: Pools) -> None:
    def discard(conn: psycopg.Connection[Any]) -> None:
        conn.autocommit = True
        conn.execute("DISCARD ALL")
        conn.autocommit = False

    failed = 0
    with psycopg_pool.ConnectionPool(pools.url, min_size=1, reset=discard, open=False) as naive:
        for number in range(20):
            try:
                with naive.connection() as plain:
                    plain.execute("SELECT %s::int", (number,))
            except psycopg.errors.InvalidSqlStatementName:
                failed += 1
    assert failed > 0
    db = pools.opened(max_size=1)
    for number in range(20):
        with lent(db) as conn:
            assert value(conn, "SELECT %s::int", number) == number
    with lent(db) as conn:
        assert value(conn, "SELECT count(*) FROM pg_prepared_statements") > 0


def test_a_statement_that_takes_too_long_is_cancelled_and_the_connection_serves_on(pools: Pools) -> None:
    db = pools.opened(max_size=1, statement_timeout_ms=200)
    first = pid_of(db)
    with pytest.raises(psycopg.errors.QueryCanceled), lent(db) as conn:
        run(conn, "SELECT pg_sleep(20)")
    assert pid_of(db) == first


def test_a_borrower_who_idles_in_a_transaction_is_cut_off_and_the_next_is_served(pools: Pools, admin: Admin) -> None:
    db = pools.opened(max_size=1, idle_in_tx_timeout_ms=200)

    def idler() -> None:
        with lent(db) as conn:
            run(conn, "SELECT 1")
            until(lambda: conn.info.backend_pid not in backends(admin, db))
            run(conn, "SELECT 1")

    with pytest.raises(psycopg.Error):
        idler()
    assert pid_of(db)


def test_a_connection_that_cannot_be_cleaned_is_replaced_and_the_commit_stands(
    pools: Pools, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin.execute("CREATE TABLE IF NOT EXISTS kept (who text)")
    admin.execute("TRUNCATE kept")
    db = pools.opened(max_size=1)
    with monkeypatch.context() as patch:
        patch.setattr(pools.module, "RESET", b"SELECT 1 / 0")
        with lent(db) as conn:
            first = conn.info.backend_pid
            run(conn, "INSERT INTO kept VALUES ('committed')")
    assert pid_of(db) != first
    assert admin.execute("SELECT who FROM kept").fetchall() == [("committed",)]


def test_a_connection_past_its_lifetime_is_replaced_when_it_comes_back(pools: Pools) -> None:
    db = pools.opened(max_size=1, max_lifetime=0.01)
    with lent(db) as conn:
        run(conn, "SELECT pg_sleep(0.01)")
        first = conn.info.backend_pid
    assert pid_of(db) != first


# ---- cancellation of a task, interruption of a program --------------------------------------------------


async def test_a_task_cancelled_in_mid_query_gives_its_connection_back(solo: AsyncDatabase, admin: Admin) -> None:
    async def busy() -> None:
        async with solo.connection() as conn:
            await conn.execute("SELECT pg_sleep(10), 'in mid-query'")

    task = asyncio.create_task(busy())
    running = "SELECT FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%in mid-query%'"
    await auntil(lambda: admin.execute(running).fetchone() is not None)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await auntil(lambda: solo.stats() == PoolStats(size=1, max_size=1, idle=1))
    assert await apid_of(solo)


async def test_a_task_cancelled_while_it_waits_takes_no_connection_with_it(solo: AsyncDatabase) -> None:
    async with solo.connection():
        task = asyncio.create_task(apid_of(solo))
        await auntil(lambda: solo.stats().waiting == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await apid_of(solo)


@pytest.mark.parametrize("moment", ["ping", "cleaning"])
async def test_a_task_cancelled_during_the_ping_or_the_cleaning_loses_no_connection(
    solo: AsyncDatabase, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = asyncio.Event()
    ask = pool_async._ask_server

    async def slow(conn: Any, command: bytes, seconds: float) -> None:
        if (command == PING) == (moment == "ping"):
            asking.set()
            command = b"SELECT pg_sleep(10)"
        await ask(conn, command, seconds)

    first = await apid_of(solo)
    with monkeypatch.context() as patch:
        patch.setattr(pool_async, "_ask_server", slow)
        patch.setattr(pool_async, "ANSWER_WITHIN", 20.0)
        task = asyncio.create_task(apid_of(solo))
        await asking.wait()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert await apid_of(solo) != first  # half asked, half cleaned: it is replaced
    assert solo.stats() == PoolStats(size=1, max_size=1, idle=1)


@pytest.mark.parametrize("command", [PING, RESET], ids=["ping", "cleaning"])
def test_an_interrupt_during_the_ping_or_the_cleaning_loses_no_connection(
    command: bytes, module_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = pool_sync._ask_server

    def interrupted(conn: Any, asked: bytes, seconds: float) -> None:
        if asked == command:
            raise KeyboardInterrupt
        ask(conn, asked, seconds)

    def borrow() -> int:
        with db.connection() as conn:
            return conn.info.backend_pid

    with Database(PoolConfig(module_database_url, max_size=1)) as db:
        first = borrow()
        with monkeypatch.context() as patch:
            patch.setattr(pool_sync, "_ask_server", interrupted)
            with pytest.raises(KeyboardInterrupt):
                borrow()
        assert borrow() != first
