"""Proves docs/patterns/databases/connection-pool.md: dead and silent connections, restarts, outages."""

from __future__ import annotations

import contextlib
import threading
import uuid

import psycopg
import psycopg_pool
import pytest
from psycopg_pool import base

from harness.waiting import at_once, in_thread, until
from patterns.databases import connection_pool_kit as kit
from patterns.databases.connection_pool_kit import NOWHERE, Admin, Pools, backends, frozen, kill, lent, pid_of, run
from pool_core import PING, RESET, PoolUnavailable
from servers.faults import FaultProxy
from servers.postgres import Postgres

admin, server, pools = kit.admin, kit.server, kit.pools


@pytest.fixture
def hour_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is served although psycopg-pool pauses for an hour was served without a pause, on any machine."""
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 3600.0)


@pytest.mark.usefixtures("hour_long_pauses")
@pytest.mark.parametrize("size", [1, 5, 20])
def test_after_all_idle_connections_died_a_lone_caller_is_served_without_a_pause(
    pools: Pools, admin: Admin, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = pools.opened(min_size=size, max_size=size, acquire_timeout=20.0)
    until(lambda: len(backends(admin, db)) == size)  # the one that open() tried with is gone
    dead = backends(admin, db)
    kill(admin, dead)
    asking = kit.watch_asking(monkeypatch, pools.module)
    assert pid_of(db) not in dead
    assert len(asking.pings(dead)) <= size  # each is met once
    until(lambda: db.stats().idle == size)
    kill(admin, backends(admin, db))
    served = at_once(size, lambda: pid_of(db))  # nor does anyone of many see an error
    assert all(isinstance(pid, int) for pid in served)


def test_the_check_of_psycopg_pool_alone_makes_a_lone_caller_wait_for_seconds(
    pools: Pools, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"naive-{uuid.uuid4().hex}"
    kind = psycopg_pool.ConnectionPool
    settings = {"application_name": name}
    with kind(pools.url, kwargs=settings, min_size=3, timeout=0.4, open=False, check=kind.check_connection) as naive:
        naive.wait()
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        kill(admin, {row[0] for row in admin.execute(query, (name,))})
        with pytest.raises(psycopg_pool.PoolTimeout), naive.connection():  # the server is up all the while
            pass
    monkeypatch.setattr(base.AttemptWithBackoff, "INITIAL_DELAY", 3600.0)
    db = pools.opened(min_size=3, acquire_timeout=20.0)
    kill(admin, backends(admin, db))
    assert pid_of(db)


def test_one_dead_connection_does_not_cost_the_others(pools: Pools, admin: Admin) -> None:
    db = pools.opened(min_size=4, max_size=4)
    before = backends(admin, db)
    dead = pid_of(db)
    kill(admin, {dead})
    for _ in range(4):
        assert pid_of(db) != dead
    until(lambda: db.stats().idle == 4)
    after = backends(admin, db)
    assert before - after == {dead}
    assert len(after) == 4


def test_silent_connections_are_replaced_together_after_one_unanswered_ping(
    pools: Pools, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools.module, "ANSWER_WITHIN", 0.1)
    db = pools.opened(server.url, min_size=10, max_size=10)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(silent := backends(admin, db)):
        assert len(silent) == 10
        asking = kit.watch_asking(monkeypatch, pools.module)
        assert pid_of(db) not in silent
        assert [asked.seconds for asked in asking.pings(silent)] == [0.1]  # not ten unanswered pings
        until(lambda: db.stats().idle == 10)
        served = at_once(10, lambda: pid_of(db))
        assert all(isinstance(pid, int) for pid in served)
        assert len(asking.pings(silent)) == 1


def test_sweeping_with_the_check_of_psycopg_pool_waits_for_silent_ones_without_end(server: Postgres) -> None:
    with psycopg_pool.ConnectionPool(server.url, min_size=2, open=False) as naive:
        naive.wait()
        with naive.connection() as a, naive.connection() as b:
            silent = {a.info.backend_pid, b.info.backend_pid}
        with frozen(silent):
            sweep = in_thread(naive.check)
            with pytest.raises(TimeoutError):
                sweep.result(0.3)
        sweep.result(20)


def test_callers_who_meet_silence_at_the_same_time_replace_the_pool_once(
    pools: Pools, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    drains: list[object] = []
    for kind in (psycopg_pool.AsyncConnectionPool, psycopg_pool.ConnectionPool):
        kit.spied(monkeypatch, kind, "drain", drains.append)
    monkeypatch.setattr(pools.module, "ANSWER_WITHIN", 0.1)
    db = pools.opened(server.url, min_size=4, max_size=4, acquire_timeout=20.0)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(backends(admin, db)):
        assert all(isinstance(pid, int) for pid in at_once(4, lambda: pid_of(db)))
        assert len(drains) == 1
        until(lambda: db.stats().idle == 4)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(backends(admin, db)):
        pid_of(db)
        assert len(drains) == 2  # silent a second time, replaced a second time


def test_a_ping_takes_no_longer_than_the_caller_would_wait(
    pools: Pools, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = pools.opened(server.url)
    with psycopg.connect(server.url, autocommit=True) as admin, frozen(silent := backends(admin, db)):
        asking = kit.watch_asking(monkeypatch, pools.module)
        with pytest.raises(PoolUnavailable, match="last seen: "), db.connection(timeout=0.1):
            pass
        assert [asked.seconds for asked in asking.pings(silent)] == [0.1]


@pytest.mark.usefixtures("hour_long_pauses")
def test_after_an_outage_the_first_caller_connects_at_once(
    pools: Pools, admin: Admin, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy(admin.info.hostaddr or admin.info.host, admin.info.port)
    dsn = f"{pools.url}?host=127.0.0.1&hostaddr=127.0.0.1&port={proxy.port}"
    db = pools.opened(dsn, max_size=1, acquire_timeout=0.1)
    with psycopg_pool.ConnectionPool(dsn, min_size=1, max_size=1, open=False) as naive:
        naive.wait()
        proxy.refuse = True
        proxy.reset_all()
        with pytest.raises(psycopg.OperationalError), naive.connection() as conn:
            conn.execute("SELECT 1")
        with pytest.raises(PoolUnavailable):
            pid_of(db)
        assert not db.healthy()
        until(lambda: naive.get_stats().get("connections_errors", 0) > 0)  # both have met the outage
        proxy.heal()
        assert pid_of(db, timeout=20)
        # Of its pauses of 1 s, then 2, 4, 8 ... the first has begun, and no caller ends it.
        with pytest.raises(psycopg_pool.PoolTimeout), naive.connection(timeout=0.05):
            pass


def test_twenty_busy_callers_survive_a_restart_of_the_server(pools: Pools, server: Postgres) -> None:
    db = pools.opened(server.url, min_size=5, max_size=5, acquire_timeout=0.5)
    restarted = threading.Event()
    errors: list[BaseException] = []

    def caller() -> None:
        served = 0
        while served < 3:
            try:
                with lent(db) as conn:
                    run(conn, "SELECT pg_sleep(0.002)")
                served += restarted.is_set()
            except (psycopg.OperationalError, PoolUnavailable) as error:
                errors.append(error)

    callers = [in_thread(caller) for _ in range(20)]
    until(lambda: db.stats().waiting > 0)
    server.stop(keep=True)
    server.start()
    restarted.set()
    for each in callers:
        each.result(20)
    assert errors  # those whose query the restart cut off, and no others: nobody hangs, nobody stays broken
    until(lambda: db.stats().idle == db.stats().size)


def test_a_connection_killed_in_mid_query_fails_that_query_only(pools: Pools, admin: Admin) -> None:
    db = pools.opened(min_size=2, max_size=2)

    def busy() -> None:
        with lent(db) as conn:
            run(conn, "SELECT pg_sleep(10)")

    query = in_thread(busy)
    active = "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND wait_event = 'PgSleep'"
    until(lambda: admin.execute(active, (db.config.app_name,)).fetchone() is not None)
    kill(admin, {row[0] for row in admin.execute(active, (db.config.app_name,))})
    with pytest.raises(psycopg.OperationalError):
        query.result(20)
    assert pid_of(db)
    until(lambda: db.stats().idle == 2)


def test_a_connection_that_falls_silent_while_lent_is_replaced_after_one_wait(
    pools: Pools, server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools.module, "ANSWER_WITHIN", 0.1)
    db = pools.opened(server.url, max_size=1)
    asking = kit.watch_asking(monkeypatch, pools.module)
    with contextlib.ExitStack() as thaw:
        with lent(db) as conn:
            first = conn.info.backend_pid
            thaw.enter_context(frozen({first}))
        assert pid_of(db) != first
    asked = [(each.command, each.seconds) for each in asking if each.pid == first]
    assert asked == [(PING, 0.1), (RESET, 0.1)]  # answered when it was lent, and silent when it came back


async def test_a_refused_socket_is_no_connection_exception_and_has_no_sqlstate() -> None:
    # So a retry on class 08, or on any SQLSTATE, never fires; asyncpg raises an OSError here.
    with pytest.raises(psycopg.OperationalError) as caught:
        await psycopg.AsyncConnection.connect(NOWHERE)
    assert not isinstance(caught.value, psycopg.errors.ConnectionException)
    assert caught.value.sqlstate is None
