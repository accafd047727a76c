"""Proves docs/patterns/webhooks/idempotent-processing.md: an event arrives many times and has its effect once."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from psycopg import errors
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool

from harness.color import Color
from harness.waiting import at_once
from idempotent_async import AsyncInbox
from idempotent_core import SCHEMA, BodyMismatch, InProgress, Outcome, Status, TransactionLost, check_known, event_key
from idempotent_sync import Inbox
from patterns.webhooks.idempotent_processing_kit import Handler, Twin, pool_of

TABLES = "CREATE TABLE ledger (source text, event_id text)"
DUPLICATE: Outcome[Any] = Outcome(Status.DUPLICATE)
NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)


@pytest.fixture(scope="module")
def database(module_database_url: str) -> str:
    """One database for the whole file; each test finds it empty."""
    with psycopg.connect(module_database_url) as conn:
        conn.execute(SCHEMA + TABLES)
    return module_database_url


@pytest.fixture
def url(database: str) -> str:
    with psycopg.connect(database) as conn:
        conn.execute("DELETE FROM webhook_inbox; DELETE FROM ledger")
    return database


@pytest.fixture
def pool(color: Color, url: str) -> Any:
    return pool_of(color, url)


@pytest.fixture
def twin(color: Color, pool: Any) -> Twin:
    return Twin(color, pool)


def rows(url: str, table: str = "ledger") -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as conn:
        return conn.execute(f"SELECT source, event_id FROM {table} ORDER BY 1, 2").fetchall()


def effect(event_id: str = "evt_1", *, source: str = "shop", value: Any = None) -> Handler:
    def handler(conn: Any) -> Any:
        conn.execute(f"INSERT INTO ledger VALUES ('{source}', '{event_id}')")
        return value

    return handler


def outcomes(ended: list[Any]) -> list[str]:
    """Say in a word how each of several runs ended."""
    return sorted(e.status.value if isinstance(e, Outcome) else type(e).__name__ for e in ended)


# The effect is in the same database.


def test_five_workers_meet_on_one_event_and_one_of_them_does_it(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def handler(conn: Any) -> None:
        ran.append(1)
        conn.execute("SELECT pg_sleep(0.02)")  # long enough for the others to arrive
        effect()(conn)

    ended = outcomes(at_once(5, lambda: twin.run("shop", "evt_1", handler)))
    assert ended == ["duplicate"] * 4 + ["processed"]
    assert (len(ran), rows(url)) == (1, [("shop", "evt_1")])


def test_when_the_first_worker_fails_one_that_waited_does_the_work(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def handler(conn: Any) -> None:
        ran.append(1)
        effect()(conn)
        conn.execute("SELECT pg_sleep(0.02)")
        if len(ran) == 1:
            raise ConnectionError("the first one breaks")

    ended = outcomes(at_once(5, lambda: twin.run("shop", "evt_1", handler)))
    assert ended == ["ConnectionError"] + ["duplicate"] * 3 + ["processed"]
    assert (len(ran), rows(url)) == (2, [("shop", "evt_1")])


def test_a_failed_run_leaves_neither_effect_nor_marker_and_its_exception_comes_out(twin: Twin, url: str) -> None:
    def handler(conn: Any) -> None:
        effect()(conn)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        twin.run("shop", "evt_1", handler)
    assert rows(url) == rows(url, "webhook_inbox") == []
    assert twin.run("shop", "evt_1", effect(value=7)) == Outcome(Status.PROCESSED, 7)
    assert rows(url) == rows(url, "webhook_inbox") == [("shop", "evt_1")]


def test_a_value_of_none_is_told_from_a_duplicate(twin: Twin) -> None:
    first, second = [twin.run("shop", "evt_1", effect(value=None)) for _ in range(2)]
    assert first == Outcome(Status.PROCESSED, None)
    assert second == DUPLICATE
    assert first != second


def test_equal_ids_of_two_sources_are_two_events(twin: Twin, url: str) -> None:
    for source in ("shop", "bank"):
        assert twin.run(source, "1", effect("1", source=source)).status is Status.PROCESSED
    assert rows(url) == [("bank", "1"), ("shop", "1")]


def test_a_worker_that_waits_too_long_gets_in_progress_and_session_settings_return(
    color: Color, pool: Any, url: str
) -> None:
    twin = Twin(color, pool, wait=0.02)
    with psycopg.connect(url) as other:
        other.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now())")
        with pytest.raises(InProgress) as caught:
            twin.run("shop", "evt_1", effect())
        assert (caught.value.key, caught.value.retry_after) == ("shop:evt_1", 0.02)
        assert str(caught.value) == "shop:evt_1 is being processed by another worker"
        assert caught.value.__cause__ is None
        other.rollback()
    seen: list[str] = []

    def handler(conn: Any) -> None:
        seen.append("ran")
        conn.execute("DO $$ BEGIN ASSERT current_setting('lock_timeout') = '20ms'; END $$")

    assert twin.run("shop", "evt_1", handler).status is Status.PROCESSED
    seen.clear()

    def after(conn: Any) -> None:
        conn.execute("DO $$ BEGIN ASSERT current_setting('lock_timeout') = '10s'; END $$")

    assert Twin(color, pool).run("shop", "evt_2", after).status is Status.PROCESSED
    assert Twin(color, pool, wait=0.0001).run("shop", "evt_3", effect()).status is Status.PROCESSED


def test_a_serialization_failure_and_a_deadlock_run_the_whole_transaction_again(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for failure, code in (("serialization", "40001"), ("deadlock", "40P01")):
        ran: list[int] = []

        def handler(conn: Any, failure: str = failure, code: str = code, ran: list[int] = ran) -> int:
            ran.append(1)
            effect(failure)(conn)
            if len(ran) < 3:
                conn.execute(f"DO $$ BEGIN RAISE EXCEPTION 'make way' USING ERRCODE = '{code}'; END $$")
            return len(ran)

        assert twin.run("shop", failure, handler) == Outcome(Status.PROCESSED, 3)
    assert rows(url) == [("shop", "deadlock"), ("shop", "serialization")]
    assert "shop:deadlock: gave way to another transaction, once more" in caplog.text


def test_after_three_failures_to_serialize_the_error_comes_out(twin: Twin, url: str) -> None:
    ran: list[int] = []

    def handler(conn: Any) -> None:
        ran.append(1)
        conn.execute("DO $$ BEGIN RAISE EXCEPTION 'make way' USING ERRCODE = '40001'; END $$")

    with pytest.raises(errors.SerializationFailure):
        twin.run("shop", "evt_1", handler)
    assert (len(ran), rows(url, "webhook_inbox")) == (3, [])


def test_serializable_transactions_that_meet_still_have_one_effect(color: Color, url: str) -> None:
    twin = Twin(color, pool_of(color, f"{url}?options=-c%20default_transaction_isolation%3Dserializable"))
    ended = outcomes(at_once(5, lambda: twin.run("shop", "evt_1", effect())))
    assert ended.count("processed") == 1
    assert ended.count("duplicate") == 4
    assert rows(url) == [("shop", "evt_1")]


def test_a_pool_that_makes_dict_rows_or_commits_each_statement_serves_too(color: Color, url: str) -> None:
    twin = Twin(color, pool_of(color, url, row_factory=dict_row, autocommit=True))

    def fails(conn: Any) -> None:
        effect()(conn)
        raise KeyError("and nothing stays")

    with pytest.raises(KeyError):
        twin.run("shop", "evt_1", fails)
    assert rows(url) == []
    assert [twin.run("shop", "evt_1", effect()).status.value for _ in range(2)] == ["processed", "duplicate"]


# What a handler can do to the transaction.


def test_naive_commit_after_a_swallowed_error_persists_nothing_and_says_nothing(url: str) -> None:
    with psycopg.connect(url) as conn:
        with conn.transaction():
            conn.execute("INSERT INTO ledger VALUES ('shop', 'evt_1')")
            with pytest.raises(errors.UndefinedTable):  # somebody catches it, and goes on
                conn.execute("INSERT INTO leger VALUES (1)")
        acknowledged = True  # no exception came this far
    assert acknowledged
    assert rows(url) == []


def test_a_handler_that_swallows_a_database_error_is_not_taken_for_success(twin: Twin, url: str) -> None:
    def swallow(conn: Any) -> None:
        conn.execute("INSERT INTO ledger VALUES ('shop', 'evt_1')")
        with pytest.raises(errors.UndefinedTable):
            conn.execute("INSERT INTO leger VALUES (1)")

    with pytest.raises(TransactionLost, match="swallowed a database error"):
        twin.run("shop", "evt_1", swallow)
    assert rows(url) == rows(url, "webhook_inbox") == []


@pytest.mark.parametrize("way", ["commit", "rollback", "Rollback", "sql"])
def test_a_handler_that_ends_the_transaction_by_itself_is_an_error(twin: Twin, url: str, way: str) -> None:
    def handler(conn: Any) -> Any:
        if way == "Rollback":
            raise psycopg.Rollback
        return conn.execute("ROLLBACK") if way == "sql" else getattr(conn, way)()

    expected: Any = psycopg.ProgrammingError if way in ("commit", "rollback") else TransactionLost
    with pytest.raises(expected):
        twin.run("shop", "evt_1", handler)
    assert rows(url, "webhook_inbox") == []


def test_a_coroutine_function_is_refused_by_the_sync_inbox_before_anything_is_marked(url: str) -> None:
    async def handler(argument: object) -> None: ...

    with ConnectionPool(url, min_size=1) as pool:
        for run in (Inbox(pool).run, Inbox(pool).run_external):
            with pytest.raises(TypeError, match="use AsyncInbox"):
                run("shop", "evt_1", handler)
    assert rows(url, "webhook_inbox") == []


# The effect is somewhere else.


def test_an_external_handler_gets_a_stable_key_and_runs_once(twin: Twin, caplog: pytest.LogCaptureFixture) -> None:
    keys: list[str] = []

    def handler(key: str) -> int:
        keys.append(key)
        if len(keys) == 1:
            raise TimeoutError("the other side is slow")
        return len(keys)

    with pytest.raises(TimeoutError):
        twin.run_external("shop", "evt_1", handler)
    assert twin.run_external("shop", "evt_1", handler) == Outcome(Status.PROCESSED, 2)
    assert twin.run_external("shop", "evt_1", handler) == DUPLICATE
    assert keys == ["shop:evt_1"] * 2 == [event_key("shop", "evt_1")] * 2
    assert [r for r in caplog.records if r.name == "idempotent_core"] == []  # its claim had not expired


def test_while_a_claim_holds_everybody_else_gets_in_progress(color: Color, pool: Any) -> None:
    twin = Twin(color, pool, claim_ttl=30)

    def handler(key: str) -> str:
        for run, work in ((twin.run_external, handler), (twin.run, effect())):
            with pytest.raises(InProgress) as caught:
                run("shop", "evt_1", work)
            assert 29 < caught.value.retry_after <= 30
        return key

    assert twin.run_external("shop", "evt_1", handler) == Outcome(Status.PROCESSED, "shop:evt_1")


def test_a_dead_claim_is_taken_over_by_exactly_one(color: Color, pool: Any, url: str) -> None:
    now = NOW
    twin = Twin(color, pool, claim_ttl=60, clock=lambda: now)
    with psycopg.connect(url) as conn:  # what a worker that died at NOW has left behind
        conn.execute(
            "INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), %s, %s)",
            (NOW, NOW + timedelta(seconds=60)),
        )
    ran: list[str] = []
    refused: list[InProgress] = []

    def handler(key: str) -> None:
        ran.append(key)
        while len(refused) < 4:  # it takes until all others have come, and gone
            time.sleep(0.002)

    def run() -> Outcome[Any]:
        try:
            return twin.run_external("shop", "evt_1", handler)
        except InProgress as busy:
            refused.append(busy)
            raise

    now = NOW + timedelta(seconds=59.5)
    with pytest.raises(InProgress):
        run()
    assert refused[0].retry_after == 1
    now = NOW + timedelta(seconds=60)
    assert outcomes(at_once(4, run)) == ["InProgress"] * 3 + ["processed"]
    assert ran == ["shop:evt_1"]


def test_a_dead_claim_is_taken_over_by_run_too(color: Color, pool: Any, url: str) -> None:
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', NULL, gen_random_uuid(), now(), now())")
    twin = Twin(color, pool)
    assert [twin.run("shop", "evt_1", effect()).status.value for _ in range(2)] == ["processed", "duplicate"]


def test_work_that_outlives_its_claim_is_recorded_and_reported(
    color: Color, pool: Any, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    twin = Twin(color, pool, claim_ttl=0.001)
    late = "shop:evt_1: done after its claim had expired; raise claim_ttl"

    def slow(key: str) -> str:
        def second(key: str) -> str:
            return "second"

        time.sleep(0.005)
        assert twin.run_external("shop", "evt_1", second).value == "second"
        return "first"

    assert twin.run_external("shop", "evt_1", slow).value == "first"
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [late]
    assert twin.run_external("shop", "evt_1", slow) == DUPLICATE
    caplog.clear()

    def overtaken(key: str) -> str:
        def breaks(key: str) -> None:
            raise OSError("and its claim, the newer one, is released")

        time.sleep(0.005)
        with pytest.raises(OSError, match="newer"):
            twin.run_external("shop", "evt_2", breaks)
        return "done"

    assert twin.run_external("shop", "evt_2", overtaken).value == "done"
    assert twin.run_external("shop", "evt_2", overtaken) == DUPLICATE  # the effect has happened: it is kept


def test_a_worker_that_fails_late_leaves_the_claim_of_its_successor_alone(color: Color, pool: Any) -> None:
    first, second = Twin(color, pool, claim_ttl=0.001), Twin(color, pool, claim_ttl=30)

    def successor(key: str) -> None:
        with pytest.raises(InProgress):
            second.run_external("shop", "evt_1", successor)

    def slow(key: str) -> None:
        time.sleep(0.005)
        second.run_external("shop", "evt_1", successor)
        raise OSError("late")

    with pytest.raises(OSError, match="late"):
        first.run_external("shop", "evt_1", slow)
    assert second.run_external("shop", "evt_1", slow) == DUPLICATE


def test_an_event_released_between_the_claim_and_the_look_is_tried_again_soon() -> None:
    with pytest.raises(InProgress) as caught:
        check_known({"key": "shop:evt_1"}, None)
    assert caught.value.retry_after == 1


def test_the_error_of_the_handler_is_not_hidden_when_the_claim_cannot_be_released(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(key: str) -> None:
        monkeypatch.setattr(twin.inner, "_pool", None)  # from here on there is no database
        raise LookupError("the real one")

    with pytest.raises(LookupError, match="the real one"):
        twin.run_external("shop", "evt_1", handler)
    assert "shop:evt_1: its claim could not be released; it expires" in caplog.text
    assert rows(url, "webhook_inbox") == [("shop", "evt_1")]


def test_a_cancelled_external_handler_releases_its_claim(color: Color, pool: Any, url: str) -> None:
    if not color.is_async:  # a thread is not cancelled; an interrupt is what ends it
        with pytest.raises(KeyboardInterrupt):
            Inbox(pool).run_external("shop", "evt_1", lambda key: (_ for _ in ()).throw(KeyboardInterrupt))
    else:

        async def handler(key: str) -> None:
            task = asyncio.current_task()  # the one that handed the event in
            assert task
            task.cancel()
            await asyncio.Event().wait()

        async def external() -> None:
            await AsyncInbox(pool).run_external("shop", "evt_1", handler)

        with pytest.raises(asyncio.CancelledError):
            color.run(external())
    assert rows(url, "webhook_inbox") == []


# Identity: source, id and body.


def test_a_known_id_with_another_body_is_refused_and_nothing_of_the_body_is_told(
    twin: Twin, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    def external(key: str) -> None: ...

    twin.run("shop", "evt_1", effect(), body=b'{"amount": 1}')
    twin.run_external("shop", "evt_2", external, body=b'{"amount": 1}')
    assert twin.run("shop", "evt_1", effect(), body=b'{"amount": 1}') == DUPLICATE
    assert twin.run("shop", "evt_1", effect()) == DUPLICATE  # no body given: none compared
    for run, event_id, work in ((twin.run, "evt_1", effect()), (twin.run_external, "evt_2", external)):
        with pytest.raises(BodyMismatch, match=r"^shop:evt_\d is known, with another body$") as caught:
            run("shop", event_id, work, body=b"canary-1")
        assert caught.value.key in ("shop:evt_1", "shop:evt_2")
        assert "canary" not in repr(caught.value) + caplog.text
    assert rows(url) == [("shop", "evt_1")]


def test_a_dead_claim_with_another_body_is_not_taken_over(color: Color, pool: Any, url: str) -> None:
    twin = Twin(color, pool)
    with psycopg.connect(url) as conn:
        conn.execute("INSERT INTO webhook_inbox VALUES ('shop', 'evt_1', 'x', gen_random_uuid(), now(), now())")
    with pytest.raises(BodyMismatch):
        twin.run("shop", "evt_1", effect(), body=b"{}")
    assert rows(url) == []


@pytest.mark.parametrize(
    ("source", "event_id"),
    [("", "1"), ("a:b", "1"), ("a" * 65, "1"), ("é", "1"), ("a", ""), ("a", "x y"), ("a", "\0"), ("a", "x" * 256)],
)
def test_a_source_or_an_id_that_could_not_be_a_key_is_refused(twin: Twin, url: str, source: str, event_id: str) -> None:
    def external(key: str) -> None: ...

    for run, work in ((twin.run, effect()), (twin.run_external, external)):
        with pytest.raises(ValueError, match=r"^source or event_id is empty, too long, or has other characters in it$"):
            run(source, event_id, work)
    assert rows(url) == []


def test_naive_joining_of_source_and_id_makes_one_key_of_two_events() -> None:
    assert ":".join(("a:b", "c")) == ":".join(("a", "b:c"))
    assert event_key("a", "b:c") == "a:b:c"
    assert event_key("a" * 64, "x" * 255)
    with pytest.raises(ValueError, match="source"):
        event_key("a:b", "c")


# Forgetting.


def test_purge_forgets_only_what_is_older_than_keep(color: Color, pool: Any, url: str) -> None:
    now = NOW
    twin = Twin(color, pool, keep=timedelta(days=10), clock=lambda: now)
    twin.run("shop", "old", effect("old"))
    now = NOW + timedelta(seconds=1)
    twin.run("shop", "young", effect("young"))
    now = NOW + timedelta(days=10)
    assert twin.purge() == 0
    now += timedelta(seconds=1)
    assert twin.purge() == 1
    assert rows(url, "webhook_inbox") == [("shop", "young")]
    assert Twin(color, pool).purge() == 0  # the clock of the database: both are young


def test_settings_that_would_forget_too_early_stop_the_start() -> None:
    pool: Any = None
    inboxes: list[Any] = [Inbox, AsyncInbox]
    for inbox in inboxes:
        for bad in ({"keep": timedelta(days=3)}, {"keep": timedelta(days=4), "claim_ttl": 4 * 86_400}):
            with pytest.raises(ValueError, match=r"^keep must be over 3 days and over claim_ttl, got \d days"):
                inbox(pool, **bad)
        for name in ("claim_ttl", "wait"):
            for wrong in (0, -1, math.nan, math.inf, True, "1"):
                with pytest.raises(ValueError, match=rf"^{name} must be a number of seconds over 0, got {wrong!r}$"):
                    inbox(pool, **{name: wrong})
        inbox(pool, keep=timedelta(days=3, seconds=1), claim_ttl=1, wait=0.1)


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


def test_a_database_that_goes_away_before_the_commit_has_kept_nothing(twin: Twin, url: str) -> None:
    def handler(conn: Any) -> None:
        effect()(conn)
        conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(psycopg.OperationalError):
        twin.run("shop", "evt_1", handler)
    assert rows(url) == rows(url, "webhook_inbox") == []
    assert twin.run("shop", "evt_1", effect()).status is Status.PROCESSED


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


def test_naive_look_then_work_then_insert_does_the_work_five_times_then_breaks(url: str) -> None:
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

    ended = sorted(at_once(5, deliver))
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


def test_the_table_can_be_created_twice(url: str) -> None:
    with psycopg.connect(url) as conn:
        for _ in range(2):
            assert conn.execute(SCHEMA).statusmessage
