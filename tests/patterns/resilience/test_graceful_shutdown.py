"""Proves docs/patterns/resilience/graceful-shutdown.md: the steps of the end, on a clock of their own."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest

from graceful_shutdown import Lifecycle, Report
from harness import fake_loop


def now() -> float:
    return asyncio.get_running_loop().time()


def lifecycle_of(drain_delay: float = 5.0, grace: float = 20.0) -> Lifecycle:
    return Lifecycle(drain_delay, grace, clock=asyncio.get_running_loop().time)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[int]]:
    """Stand in for the server's signal handlers: note their calls, and restore the real ones."""
    calls: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: calls.append(number))
    yield calls
    for number, handler in before.items():
        signal.signal(number, handler)


# --- signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_at_once_and_reaches_the_server_after_the_delay(number: int, handlers: list[int]) -> None:
    async def main() -> None:
        lifecycle = lifecycle_of()
        assert lifecycle.ready()
        lifecycle.install_signals()
        signal.raise_signal(number)
        assert (lifecycle.draining, lifecycle.ready()) == (True, False)
        closing = asyncio.create_task(lifecycle.wait_closing())
        await asyncio.sleep(4.999)
        assert (handlers, closing.done()) == ([], False)
        await asyncio.sleep(0.002)
        assert (handlers, closing.done()) == ([number], True)

    fake_loop.run(main())


@fake_loop.on_fake_time
async def test_a_stop_without_a_signal_makes_it_not_ready_and_ends_streams_and_consumers() -> None:
    lifecycle = lifecycle_of(grace=0)
    lifecycle.track(asyncio.sleep(3600), "endless")
    report = await lifecycle.stop("error")
    assert (lifecycle.ready(), report.cancelled, now()) == (False, ("endless",), 0.0)
    await asyncio.wait_for(lifecycle.wait_closing(), 1)
    with pytest.raises(AttributeError):
        report.reason = "other"  # type: ignore[misc]


