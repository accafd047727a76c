"""Proves docs/patterns/webhooks/webhook-fanout.md: a failure is one handler's own, and no success is repeated."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import httpx2
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from fanout_done import SCHEMA, PostgresDone
from harness.fake_loop import on_fake_time
from servers.http import Uvicorn
from webhook_fanout import DoneStore, DuplicateHandler, Fanout, FanoutIncomplete, MemoryDone, Report, _Registered


@dataclass
class Event:
    """As a receiver hands it over, and with a payload that can be changed."""

    source: str = "shop"
    id: str = "evt_1"
    timestamp: int = 1_800_000_000
    type: str = "order.paid"
    payload: dict[str, Any] = field(default_factory=lambda: {"secret": "canary-payload", "lines": [1, 2]})


@pytest.fixture(scope="module")
def database(module_database_url: str) -> str:
    """The file's database, with the tables in it; each test finds them empty."""
    with psycopg.connect(module_database_url) as conn:
        conn.execute(SCHEMA)
    return module_database_url


@pytest.fixture
async def postgres(database: str) -> AsyncIterator[PostgresDone]:
    with psycopg.connect(database) as conn:
        conn.execute("DELETE FROM webhook_done")
    async with AsyncConnectionPool(database, min_size=1, max_size=4, open=False) as pool:
        yield PostgresDone(pool)


@pytest.fixture(params=["memory", "postgres"])
def store(request: pytest.FixtureRequest) -> DoneStore:
    if request.param == "memory":
        return MemoryDone()
    made: PostgresDone = request.getfixturevalue("postgres")
    return made


