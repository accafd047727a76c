"""Proves docs/patterns/webhooks/idempotent-processing.md: an event arrives many times and has its effect once."""

# ruff: noqa: E402, F811 -- the section a reader copies, at the end, brings its own imports
from __future__ import annotations

import asyncio
import inspect
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

import idempotent_core
from idempotent_async import AsyncInbox
from idempotent_sync import SCHEMA, BodyMismatch, Inbox, InProgress, Outcome, Status, TransactionLost, event_key
from patterns.webhooks.idempotent_processing_kit import Steps, Twin, pool_of

TABLES = "CREATE TABLE ledger (source text, event_id text)"
DUPLICATE: Outcome[Any] = Outcome(Status.DUPLICATE)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def database(postgres_url: str) -> Iterator[str]:
    """One database for the whole file; each test finds it empty."""
    name = f"inbox_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
        url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
        try:
            with psycopg.connect(url) as conn:
                conn.execute(SCHEMA + TABLES)
            yield url
        finally:
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def url(database: str) -> str:
    with psycopg.connect(database) as conn:
        conn.execute("DELETE FROM webhook_inbox; DELETE FROM ledger")
    return database


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def pool(kind: str, url: str) -> AsyncIterator[Any]:
    made = pool_of(kind, url)
    if kind == "sync":
        with made:
            yield made
    else:
        async with made:
            yield made


@pytest.fixture
def twin(kind: str, pool: Any) -> Twin:
    return Twin(kind, pool)


def rows(url: str, table: str = "ledger") -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(f"SELECT source, event_id FROM {table} ORDER BY 1, 2").fetchall()


def effect(event_id: str = "evt_1", *, source: str = "shop", value: Any = None) -> Steps:
    def steps() -> Generator[str, None, Any]:
        yield f"INSERT INTO ledger VALUES ('{source}', '{event_id}')"
        return value

    return steps


async def either(kind: str, pool: Any, handler: Any, handler_async: Any) -> None:
    """Run a handler of the right kind on this thread."""
    if kind == "sync":
        Inbox(pool).run("shop", "evt_1", handler)
    else:
        await AsyncInbox(pool).run("shop", "evt_1", handler_async)


async def outcomes(*runs: Any) -> list[str]:
    """Say in a word how each of several concurrent runs ended."""
    ended = await asyncio.gather(*runs, return_exceptions=True)
    return sorted(e.status.value if isinstance(e, Outcome) else type(e).__name__ for e in ended)


# The effect is in the same database.