@fake_loop.on_fake_time
async def test_only_the_signals_given_are_handled_and_one_without_a_handler_is_no_error() -> None:
    lifecycle = lifecycle_of(drain_delay=0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    before = signal.getsignal(signal.SIGINT)
    lifecycle.install_signals(signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is before
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(lifecycle.wait_closing(), 1)


@fake_loop.on_fake_time
async def test_the_second_signal_is_left_to_the_system() -> None:
    lifecycle = lifecycle_of()
    lifecycle.install_signals(signal.SIGINT)
    raised: list[tuple[int, Any]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "raise_signal", lambda number: raised.append((number, signal.getsignal(number))))
        handler: Any = signal.getsignal(signal.SIGINT)
        handler(signal.SIGINT, None)
        assert raised == []
        handler(signal.SIGINT, None)
    assert raised == [(signal.SIGINT, signal.SIG_DFL)]


@fake_loop.on_fake_time
async def test_after_the_stop_the_signals_have_their_former_handlers() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    lifecycle = lifecycle_of()
    lifecycle.install_signals()
    assert signal.getsignal(signal.SIGINT) is not before[1]
    await lifecycle.stop("test")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


# --- tasks


@fake_loop.on_fake_time
async def test_tracked_tasks_have_the_grace_time_and_what_is_cancelled_is_reported_by_name() -> None:
    lifecycle, finished = lifecycle_of(grace=2.0), list[str]()

    async def work(name: str, seconds: float) -> None:
        await asyncio.sleep(seconds)
        finished.append(name)

    for name, seconds in (("quick", 0.5), ("just in time", 1.999), ("slow", 2.001), ("endless", 3600)):
        lifecycle.track(work(name, seconds), name)
    report = await lifecycle.stop("deploy")
    assert finished == ["quick", "just in time"]
    assert report == Report("deploy", ("endless", "slow"), ())
    assert now() == pytest.approx(2.0)


@fake_loop.on_fake_time
async def test_the_grace_time_begins_when_the_drain_is_over_and_not_when_stop_is_called() -> None:
    lifecycle = lifecycle_of(drain_delay=5.0, grace=20.0)
    lifecycle.install_signals()
    lifecycle.track(asyncio.sleep(3600), "endless")
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(20)  # the server took fifteen of the twenty seconds
    report = await lifecycle.stop("SIGTERM")
    assert report.cancelled == ("endless",)
    assert now() == pytest.approx(25.0, abs=0.01)


@fake_loop.on_fake_time
async def test_a_task_that_swallows_its_cancellation_does_not_keep_the_process_from_ending() -> None:
    lifecycle = lifecycle_of(grace=1.0)

    async def stubborn() -> None:
        while now() < 100:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if now() > 50:
                    raise

    closed: list[float] = []

    async def close() -> None:
        closed.append(now())

    lifecycle.on_stop(close)
    task = lifecycle.track(stubborn(), "stubborn")
    await asyncio.sleep(0)
    report = await lifecycle.stop("deploy")
    assert report.cancelled == ("stubborn",)
    assert closed == [pytest.approx(1.5)]
    await asyncio.sleep(60)
    task.cancel()


@fake_loop.on_fake_time
async def test_a_tracked_task_is_kept_until_it_ends_and_its_failure_is_logged() -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logging.getLogger("graceful_shutdown").addHandler(handler)
    try:
        lifecycle = lifecycle_of()

        async def fail() -> None:
            raise ValueError("bug")

        lifecycle.track(fail(), "mailer")
        done = lifecycle.track(asyncio.sleep(0, "sent"), "sender")
        assert done.get_name() == "sender"
        assert len(lifecycle._tasks) == 2
        assert await done == "sent"
        await asyncio.sleep(0.001)
        assert not lifecycle._tasks
    finally:
        logging.getLogger("graceful_shutdown").removeHandler(handler)
    assert [record.getMessage() for record in records] == ["background task mailer failed"]
    assert records[0].exc_info
    assert isinstance(records[0].exc_info[1], ValueError)


@fake_loop.on_fake_time
async def test_nothing_is_started_once_the_process_is_stopping() -> None:
    lifecycle = lifecycle_of(grace=1.0)
    lifecycle.track(asyncio.sleep(0.5), "running")
    stopping = asyncio.create_task(lifecycle.stop("deploy"))
    await asyncio.sleep(0.1)
    with pytest.raises(RuntimeError, match="the process is stopping: 'late' was not started"):
        lifecycle.track(asyncio.sleep(0), "late")
    assert (await stopping).cancelled == ()


# --- callbacks


@fake_loop.on_fake_time
async def test_callbacks_run_in_reverse_order_each_once_and_past_one_that_fails() -> None:
    lifecycle, order = lifecycle_of(), list[str]()

    def named(name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def callback() -> None:
            order.append(name)
            if name == "broker":
                raise OSError("stuck")

        return callback

    for name in ("pool", "broker", "cache"):
        lifecycle.on_stop(named(name))
    reports = await asyncio.gather(lifecycle.stop("SIGTERM"), lifecycle.stop("again"))
    assert order == ["cache", "broker", "pool"]
    assert reports[0] is reports[1]
    assert [repr(error) for error in reports[0].errors] == ["OSError('stuck')"]
    assert (await lifecycle.stop("later")).reason == "SIGTERM"


@fake_loop.on_fake_time
async def test_a_hung_callback_leaves_the_others_their_turn_and_all_end_in_time() -> None:
    lifecycle, order = lifecycle_of(grace=2.0), list[str]()

    async def first() -> None:
        order.append("first")

    async def hang() -> None:
        await asyncio.sleep(3600)

    lifecycle.on_stop(first)
    lifecycle.on_stop(hang)
    lifecycle.track(asyncio.sleep(3600), "endless")
    report = await lifecycle.stop("deploy")
    assert order == ["first"]
    assert isinstance(report.errors[0], TimeoutError)
    assert now() <= 2.0 + 1.0 + 0.01


@fake_loop.on_fake_time
async def test_a_caller_of_stop_who_is_cancelled_does_not_interrupt_it() -> None:
    lifecycle, order = lifecycle_of(), list[str]()

    async def close() -> None:
        await asyncio.sleep(0.5)
        order.append("closed")

    lifecycle.on_stop(close)
    impatient = asyncio.create_task(lifecycle.stop("deploy"))
    await asyncio.sleep(0.1)
    impatient.cancel()
    await lifecycle.stop("deploy")
    assert order == ["closed"]


# --- streams and consumers


async def numbers(pause: float) -> AsyncIterator[int]:
    for number in range(1000):
        await asyncio.sleep(pause)
        yield number


@fake_loop.on_fake_time
async def test_a_consumer_ends_with_the_signal_and_a_stream_with_the_drain() -> None:
    lifecycle, ends = lifecycle_of(drain_delay=5.0), dict[str, float]()
    lifecycle.install_signals()

    async def read(name: str, source: AsyncIterator[int]) -> None:
        async for _ in source:
            pass
        ends[name] = now()

    tasks = [
        asyncio.create_task(read("consumer", lifecycle.until_draining(numbers(0.3)))),
        asyncio.create_task(read("stream", lifecycle.until_closing(numbers(0.3)))),
    ]
    await asyncio.sleep(1.0)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait(tasks)
    assert ends == {"consumer": pytest.approx(1.0, abs=0.01), "stream": pytest.approx(6.0, abs=0.01)}


@fake_loop.on_fake_time
async def test_items_come_as_the_source_gives_them_and_its_end_and_its_errors_too() -> None:
    lifecycle = lifecycle_of()

    async def source(error: Exception | None = None) -> AsyncIterator[int]:
        yield 1
        yield 2
        if error:
            raise error

    assert [item async for item in lifecycle.until_draining(source())] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        async for _ in lifecycle.until_closing(source(ValueError("broken"))):
            pass
    await lifecycle.stop("test")
    assert [item async for item in lifecycle.until_draining(source())] == []


@fake_loop.on_fake_time
async def test_an_item_that_arrives_in_spite_of_the_end_is_not_lost() -> None:
    lifecycle, queue = lifecycle_of(), asyncio.Queue[str]()

    class Source:
        def __aiter__(self) -> AsyncIterator[str]:
            return self

        async def __anext__(self) -> str:
            try:
                return await queue.get()
            except asyncio.CancelledError:
                return "taken from the broker just now"

    async def read() -> list[str]:
        return [item async for item in lifecycle.until_draining(Source())]

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    lifecycle._draining.set()
    assert await reading == ["taken from the broker just now"]


@fake_loop.on_fake_time
async def test_a_reader_who_is_cancelled_leaves_no_task_behind() -> None:
    lifecycle = lifecycle_of()

    async def read() -> None:
        async for _ in lifecycle.until_closing(numbers(3600)):
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0.1)
    reading.cancel()
    await asyncio.wait([reading])
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == {asyncio.current_task()}


# --- settings


def test_the_times_come_from_the_environment_and_a_bad_one_is_named() -> None:
    default = Lifecycle.from_env({})
    assert (default.drain_delay, default.grace) == (5.0, 20.0)
    assert (Lifecycle().drain_delay, Lifecycle().grace) == (5.0, 20.0)
    given = Lifecycle.from_env({"DRAIN_DELAY_S": "0", "GRACE_S": "1.5"})
    assert (given.drain_delay, given.grace) == (0.0, 1.5)
    empty = Lifecycle.from_env({"DRAIN_DELAY_S": "", "GRACE_S": ""})
    assert (empty.drain_delay, empty.grace) == (5.0, 20.0)
    for name in ("DRAIN_DELAY_S", "GRACE_S"):
        for text in ("soon", "-1", "nan", "inf", "1e3"):
            with pytest.raises(ValueError, match=f"^{name} must be a number of seconds, 0 or more, got '{text}'$"):
                Lifecycle.from_env({name: text})


@pytest.mark.parametrize("wrong", [-1, math.inf, math.nan, True, "1"])
def test_a_time_out_of_its_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^drain_delay must be a number of seconds, 0 or more, got {wrong!r}$"):
        Lifecycle(wrong, 1)
    with pytest.raises(ValueError, match=rf"^grace must be a number of seconds, 0 or more, got {wrong!r}$"):
        Lifecycle(1, wrong)