class Log:
    """Makes handlers that write down that they ran, and then do as they are told."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def handler(self, name: str, *, seconds: float = 0, error: BaseException | None = None) -> Callable[[Event], Any]:
        async def handle(event: Event) -> None:
            self.ran.append(name)
            await asyncio.sleep(seconds)
            if error:
                raise error

        return handle

    def blocking(self, name: str, error: BaseException | None = None) -> Callable[[Event], None]:
        def handle(event: Event) -> None:
            self.ran.append(name)
            if error:
                raise error

        return handle


async def incomplete(dispatch: Coroutine[Any, Any, Report]) -> Report:
    with pytest.raises(FanoutIncomplete) as caught:
        await dispatch
    return caught.value.report


# Side by side.


@on_fake_time
async def test_five_handlers_of_200_ms_take_200_ms() -> None:
    fanout, log = Fanout(MemoryDone()), Log()
    for number in range(5):
        fanout.register(f"h{number}", log.handler(f"h{number}", seconds=0.2))
    report = await fanout.dispatch(Event())
    assert report == Report(ok=("h0", "h1", "h2", "h3", "h4"))
    assert asyncio.get_running_loop().time() == 0.2


async def test_plain_functions_run_side_by_side_in_threads_and_do_not_block_the_loop() -> None:
    fanout = Fanout(MemoryDone())
    together = threading.Barrier(4)
    loop_thread = threading.get_ident()
    seen: list[bool] = []

    def blocks(event: Event) -> None:
        together.wait(5)  # only with the others there, and with the loop, does it come back
        seen.append(threading.get_ident() != loop_thread)

    async def on_the_loop(event: Event) -> None:
        await asyncio.to_thread(together.wait, 5)

    for name in "abc":
        fanout.register(name, blocks)
    fanout.register("d", on_the_loop)
    assert len((await fanout.dispatch(Event())).ok) == 4
    assert seen == [True] * 3


@on_fake_time
async def test_no_more_than_max_parallel_run_at_a_time_over_all_events() -> None:
    fanout, log = Fanout(MemoryDone(), max_parallel=10, timeout=1.5), Log()
    for number in range(50):
        fanout.register(str(number), log.handler(str(number), seconds=1))
    reports = await asyncio.gather(fanout.dispatch(Event(id="1")), fanout.dispatch(Event(id="2")))
    assert [len(report.ok) for report in reports] == [50, 50]
    assert asyncio.get_running_loop().time() == 10  # and waiting for a slot was nobody's timeout


# Failing alone.


FAILURES = [
    ValueError("x"),
    SystemExit(1),
    KeyboardInterrupt(),
    GeneratorExit(),
    StopIteration(),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_one_that_raises_sync_or_async_stops_no_other(error: BaseException, store: DoneStore) -> None:
    fanout, log = Fanout(store), Log()
    fanout.register("before", log.handler("before", seconds=0.002))
    fanout.register("async", log.handler("async", error=error))
    fanout.register("sync", log.blocking("sync", error))
    fanout.register("after", log.blocking("after"))
    report = await incomplete(fanout.dispatch(Event()))
    assert report.ok == ("before", "after")
    assert set(report.failed) == {"async", "sync"}
    if not isinstance(error, StopIteration):  # Python makes a RuntimeError of it in a coroutine
        assert {type(failure) for failure in report.failed.values()} == {type(error)}
    assert set(await store.done("shop", "evt_1")) == {"before", "after"}


@on_fake_time
async def test_each_handler_has_its_own_time_limit_and_the_one_over_it_is_cancelled() -> None:
    done, log = MemoryDone(), Log()
    fanout = Fanout(done, timeout=3)
    cancelled: list[float] = []

    async def slow(event: Event) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    fanout.register("slow", slow)
    fanout.register("quick", log.handler("quick", seconds=2.9))
    report = await incomplete(fanout.dispatch(Event()))
    assert (cancelled, report.ok) == ([3], ("quick",))
    assert repr(report.failed["slow"]) == "TimeoutError('not done within 3 s')"
    assert await done.done("shop", "evt_1") == {"quick"}


@on_fake_time
async def test_a_handler_that_swallows_its_cancellation_is_left_behind_and_not_done() -> None:
    done = MemoryDone()
    fanout = Fanout(done, timeout=3, patience=2)
    ends: list[str] = []

    async def stubborn(event: Event) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(1 if event.id == "polite" else 30)
        ends.append(event.id)

    fanout.register("stubborn", stubborn)
    for event_id, seconds in (("polite", 4), ("never", 5)):
        begin = asyncio.get_running_loop().time()
        report = await incomplete(fanout.dispatch(Event(id=event_id)))
        assert asyncio.get_running_loop().time() - begin == seconds
        assert type(report.failed["stubborn"]) is TimeoutError
        assert await done.done("shop", event_id) == frozenset()
    assert ends == ["polite"]


async def test_a_plain_function_over_its_time_is_reported_and_goes_on_in_its_thread() -> None:
    fanout = Fanout(MemoryDone(), timeout=0.01, patience=0.01)
    release, ended = threading.Event(), threading.Event()

    def hangs(event: Event) -> None:
        release.wait(5)
        ended.set()

    fanout.register("hangs", hangs)
    report = await incomplete(fanout.dispatch(Event()))
    assert type(report.failed["hangs"]) is TimeoutError
    assert not ended.is_set()
    release.set()
    assert await asyncio.to_thread(ended.wait, 5)


async def test_an_optional_handler_that_fails_is_reported_and_logged_and_tried_again(
    store: DoneStore, caplog: pytest.LogCaptureFixture
) -> None:
    fanout, log = Fanout(store), Log()
    fanout.register("ledger", log.handler("ledger"))
    fanout.register("slack", log.handler("slack", error=OSError("canary-token")), required=False)
    report = await fanout.dispatch(Event())
    assert (report.ok, list(report.failed), str(report.failed["slack"])) == (("ledger",), ["slack"], "canary-token")
    assert "handler slack failed for evt_1: OSError" in caplog.text
    again = await fanout.dispatch(Event())
    assert (again.ok, list(again.failed), again.skipped) == ((), ["slack"], ("ledger",))
    assert log.ran == ["ledger", "slack", "slack"]


async def test_a_required_failure_is_raised_with_its_report_and_names_what_is_missing(store: DoneStore) -> None:
    fanout, log = Fanout(store), Log()
    fanout.register("ledger", log.handler("ledger", error=LookupError("canary")))
    fanout.register("mail", log.blocking("mail", OSError("canary")))
    fanout.register("slack", log.handler("slack", error=OSError("canary")), required=False)
    fanout.register("stats", log.handler("stats"))
    with pytest.raises(FanoutIncomplete, match=r"^failed: ledger, mail$") as caught:
        await fanout.dispatch(Event())
    report = caught.value.report
    assert (report.ok, set(report.failed)) == (("stats",), {"ledger", "mail", "slack"})
    assert isinstance(report.failed["ledger"], LookupError)


# Doing it again.


async def test_a_second_dispatch_runs_only_what_is_not_yet_done(store: DoneStore) -> None:
    fanout, log = Fanout(store), Log()
    broken: list[BaseException] = [ConnectionError()]

    async def mail(event: Event) -> None:
        log.ran.append("mail")
        if broken:
            raise broken.pop()

    fanout.register("slack", log.handler("slack"))
    fanout.register("mail", mail)
    await incomplete(fanout.dispatch(Event()))
    assert await fanout.dispatch(Event()) == Report(ok=("mail",), skipped=("slack",))
    assert await fanout.dispatch(Event()) == Report(skipped=("slack", "mail"))
    assert Counter(log.ran) == {"slack": 1, "mail": 2}
    assert (await fanout.dispatch(Event(source="bank"))).ok == ("slack", "mail")  # another event
    assert (await fanout.dispatch(Event(id="evt_2"))).ok == ("slack", "mail")


async def test_a_done_store_that_is_down_runs_nobody(store: DoneStore) -> None:
    log = Log()

    class Down:
        async def done(self, source: str, event_id: str) -> Collection[str]:
            raise ConnectionError("no database")

        mark: Any = None

    fanout = Fanout(Down())
    fanout.register("ledger", log.handler("ledger"))
    with pytest.raises(ConnectionError):
        await fanout.dispatch(Event())
    assert log.ran == []


async def test_a_handler_that_cannot_be_marked_is_not_done(caplog: pytest.LogCaptureFixture) -> None:
    class Forgetful(MemoryDone):
        async def mark(self, source: str, event_id: str, handler: str) -> None:
            raise ConnectionError("no database")

    fanout, log = Fanout(Forgetful()), Log()
    fanout.register("ledger", log.handler("ledger"))
    report = await incomplete(fanout.dispatch(Event()))
    assert (report.ok, type(report.failed["ledger"])) == ((), ConnectionError)
    assert "handler ledger failed for evt_1: ConnectionError" in caplog.text


@on_fake_time
async def test_cancelling_dispatch_cancels_all_handlers_and_marks_none_of_them() -> None:
    done, log = MemoryDone(), Log()
    fanout = Fanout(done)
    ended: list[str] = []

    def slow(name: str) -> Callable[[Event], Any]:
        async def handle(event: Event) -> None:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                ended.append(name)
                raise

        return handle

    for name in ("a", "b"):
        fanout.register(name, slow(name))
    fanout.register("quick", log.handler("quick", seconds=0.5))
    task = asyncio.create_task(fanout.dispatch(Event()))
    await asyncio.sleep(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert sorted(ended) == ["a", "b"]
    assert await done.done("shop", "evt_1") == {"quick"}  # it had finished before
    assert asyncio.get_running_loop().time() == 1


@on_fake_time
async def test_a_success_is_marked_even_when_the_cancellation_comes_in_between() -> None:
    class Slow(MemoryDone):
        seconds = 0.5

        async def mark(self, source: str, event_id: str, handler: str) -> None:
            await asyncio.sleep(self.seconds)
            await super().mark(source, event_id, handler)

    done, log = Slow(), Log()
    fanout = Fanout(done, patience=2)
    fanout.register("ledger", log.handler("ledger"))
    for event_id, seconds, marked, took in (("1", 0.5, {"ledger"}, 0.5), ("2", 9, set(), 2.1)):
        done.seconds = seconds
        begin = asyncio.get_running_loop().time()
        task = asyncio.create_task(fanout.dispatch(Event(id=event_id)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await done.done("shop", event_id) == marked
        assert asyncio.get_running_loop().time() - begin == pytest.approx(took)


@on_fake_time
async def test_a_thousand_events_with_a_handler_that_fails_at_times_are_all_done_finally() -> None:
    done, effects, calls = MemoryDone(), Counter[tuple[str, str]](), 0
    fanout = Fanout(done, max_parallel=100)

    async def sometimes(event: Event) -> None:
        nonlocal calls
        calls += 1
        if calls % 10 == 0:
            raise ConnectionError
        effects["sometimes", event.id] += 1

    async def always(event: Event) -> None:
        effects["always", event.id] += 1

    fanout.register("sometimes", sometimes)
    fanout.register("always", always)
    left = [Event(id=str(number), payload={}) for number in range(1_000)]
    rounds = 0
    while left:
        ended = await asyncio.gather(*map(fanout.dispatch, left), return_exceptions=True)
        left = [event for event, end in zip(left, ended, strict=True) if isinstance(end, FanoutIncomplete)]
        rounds += 1
    assert rounds > 2
    assert len(effects) == 2_000
    assert set(effects.values()) == {1}


async def test_a_hundred_handlers_of_one_event_are_all_marked(store: DoneStore) -> None:
    fanout, log = Fanout(store), Log()
    for number in range(100):
        fanout.register(str(number), log.handler(str(number)))
    assert len((await fanout.dispatch(Event())).ok) == len(await store.done("shop", "evt_1")) == 100


# Who is called, and with what.


async def test_each_handler_gets_a_copy_of_its_own() -> None:
    fanout = Fanout(MemoryDone())
    given: list[dict[str, Any]] = []

    async def pops(event: Event) -> None:
        event.payload["lines"].clear()
        event.payload.pop("secret")
        given.append(event.payload)

    for name in ("first", "second"):
        fanout.register(name, pops)
    event = Event()
    assert len((await fanout.dispatch(event)).ok) == 2
    assert given == [{"lines": []}, {"lines": []}]
    assert event == Event()


async def test_an_event_that_cannot_be_copied_is_a_failure_of_each_handler() -> None:
    fanout, log = Fanout(MemoryDone()), Log()
    fanout.register("ledger", log.handler("ledger"))
    report = await incomplete(fanout.dispatch(Event(payload={"lock": threading.Lock()})))
    assert (type(report.failed["ledger"]), log.ran) == (TypeError, [])


async def test_handlers_are_chosen_by_type_and_an_event_of_nobody_is_counted() -> None:
    missed: list[str] = []
    fanout, log = Fanout(MemoryDone(), unhandled=missed.append), Log()
    fanout.register("orders", log.handler("orders"), types=["order.*"])
    fanout.register("paid", log.handler("paid"), types=("order.paid", "invoice.paid"))
    for number, (kind, expected) in enumerate(
        [
            ("order.paid", ("orders", "paid")),
            ("order.sent", ("orders",)),
            ("invoice.paid", ("paid",)),
            ("Order.paid", ()),
        ]
    ):
        assert (await fanout.dispatch(Event(id=str(number), type=kind))).ok == expected
    assert missed == ["Order.paid"]
    assert await Fanout(MemoryDone()).dispatch(Event()) == Report()


async def test_any_kind_of_callable_is_called_rightly() -> None:
    fanout, seen = Fanout(MemoryDone()), []

    async def function(event: Event, name: str = "function") -> None:
        seen.append(name)

    class Object:
        async def __call__(self, event: Event) -> None:
            seen.append("object")

        async def method(self, event: Event) -> None:
            seen.append("method")

    async def fails(event: Event) -> None:
        raise LookupError

    fanout.register("function", function)
    fanout.register("partial", functools.partial(function, name="partial"))
    fanout.register("object", Object())
    fanout.register("method", Object().method)
    fanout.register("lambda", lambda event: function(event, "lambda"))
    fanout.register("failing lambda", lambda event: fails(event), required=False)
    report = await fanout.dispatch(Event())
    assert sorted(seen) == ["function", "lambda", "method", "object", "partial"]
    assert (len(report.ok), type(report.failed["failing lambda"])) == (5, LookupError)


async def test_an_object_whose_class_has_an_async_call_waits_for_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    class Object:
        async def __call__(self, event: object) -> None: ...

    async def no_thread_is_free(*args: object) -> None:
        raise AssertionError

    monkeypatch.setattr(asyncio, "to_thread", no_thread_is_free)
    fanout = Fanout(MemoryDone())
    fanout.register("object", Object())
    assert (await fanout.dispatch(Event())).ok == ("object",)


def test_a_name_that_is_taken_and_useless_settings_stop_the_start() -> None:
    fanout = Fanout(MemoryDone())
    fanout.register("slack", print)
    with pytest.raises(DuplicateHandler, match="there is a handler 'slack' already"):
        fanout.register("slack", repr)
    with pytest.raises(TypeError, match="types must be a sequence of strings"):
        fanout.register("mail", print, types="order.paid")
    for wrong in (0, -1, math.nan, math.inf, True, "1"):
        given: dict[str, Any]
        for option in ("timeout", "patience"):
            given = {option: wrong}
            with pytest.raises(ValueError, match=rf"^{option} must be a number of seconds over 0, got {wrong!r}$"):
                Fanout(MemoryDone(), **given)
        given = {"max_parallel": wrong}
        with pytest.raises(ValueError, match=rf"^max_parallel must be a whole number over 0, got {wrong!r}$"):
            Fanout(MemoryDone(), **given)


async def test_no_log_line_message_or_repr_holds_the_payload_or_an_error_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    fanout, log = Fanout(MemoryDone()), Log()
    fanout.register("ledger", log.handler("ledger", error=ValueError("canary-payload")))
    fanout.register("stats", log.handler("stats"))
    with pytest.raises(FanoutIncomplete) as caught:
        await fanout.dispatch(Event())
    formatted = "".join(logging.Formatter().format(record) for record in caplog.records)
    assert "handler ledger failed for evt_1: ValueError" in formatted
    assert "canary" not in formatted + str(caught.value) + repr(caught.value) + repr(caught.value.report)
    assert repr(caught.value.report) == "Report(ok=('stats',), skipped=())"
    assert str(caught.value.report.failed["ledger"]) == "canary-payload"  # for whoever may see it


# The table, and real servers behind the handlers.


async def test_marks_outlive_the_process_may_be_set_twice_and_are_purged_by_age(
    postgres: PostgresDone, database: str
) -> None:
    for name in ("slack", "slack", "mail"):
        await postgres.mark("shop", "evt_1", name)
    async with AsyncConnectionPool(database, min_size=1, open=False) as other:
        assert await PostgresDone(other).done("shop", "evt_1") == {"slack", "mail"}
    with psycopg.connect(database) as conn:
        conn.execute("UPDATE webhook_done SET done_at = now() - interval '30 days 1 second' WHERE handler = 'mail'")
    assert await postgres.purge(timedelta(days=31)) == 0
    assert await postgres.purge() == 1
    assert await postgres.done("shop", "evt_1") == {"slack"}


async def test_real_services_that_fail_on_command_are_called_until_each_has_answered(postgres: PostgresDone) -> None:
    answers = {"slack": [200], "mail": [503, 200], "search": [500, 500, 200]}
    calls: Counter[str] = Counter()

    async def serve(request: Request) -> Response:
        name = request.path_params["name"]
        calls[name] += 1
        return Response(status_code=answers[name].pop(0))

    server = Uvicorn(Starlette(routes=[Route("/{name}", serve, methods=["POST"])]))
    try:
        async with httpx2.AsyncClient(trust_env=False, base_url=server.url) as client:
            fanout = Fanout(postgres)

            def handler(name: str) -> Callable[[Event], Any]:
                async def handle(event: Event) -> None:
                    (await client.post(f"/{name}", json=event.payload)).raise_for_status()

                return handle

            for name in answers:
                fanout.register(name, handler(name))
            assert set((await incomplete(fanout.dispatch(Event()))).failed) == {"mail", "search"}
            assert set((await incomplete(fanout.dispatch(Event()))).failed) == {"search"}
            assert (await fanout.dispatch(Event())).skipped == ("slack", "mail")
    finally:
        server.stop()
    assert calls == {"slack": 1, "mail": 2, "search": 3}


# What people write first.


async def test_naive_collecting_and_logging_of_errors_acknowledges_what_failed() -> None:
    log = Log()

    async def naive(event: Event, handlers: list[Any]) -> None:
        for handler in handlers:
            try:
                await handler(event)
            except Exception:
                logging.getLogger("naive").debug("failed")

    await naive(Event(), [log.handler("slack"), log.handler("ledger", error=OSError())])
    acknowledged = True  # nothing was raised, and the ledger never hears of it again
    assert acknowledged
    assert log.ran == ["slack", "ledger"]


@on_fake_time
async def test_naive_gather_returns_at_the_first_error_while_others_run_unattended() -> None:
    finished: list[str] = []

    async def slow(event: Event) -> None:
        await asyncio.sleep(1)
        finished.append("slow")

    with pytest.raises(OSError, match="x"):
        await asyncio.gather(slow(Event()), Log().handler("fails", error=OSError("x"))(Event()))
    assert finished == []
    await asyncio.sleep(2)
    assert finished == ["slow"]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
async def test_naive_gather_with_return_exceptions_lets_a_plain_function_escape() -> None:
    log = Log()
    handlers = [log.handler("first"), log.blocking("plain", ValueError("x")), log.handler("third")]
    with pytest.raises(ValueError, match="x"):
        await asyncio.gather(*[handler(Event()) for handler in handlers], return_exceptions=True)
    assert log.ran == ["plain"]  # the two coroutines were made, and never awaited


@on_fake_time
async def test_naive_task_group_cancels_the_healthy_ones() -> None:
    finished: list[str] = []

    async def healthy() -> None:
        await asyncio.sleep(1)
        finished.append("healthy")

    async def broken() -> None:
        raise OSError

    async def naive() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(healthy())
            group.create_task(broken())

    with pytest.raises(ExceptionGroup):
        await naive()
    await asyncio.sleep(2)
    assert finished == []


async def test_naive_retry_of_the_whole_set_sends_two_messages() -> None:
    log = Log()
    errors: list[BaseException | None] = [ConnectionError(), None]

    async def naive(event: Event) -> None:
        await log.handler("slack")(event)
        await log.handler("ledger", error=errors.pop(0))(event)

    with pytest.raises(ConnectionError):
        await naive(Event())
    await naive(Event())
    assert log.ran.count("slack") == 2


async def test_naive_sharing_of_one_dict_breaks_the_second_handler() -> None:
    shared = {"secret": "x"}
    shared.pop("secret")
    with pytest.raises(KeyError):
        shared.pop("secret")


@on_fake_time
async def test_naive_waiting_without_a_limit_holds_the_delivery_as_long_as_the_slowest() -> None:
    log = Log()
    await asyncio.gather(*(log.handler(n, seconds=s)(Event()) for n, s in (("quick", 0.1), ("stuck", 3_600))))
    assert asyncio.get_running_loop().time() == 3_600


def test_what_is_handed_over_cannot_be_changed() -> None:
    records: tuple[Any, ...] = (Report, _Registered)
    for record in records:
        assert record.__dataclass_params__.frozen
        assert "__slots__" in vars(record)


def test_the_defaults_are_those_that_the_docstrings_promise() -> None:
    parameters = inspect.signature(Fanout.__init__).parameters
    assert [parameters[name].default for name in ("timeout", "max_parallel", "patience")] == [10, 20, 1]
    assert [inspect.signature(Fanout.register).parameters[n].default for n in ("types", "required")] == [("*",), True]