async def test_five_workers_meet_on_one_event_and_one_of_them_does_it(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def steps() -> Generator[str, None, None]:
        ran.append(1)
        yield "SELECT pg_sleep(0.02)"  # long enough for the others to arrive
        yield from effect()()

    ended = await outcomes(*(twin.run("shop", "evt_1", steps) for _ in range(5)))
    assert ended == ["duplicate"] * 4 + ["processed"]
    assert (len(ran), rows(url)) == (1, [("shop", "evt_1")])


async def test_when_the_first_worker_fails_one_that_waited_does_the_work(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def steps() -> Generator[str, None, None]:
        ran.append(1)
        yield from effect()()
        yield "SELECT pg_sleep(0.02)"
        if len(ran) == 1:
            raise ConnectionError("the first one breaks")

    ended = await outcomes(*(twin.run("shop", "evt_1", steps) for _ in range(5)))
    assert ended == ["ConnectionError"] + ["duplicate"] * 3 + ["processed"]
    assert (len(ran), rows(url)) == (2, [("shop", "evt_1")])


async def test_a_failed_run_leaves_neither_effect_nor_marker_and_its_own_exception_comes_out(
    twin: Twin, url: str
) -> None:
    def steps() -> Generator[str, None, None]:
        yield from effect()()
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        await twin.run("shop", "evt_1", steps)
    assert rows(url) == rows(url, "webhook_inbox") == []
    assert await twin.run("shop", "evt_1", effect(value=7)) == Outcome(Status.PROCESSED, 7)
    assert rows(url) == rows(url, "webhook_inbox") == [("shop", "evt_1")]


async def test_a_value_of_none_is_told_from_a_duplicate(twin: Twin) -> None:
    first, second = [await twin.run("shop", "evt_1", effect(value=None)) for _ in range(2)]
    assert first == Outcome(Status.PROCESSED, None)
    assert second == DUPLICATE
    assert first != second


async def test_equal_ids_of_two_sources_are_two_events(twin: Twin, url: str) -> None:
    for source in ("shop", "bank"):
        assert (await twin.run(source, "1", effect("1", source=source))).status is Status.PROCESSED
    assert rows(url) == [("bank", "1"), ("shop", "1")]


async def test_a_worker_that_waits_too_long_gets_in_progress_and_the_settings_of_the_session_return(
    kind: str, pool: Any, url: str
) -> None:
    twin = Twin(kind, pool, wait=0.02)
    with psycopg.connect(url) as other:
        other.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now())")
        with pytest.raises(InProgress) as caught:
            await twin.run("shop", "evt_1", effect())
        assert (caught.value.key, caught.value.retry_after) == ("shop:evt_1", 0.02)
        assert str(caught.value) == "shop:evt_1 is being processed by another worker"
        assert caught.value.__cause__ is None
        other.rollback()
    seen: list[str] = []

    def steps() -> Generator[str, None, None]:
        seen.append("ran")
        yield "DO $$ BEGIN ASSERT current_setting('lock_timeout') = '20ms'; END $$"

    assert (await twin.run("shop", "evt_1", steps)).status is Status.PROCESSED
    seen.clear()

    def after() -> Generator[str, None, None]:
        yield "DO $$ BEGIN ASSERT current_setting('lock_timeout') = '10s'; END $$"

    assert (await Twin(kind, pool).run("shop", "evt_2", after)).status is Status.PROCESSED
    assert (await Twin(kind, pool, wait=0.0001).run("shop", "evt_3", effect())).status is Status.PROCESSED


async def test_a_serialization_failure_and_a_deadlock_run_the_whole_transaction_again(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for failure, code in (("serialization", "40001"), ("deadlock", "40P01")):
        ran: list[int] = []

        def steps(failure: str = failure, code: str = code, ran: list[int] = ran) -> Generator[str, None, int]:
            ran.append(1)
            yield from effect(failure)()
            if len(ran) < 3:
                yield f"DO $$ BEGIN RAISE EXCEPTION 'make way' USING ERRCODE = '{code}'; END $$"
            return len(ran)

        assert await twin.run("shop", failure, steps) == Outcome(Status.PROCESSED, 3)
    assert rows(url) == [("shop", "deadlock"), ("shop", "serialization")]
    assert "shop:deadlock: gave way to another transaction, once more" in caplog.text


async def test_after_three_failures_to_serialize_the_error_comes_out(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def steps() -> Generator[str, None, None]:
        ran.append(1)
        yield "DO $$ BEGIN RAISE EXCEPTION 'make way' USING ERRCODE = '40001'; END $$"

    with pytest.raises(errors.SerializationFailure):
        await twin.run("shop", "evt_1", steps)
    assert (len(ran), rows(url, "webhook_inbox")) == (3, [])


async def test_serializable_transactions_that_meet_still_have_one_effect(kind: str, url: str) -> None:
    pool = pool_of(kind, f"{url}?options=-c%20default_transaction_isolation%3Dserializable")
    twin = Twin(kind, pool)

    async def five() -> list[str]:
        return await outcomes(*(twin.run("shop", "evt_1", effect()) for _ in range(5)))

    if kind == "sync":
        with pool:
            ended = await five()
    else:
        async with pool:
            ended = await five()
    assert ended.count("processed") == 1
    assert ended.count("duplicate") == 4
    assert rows(url) == [("shop", "evt_1")]


async def test_a_pool_that_makes_dict_rows_or_commits_each_statement_serves_too(kind: str, url: str) -> None:
    pool = pool_of(kind, url)
    pool.kwargs = {"row_factory": dict_row, "autocommit": True}
    twin = Twin(kind, pool)

    def fails() -> Generator[str, None, None]:
        yield from effect()()
        raise KeyError("and nothing stays")

    async def both() -> None:
        with pytest.raises(KeyError):
            await twin.run("shop", "evt_1", fails)
        assert rows(url) == []
        assert [(await twin.run("shop", "evt_1", effect())).status.value for _ in range(2)] == [
            "processed",
            "duplicate",
        ]

    if kind == "sync":
        with pool:
            await both()
    else:
        async with pool:
            await both()


# What a handler can do to the transaction.


async def test_naive_commit_after_a_swallowed_error_persists_nothing_and_says_nothing(url: str) -> None:
    with psycopg.connect(url) as conn:
        with conn.transaction():
            conn.execute("INSERT INTO ledger VALUES ('shop', 'evt_1')")
            with pytest.raises(errors.UndefinedTable):  # somebody catches it, and goes on
                conn.execute("INSERT INTO leger VALUES (1)")
        acknowledged = True  # no exception came this far
    assert acknowledged
    assert rows(url) == []


async def test_a_handler_that_swallows_a_database_error_is_not_taken_for_success(
    kind: str, pool: Any, url: str
) -> None:
    def swallow(conn: Any) -> None:
        conn.execute("INSERT INTO ledger VALUES ('shop', 'evt_1')")
        with pytest.raises(errors.UndefinedTable):
            conn.execute("INSERT INTO leger VALUES (1)")

    async def swallow_async(conn: Any) -> None:
        with pytest.raises(errors.UndefinedTable):
            await conn.execute("INSERT INTO leger VALUES (1)")

    with pytest.raises(TransactionLost, match="swallowed a database error"):
        await either(kind, pool, swallow, swallow_async)
    assert rows(url) == rows(url, "webhook_inbox") == []


@pytest.mark.parametrize("way", ["commit", "rollback", "Rollback", "sql"])
async def test_a_handler_that_ends_the_transaction_by_itself_is_an_error(
    kind: str, pool: Any, url: str, way: str
) -> None:
    def handler(conn: Any) -> Any:
        if way == "Rollback":
            raise psycopg.Rollback
        return conn.execute("ROLLBACK") if way == "sql" else getattr(conn, way)()

    async def handler_async(conn: Any) -> None:
        await handler(conn)

    expected: Any = psycopg.ProgrammingError if way in ("commit", "rollback") else TransactionLost
    with pytest.raises(expected):
        await either(kind, pool, handler, handler_async)
    assert rows(url, "webhook_inbox") == []


def test_a_coroutine_function_is_refused_by_the_sync_inbox_before_anything_is_marked(url: str) -> None:
    async def handler(argument: object) -> None: ...

    with ConnectionPool(url, min_size=1) as pool:
        for run in (Inbox(pool).run, Inbox(pool).run_external):
            with pytest.raises(TypeError, match="use AsyncInbox"):
                run("shop", "evt_1", handler)
    assert rows(url, "webhook_inbox") == []


# The effect is somewhere else.


async def test_an_external_handler_gets_a_stable_key_and_runs_once(twin: Twin) -> None:
    keys: list[str] = []

    async def handler(key: str) -> int:
        keys.append(key)
        if len(keys) == 1:
            raise TimeoutError("the other side is slow")
        return len(keys)

    with pytest.raises(TimeoutError):
        await twin.run_external("shop", "evt_1", handler)
    assert await twin.run_external("shop", "evt_1", handler) == Outcome(Status.PROCESSED, 2)
    assert await twin.run_external("shop", "evt_1", handler) == DUPLICATE
    assert keys == ["shop:evt_1"] * 2 == [event_key("shop", "evt_1")] * 2


async def test_while_a_claim_holds_everybody_else_gets_in_progress(kind: str, pool: Any) -> None:
    twin = Twin(kind, pool, claim_ttl=30)

    async def handler(key: str) -> str:
        for attempt in (twin.run_external("shop", "evt_1", handler), twin.run("shop", "evt_1", effect())):
            with pytest.raises(InProgress) as caught:
                await attempt
            assert 29 < caught.value.retry_after <= 30
        return key

    assert await twin.run_external("shop", "evt_1", handler) == Outcome(Status.PROCESSED, "shop:evt_1")


async def test_a_dead_claim_is_taken_over_by_exactly_one(kind: str, pool: Any, url: str) -> None:
    now = NOW
    twin = Twin(kind, pool, claim_ttl=60, clock=lambda: now)
    with psycopg.connect(url) as conn:  # what a worker that died at NOW has left behind
        conn.execute(
            "INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), %s, %s)",
            (NOW, NOW + timedelta(seconds=60)),
        )
    ran: list[str] = []
    refused: list[InProgress] = []

    async def handler(key: str) -> None:
        ran.append(key)
        while len(refused) < 4:  # it takes until all others have come, and gone
            await asyncio.sleep(0.002)

    async def run() -> Outcome[Any]:
        try:
            return await twin.run_external("shop", "evt_1", handler)
        except InProgress as busy:
            refused.append(busy)
            raise

    now = NOW + timedelta(seconds=59.5)
    with pytest.raises(InProgress):
        await run()
    assert refused[0].retry_after == 1
    now = NOW + timedelta(seconds=60)
    assert await outcomes(*(run() for _ in range(4))) == ["InProgress"] * 3 + ["processed"]
    assert ran == ["shop:evt_1"]


async def test_a_dead_claim_is_taken_over_by_run_too(kind: str, pool: Any, url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now(), now())")
    twin = Twin(kind, pool)
    assert [(await twin.run("shop", "evt_1", effect())).status.value for _ in range(2)] == ["processed", "duplicate"]


async def test_work_that_outlives_its_claim_is_recorded_and_reported(
    kind: str, pool: Any, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    twin = Twin(kind, pool, claim_ttl=0.001)
    late = "shop:evt_1: done after its claim had expired; raise claim_ttl"

    async def slow(key: str) -> str:
        async def second(key: str) -> str:
            return "second"

        await asyncio.sleep(0.005)
        assert (await twin.run_external("shop", "evt_1", second)).value == "second"
        return "first"

    assert (await twin.run_external("shop", "evt_1", slow)).value == "first"
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [late]
    assert await twin.run_external("shop", "evt_1", slow) == DUPLICATE
    caplog.clear()

    async def overtaken(key: str) -> str:
        async def breaks(key: str) -> None:
            raise OSError("and its claim, the newer one, is released")

        await asyncio.sleep(0.005)
        with pytest.raises(OSError, match="newer"):
            await twin.run_external("shop", "evt_2", breaks)
        return "done"

    assert (await twin.run_external("shop", "evt_2", overtaken)).value == "done"
    assert await twin.run_external("shop", "evt_2", overtaken) == DUPLICATE  # the effect has happened: it is kept


async def test_a_worker_that_fails_late_leaves_the_claim_of_its_successor_alone(kind: str, pool: Any) -> None:
    first, second = Twin(kind, pool, claim_ttl=0.001), Twin(kind, pool, claim_ttl=30)

    async def successor(key: str) -> None:
        with pytest.raises(InProgress):
            await second.run_external("shop", "evt_1", successor)

    async def slow(key: str) -> None:
        await asyncio.sleep(0.005)
        await second.run_external("shop", "evt_1", successor)
        raise OSError("late")

    with pytest.raises(OSError, match="late"):
        await first.run_external("shop", "evt_1", slow)
    assert await second.run_external("shop", "evt_1", slow) == DUPLICATE


async def test_an_event_released_between_the_claim_and_the_look_is_tried_again_soon(twin: Twin) -> None:
    with pytest.raises(InProgress) as caught:
        twin.inbox._judge({"key": "shop:evt_1"}, None)
    assert caught.value.retry_after == 1


async def test_the_error_of_the_handler_is_not_hidden_when_the_claim_cannot_be_released(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def handler(key: str) -> None:
        monkeypatch.setattr(twin.inbox, "_pool", None)  # from here on there is no database
        raise LookupError("the real one")

    with pytest.raises(LookupError, match="the real one"):
        await twin.run_external("shop", "evt_1", handler)
    assert "shop:evt_1: its claim could not be released; it expires" in caplog.text
    assert rows(url, "webhook_inbox") == [("shop", "evt_1")]


async def test_a_cancelled_external_handler_releases_its_claim(pool: Any, url: str, kind: str) -> None:
    if kind == "sync":  # a thread is not cancelled; an interrupt is what ends it
        with pytest.raises(KeyboardInterrupt):
            Inbox(pool).run_external("shop", "evt_1", lambda key: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        begun = asyncio.Event()

        async def handler(key: str) -> None:
            begun.set()
            await asyncio.sleep(5)

        task = asyncio.create_task(AsyncInbox(pool).run_external("shop", "evt_1", handler))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert rows(url, "webhook_inbox") == []


# Identity: source, id and body.


async def test_a_known_id_with_another_body_is_refused_and_nothing_of_the_body_is_told(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def external(key: str) -> None: ...

    await twin.run("shop", "evt_1", effect(), body=b'{"amount": 1}')
    await twin.run_external("shop", "evt_2", external, body=b'{"amount": 1}')
    assert await twin.run("shop", "evt_1", effect(), body=b'{"amount": 1}') == DUPLICATE
    assert await twin.run("shop", "evt_1", effect()) == DUPLICATE  # no body given: none compared
    for attempt in (
        twin.run("shop", "evt_1", effect(), body=b"canary-1"),
        twin.run_external("shop", "evt_2", external, body=b"canary-1"),
    ):
        with pytest.raises(BodyMismatch, match=r"^shop:evt_\d is known, with another body$") as caught:
            await attempt
        assert caught.value.key in ("shop:evt_1", "shop:evt_2")
        assert "canary" not in repr(caught.value) + caplog.text
    assert rows(url) == [("shop", "evt_1")]


async def test_a_dead_claim_with_another_body_is_not_taken_over(kind: str, pool: Any, url: str) -> None:
    twin = Twin(kind, pool)
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', 'x', gen_random_uuid(), now(), now())")
    with pytest.raises(BodyMismatch):
        await twin.run("shop", "evt_1", effect(), body=b"{}")
    assert rows(url) == []


@pytest.mark.parametrize(
    ("source", "event_id"),
    [("", "1"), ("a:b", "1"), ("a" * 65, "1"), ("é", "1"), ("a", ""), ("a", "x y"), ("a", "\0"), ("a", "x" * 256)],
)
async def test_a_source_or_an_id_that_could_not_be_a_key_is_refused(
    twin: Twin, url: str, source: str, event_id: str
) -> None:
    async def external(key: str) -> None: ...

    for attempt in (twin.run(source, event_id, effect()), twin.run_external(source, event_id, external)):
        with pytest.raises(ValueError, match=r"^source or event_id is empty, too long, or has other characters in it$"):
            await attempt
    assert rows(url) == []


def test_naive_joining_of_source_and_id_makes_one_key_of_two_events() -> None:
    assert ":".join(("a:b", "c")) == ":".join(("a", "b:c"))
    assert event_key("a", "b:c") == "a:b:c"
    assert event_key("a" * 64, "x" * 255)
    with pytest.raises(ValueError, match="source"):
        event_key("a:b", "c")


# Forgetting.


async def test_purge_forgets_only_what_is_older_than_keep(kind: str, pool: Any, url: str) -> None:
    now = NOW
    twin = Twin(kind, pool, keep=timedelta(days=10), clock=lambda: now)
    await twin.run("shop", "old", effect("old"))
    now = NOW + timedelta(seconds=1)
    await twin.run("shop", "young", effect("young"))
    now = NOW + timedelta(days=10)
    assert await twin.purge() == 0
    now += timedelta(seconds=1)
    assert await twin.purge() == 1
    assert rows(url, "webhook_inbox") == [("shop", "young")]
    assert await Twin(kind, pool).purge() == 0  # the clock of the database: both are young


def test_settings_that_would_forget_too_early_stop_the_start() -> None:
    pool: Any = None
    for bad in (
        {"keep": timedelta(days=3)},
        {"keep": timedelta(days=4), "claim_ttl": 4 * 86_400},
        {"claim_ttl": 0},
        {"wait": 0},
    ):
        for inbox in (Inbox, AsyncInbox):
            with pytest.raises(ValueError, match=r"^keep must exceed 3 days and claim_ttl; claim_ttl and wait"):
                inbox(pool, **bad)
    Inbox(pool, keep=timedelta(days=3, seconds=1), claim_ttl=1, wait=0.1)


# Crashes and load.


def test_a_worker_killed_at_any_step_leaves_the_event_to_the_next_delivery(url: str) -> None:
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), *sys.path])}
    subprocess.run([sys.executable, here / "idempotent_processing_kit.py", url], check=True, env=env, timeout=30)
    # Nothing of the two transactions; two claims, and an effect elsewhere that is not marked as done.
    assert rows(url) == [("elsewhere", "shop:done-unmarked")]
    assert rows(url, "webhook_inbox") == [("shop", "claimed"), ("shop", "done-unmarked")]
    with ConnectionPool(url, min_size=1) as pool:
        inbox = Inbox(pool)
        for event_id in ("before-effect", "before-commit"):
            assert inbox.run("shop", event_id, lambda conn: "done").value == "done"
        for event_id in ("claimed", "done-unmarked"):  # run again, with the same key
            assert inbox.run_external("shop", event_id, lambda key: key).value == f"shop:{event_id}"
            assert inbox.run_external("shop", event_id, lambda key: key).status is Status.DUPLICATE


async def test_a_database_that_goes_away_before_the_commit_has_kept_nothing(twin: Twin, url: str) -> None:
    def steps() -> Generator[str, None, None]:
        yield from effect()()
        yield "SELECT pg_terminate_backend(pg_backend_pid())"

    with pytest.raises(psycopg.OperationalError):
        await twin.run("shop", "evt_1", steps)
    assert rows(url) == rows(url, "webhook_inbox") == []
    assert (await twin.run("shop", "evt_1", effect())).status is Status.PROCESSED


def test_a_hundred_events_ten_times_each_from_eight_threads_have_a_hundred_effects(url: str) -> None:
    with ConnectionPool(url, min_size=8, max_size=8) as pool, ThreadPoolExecutor(8) as threads:
        inbox = Inbox(pool)

        def deliver(number: int) -> Status:
            return inbox.run(
                "shop", str(number), lambda conn: conn.execute("INSERT INTO ledger VALUES ('shop', %s)", (str(number),))
            ).status

        ended = Counter(threads.map(deliver, [n for n in range(100) for _ in range(10)]))
    assert ended == {Status.PROCESSED: 100, Status.DUPLICATE: 900}
    assert len(rows(url)) == len(set(rows(url))) == 100


# What people write first.


def test_naive_look_then_work_then_insert_does_the_work_five_times_and_breaks_afterwards(url: str) -> None:
    ran: list[int] = []
    looked = threading.Barrier(5)

    def deliver() -> str:
        with psycopg.connect(url, autocommit=True) as conn:
            known = conn.execute("SELECT 1 FROM webhook_inbox WHERE event_id = 'evt_1'").fetchone()
            looked.wait()
            if known:
                return "duplicate"
            ran.append(1)  # the parcel is sent
            try:
                conn.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now())")
            except errors.UniqueViolation:
                return "UniqueViolation"
            return "processed"

    with ThreadPoolExecutor(5) as threads:
        ended = sorted(threads.map(lambda _: deliver(), range(5)))
    assert len(ran) == 5
    assert ended == ["UniqueViolation"] * 4 + ["processed"]


def naive_mark(conn: psycopg.Connection[Any]) -> bool:
    sql = "INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now())"
    return conn.execute(f"{sql} ON CONFLICT DO NOTHING").rowcount == 1


def test_naive_marker_in_a_transaction_of_its_own_loses_the_event_in_a_crash(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        assert naive_mark(conn)  # committed, and here the process dies
    with psycopg.connect(url, autocommit=True) as conn:
        assert not naive_mark(conn)  # the next delivery is a "duplicate" of what was never done
    assert rows(url) == []


def test_naive_record_of_a_failure_as_processed_never_tries_the_event_again(url: str) -> None:
    def deliver(conn: psycopg.Connection[Any], *, broken: bool) -> str:
        if not naive_mark(conn):
            return "duplicate"
        try:
            if broken:
                raise ConnectionError
        except ConnectionError:
            return "failed"  # and the marker stays
        return "processed"

    with psycopg.connect(url, autocommit=True) as conn:
        assert [deliver(conn, broken=True), deliver(conn, broken=False)] == ["failed", "duplicate"]


def test_naive_failure_row_in_the_except_clause_hides_the_real_error(url: str) -> None:
    insert = "INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now())"
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(insert)  # the first attempt has failed, and left its row

        def deliver() -> None:
            try:
                raise ConnectionError("what really happened")
            except ConnectionError:
                conn.execute(insert)

        with pytest.raises(errors.UniqueViolation):  # and not the ConnectionError
            deliver()


def test_naive_set_nx_beside_a_database_loses_the_effect_of_a_crash(url: str, valkey_url: str) -> None:
    def deliver(*, crash: bool = False) -> str:
        with redis.Redis.from_url(valkey_url) as marks, psycopg.connect(url) as conn:
            if not marks.set("shop:evt_1", 1, nx=True, ex=86_400):
                return "duplicate"
            conn.execute("INSERT INTO ledger VALUES ('shop', 'evt_1')")
            if crash:
                raise SystemExit  # the database rolls back, the mark in Redis stays
            return "processed"

    with pytest.raises(SystemExit):
        deliver(crash=True)
    assert (deliver(), rows(url)) == ("duplicate", [])


def test_naive_set_in_memory_is_another_one_in_each_worker() -> None:
    sent: list[str] = []

    class Worker:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def deliver(self, event_id: str) -> None:
            if event_id not in self.seen:
                self.seen.add(event_id)
                sent.append(event_id)

    for worker in (Worker(), Worker()):  # two processes, or one before and one after a restart
        worker.deliver("evt_1")
    assert sent == ["evt_1", "evt_1"]


# The twins.


def test_both_twins_have_the_same_methods_with_the_same_parameters() -> None:
    for name in ("__init__", "run", "run_external", "purge"):
        ours, theirs = (inspect.signature(getattr(inbox, name)) for inbox in (Inbox, AsyncInbox))
        assert list(ours.parameters) == list(theirs.parameters)
    public = {n for n in vars(Inbox) if not n.startswith("_")}
    assert public == {n for n in vars(AsyncInbox) if not n.startswith("_")} == {"run", "run_external", "purge"}
    assert issubclass(Inbox, idempotent_core.Core)


def test_the_table_can_be_created_twice(url: str) -> None:
    with psycopg.connect(url) as conn:
        for _ in range(2):
            assert conn.execute(SCHEMA).statusmessage


# The test a reader copies, for their own handler.


# --8<-- [start:own]
import psycopg
import pytest
from psycopg_pool import ConnectionPool

from idempotent_sync import SCHEMA, Inbox, Status


def book(conn: psycopg.Connection) -> None:  # your handler
    conn.execute("INSERT INTO booking VALUES ('evt_1')")


def test_my_handler_has_its_effect_once_and_none_when_it_fails(database_url: str) -> None:
    with ConnectionPool(database_url, min_size=1) as pool:
        inbox = Inbox(pool)
        with pool.connection() as conn:
            conn.execute(SCHEMA + "CREATE TABLE booking (event_id text)")

        def book_and_fail(conn: psycopg.Connection) -> None:
            book(conn)
            raise ConnectionError

        with pytest.raises(ConnectionError):
            inbox.run("shop", "evt_1", book_and_fail)
        outcomes = [inbox.run("shop", "evt_1", book).status for _ in range(3)]
        assert outcomes == [Status.PROCESSED, Status.DUPLICATE, Status.DUPLICATE]
        with pool.connection() as conn:
            assert conn.execute("SELECT count(*) FROM booking").fetchone() == (1,)


# --8<-- [end:own]
