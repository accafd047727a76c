"""Proves docs/patterns/resilience/timeout-bulkhead.md: compartments that contain a slow dependency."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import random
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from call_bulkhead import Bulkhead, BulkheadFull, Stats
from call_deadline import Deadline, DeadlineExceeded, current_deadline
from harness.fake_loop import on_fake_time
from harness.waiting import at_once, auntil, in_thread, until


def now() -> float:
    return asyncio.get_running_loop().time()


@on_fake_time
async def test_ten_run_five_wait_and_the_sixteenth_is_refused_at_once() -> None:
    bulkhead, order = Bulkhead("search", 10, 5, 60.0), list[int]()

    async def call(number: int) -> None:
        async with bulkhead:
            order.append(number)
            await asyncio.sleep(1)

    tasks = [asyncio.create_task(call(number)) for number in range(16)]
    await asyncio.sleep(0.001)
    assert bulkhead.stats() == Stats("search", in_use=10, waiting=5, refused=1)
    assert str(tasks[15].exception()) == "bulkhead 'search' is full"
    await asyncio.wait(tasks)
    assert order == list(range(15))
    assert now() == pytest.approx(2.0)
    assert bulkhead.stats() == Stats("search", in_use=0, waiting=0, refused=1)


@on_fake_time
async def test_who_waits_is_served_in_order_of_arrival_and_no_later_one_is_faster() -> None:
    bulkhead, order = Bulkhead("search", 1, 10, 60.0), list[str]()

    async def call(name: str) -> None:
        async with bulkhead:
            order.append(name)
            await asyncio.sleep(0.01)

    first = asyncio.create_task(call("a"))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(call(name)) for name in "bc"]
    await first
    late = asyncio.create_task(call("late"))  # in the instant in which a slot is handed over
    await asyncio.wait([*waiting, late])
    assert order == ["a", "b", "c", "late"]


@on_fake_time
async def test_who_waits_longer_than_max_wait_is_refused() -> None:
    bulkhead = Bulkhead("search", 1, 5, 0.5)
    async with bulkhead:
        begun = now()
        with pytest.raises(BulkheadFull) as refusal:
            await asyncio.create_task(bulkhead.acall(asyncio.sleep, 0), context=_fresh())
        assert now() - begun == pytest.approx(0.5)
        assert refusal.value.name == "search"
    assert bulkhead.stats() == Stats("search", 0, 0, 1)


def _fresh() -> contextvars.Context:
    return contextvars.Context()


@on_fake_time
async def test_a_cancelled_waiter_leaves_the_queue_and_a_cancelled_holder_frees_its_slot() -> None:
    bulkhead = Bulkhead("search", 1, 5, 60.0)
    tasks = [asyncio.create_task(bulkhead.acall(asyncio.sleep, 1)) for _ in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    assert bulkhead.stats().waiting == 1
    tasks[0].cancel()
    await asyncio.sleep(0.5)
    assert bulkhead.stats() == Stats("search", 1, 0, 0)
    await tasks[2]
    assert now() == pytest.approx(1.0)


@on_fake_time
async def test_a_waiter_who_is_cancelled_as_its_slot_arrives_hands_it_on() -> None:
    bulkhead = Bulkhead("search", 1, 5, 60.0)
    holder = asyncio.Event()
    tasks = [asyncio.create_task(bulkhead.acall(wait)) for wait in (holder.wait, _nothing, _nothing)]
    await asyncio.sleep(0)
    holder.set()
    await tasks[0]  # the slot is the second's by now
    tasks[1].cancel()
    await tasks[2]
    assert tasks[1].cancelled()
    assert bulkhead.stats() == Stats("search", 0, 0, 0)


async def _nothing() -> None:
    return


@on_fake_time
async def test_after_ten_thousand_random_cancels_all_slots_are_free_and_usable() -> None:
    bulkhead, rng, most = Bulkhead("search", 10, 50, 0.02), random.Random(3), 0

    async def call() -> None:
        nonlocal most
        with contextlib.suppress(BulkheadFull):
            async with bulkhead:
                most = max(most, bulkhead.stats().in_use)
                await asyncio.sleep(rng.random() / 50)

    tasks = list[asyncio.Task[None]]()
    for _ in range(10_000):
        tasks.append(asyncio.create_task(call()))
        if rng.random() < 0.5:
            await asyncio.sleep(rng.random() / 500)
        rng.choice(tasks[-80:]).cancel()
    await asyncio.wait(tasks)
    assert most == 10
    assert (bulkhead.stats().in_use, bulkhead.stats().waiting) == (0, 0)
    begun = now()
    await asyncio.gather(*(bulkhead.acall(asyncio.sleep, 1) for _ in range(10)))
    assert now() - begun == pytest.approx(1)


@on_fake_time
async def test_two_bulkheads_are_independent() -> None:
    full, free = Bulkhead("full", 1), Bulkhead("free", 1)
    hanging = asyncio.create_task(full.acall(asyncio.sleep, 3600))
    await asyncio.sleep(0)
    with pytest.raises(BulkheadFull, match="'full'"):
        await full.acall(_nothing)
    begun = now()
    await free.acall(_nothing)
    async with free:
        with pytest.raises(BulkheadFull, match="'full'"):
            await full.acall(_nothing)
    assert now() == begun
    hanging.cancel()


@on_fake_time
async def test_a_further_entry_within_a_slot_is_refused_rather_than_waiting_for_itself() -> None:
    bulkhead = Bulkhead("search", 1, 5, 3600.0)
    async with bulkhead:
        with pytest.raises(BulkheadFull):
            await bulkhead.acall(_nothing)
        with pytest.raises(BulkheadFull):
            await asyncio.create_task(bulkhead.acall(_nothing))
        assert now() == 0
    await bulkhead.acall(_nothing)

    roomy = Bulkhead("roomy", 2, 5, 3600.0)
    async with roomy, roomy:  # there is a slot for it
        assert roomy.stats().in_use == 2
    waiting = asyncio.create_task(roomy.acall(asyncio.sleep, 1))
    await asyncio.sleep(0)
    async with roomy:
        third = asyncio.create_task(roomy.acall(_nothing))
        with pytest.raises(BulkheadFull):
            await third
    await waiting
    assert roomy.stats().in_use == 0


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, True, "1"])
def test_a_setting_out_of_its_range_is_refused(wrong: Any) -> None:
    for least in (0, wrong):
        with pytest.raises(ValueError, match=rf"^max_concurrent must be a whole number over 0, got {least!r}$"):
            Bulkhead("search", least)
    with pytest.raises(ValueError, match=rf"^max_waiting must be a whole number, 0 or more, got {wrong!r}$"):
        Bulkhead("search", 1, wrong, 1.0)
    with pytest.raises(ValueError, match=rf"^max_wait must be a number of seconds, 0 or more, got {wrong!r}$"):
        Bulkhead("search", 1, 1, wrong)


@pytest.mark.parametrize("wrong", [(1, 5, 0.0), (1, 0, 5.0)])
def test_a_queue_without_a_time_limit_and_a_time_limit_without_a_queue_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="go together: set both or none"):
        Bulkhead("search", *wrong)


@on_fake_time
async def test_a_slot_that_became_free_between_two_looks_is_taken_and_not_waited_for() -> None:
    bulkhead = Bulkhead("search", 1, 5, 60.0)
    bulkhead._take_slot = lambda: False  # type: ignore[method-assign]  # it was full a moment ago
    async with bulkhead:
        assert bulkhead.stats() == Stats("search", 1, 0, 0)
    bulkhead.call(print)
    assert bulkhead.stats() == Stats("search", 0, 0, 0)


@on_fake_time
async def test_a_slot_is_freed_even_when_it_is_left_in_another_context() -> None:
    bulkhead = Bulkhead("search", 1)

    async def rows() -> AsyncIterator[int]:
        async with bulkhead:
            yield 1

    generator = rows()
    await asyncio.create_task(anext(generator))  # type: ignore[arg-type]
    assert bulkhead.stats().in_use == 1
    await asyncio.create_task(generator.aclose())  # type: ignore[attr-defined]
    assert bulkhead.stats().in_use == 0


@on_fake_time
async def test_a_waiter_whose_slot_arrives_in_the_instant_of_its_timeout_takes_it() -> None:
    bulkhead = Bulkhead("search", 1, 5, 1.0)

    async def hold() -> None:
        async with bulkhead:
            await asyncio.sleep(1.0)

    holder, waiter = asyncio.create_task(hold()), asyncio.create_task(bulkhead.acall(_nothing))
    await asyncio.wait([holder, waiter])
    assert waiter.exception() is None or isinstance(waiter.exception(), BulkheadFull)
    assert bulkhead.stats().in_use == 0


def test_a_slot_that_is_granted_as_the_time_runs_out_is_used() -> None:
    bulkhead = Bulkhead("search", 1, 5, 1.0)
    bulkhead._acquire_slot()
    waiter = bulkhead._enter_queue(lambda: None)
    assert waiter is not None
    bulkhead._release_slot()  # handed over, while its wait has just ended without it
    bulkhead._give_up_waiting(waiter)
    assert bulkhead.stats() == Stats("search", 1, 0, 0)


# --- threads


def test_threads_share_the_slots_and_who_waits_is_served_in_order() -> None:
    bulkhead, order, go_on = Bulkhead("search", 1, 2, 10.0), list[int](), threading.Event()

    def call(number: int) -> None:
        with bulkhead:
            go_on.wait(10)
            order.append(number)

    calls = []
    for number in range(3):
        calls.append(in_thread(call, number))
        until(lambda count=number: bulkhead.stats().in_use + bulkhead.stats().waiting > count)
    with pytest.raises(BulkheadFull):
        bulkhead.call(print)
    go_on.set()
    for each in calls:
        each.result(20)
    assert order == [0, 1, 2]
    assert bulkhead.stats() == Stats("search", 0, 0, 1)


def test_a_thread_that_waits_longer_than_max_wait_is_refused() -> None:
    bulkhead, held, done = Bulkhead("search", 1, 1, 0.02), threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        done.wait(10)

    holder = in_thread(bulkhead.call, hold)
    held.wait(10)
    begun = time.monotonic()
    with pytest.raises(BulkheadFull):
        bulkhead.call(print)
    assert time.monotonic() - begun >= 0.02
    assert bulkhead.stats() == Stats("search", 1, 0, 1)
    done.set()
    holder.result(20)
    assert bulkhead.call(lambda a, b: a + b, 1, b=2) == 3


def test_sixteen_threads_never_hold_more_than_four_slots() -> None:
    bulkhead, running, most, lock = Bulkhead("search", 4, 16, 20.0), 0, 0, threading.Lock()
    four_inside = threading.Barrier(4)  # and no fewer, or it would never open

    def work(turn: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if turn == 0:  # every thread has one of these; at the end four calls may all be those of one thread
            four_inside.wait(20)
        with lock:
            running -= 1

    assert at_once(16, lambda: [bulkhead.call(work, turn) for turn in range(25)]) == [[None] * 25] * 16
    assert most == 4
    assert bulkhead.stats() == Stats("search", 0, 0, 0)


async def test_a_task_and_a_thread_wait_in_the_same_queue() -> None:
    bulkhead, order = Bulkhead("search", 1, 5, 10.0), list[str]()

    def in_a_thread() -> None:
        with bulkhead:
            order.append("thread")

    async def in_task() -> None:
        async with bulkhead:
            order.append("task")

    async with bulkhead:
        other = in_thread(in_a_thread)
        await auntil(lambda: bulkhead.stats().waiting == 1)
        task = asyncio.create_task(in_task(), context=_fresh())
        await asyncio.sleep(0)
    await task
    other.result(20)
    assert order == ["thread", "task"]


async def test_a_slot_that_belonged_to_a_loop_that_ended_goes_to_the_next() -> None:
    bulkhead = Bulkhead("search", 1, 5, 10.0)

    def abandoned_waiter() -> None:
        loop = asyncio.new_event_loop()
        task = loop.create_task(bulkhead.acall(_nothing))
        loop.run_until_complete(asyncio.sleep(0))
        left.append((loop, task))

    left: list[Any] = []
    async with bulkhead:
        in_thread(abandoned_waiter).result(20)
        next_one = asyncio.create_task(bulkhead.acall(_nothing), context=_fresh())
        await asyncio.sleep(0)
        assert bulkhead.stats().waiting == 2
        loop, task = left[0]
        task._log_destroy_pending = False  # it is left pending on purpose
        loop.close()
    await asyncio.wait_for(next_one, 10)
    assert bulkhead.stats() == Stats("search", 0, 0, 0)
    task.get_coro().close()


async def test_a_thread_keeps_its_slot_until_it_ends_although_its_caller_has_left() -> None:
    bulkhead, go_on = Bulkhead("legacy", 1), threading.Event()
    with pytest.raises(DeadlineExceeded):
        async with Deadline.after(0.05).scope():
            await bulkhead.run_in_thread(go_on.wait, 10)
    assert bulkhead.stats().in_use == 1  # the caller has left, the thread has not
    with pytest.raises(BulkheadFull):
        await bulkhead.run_in_thread(print)
    go_on.set()
    await auntil(lambda: not bulkhead.stats().in_use)
    assert await bulkhead.run_in_thread(lambda a, b: a + b, 1, b=2) == 3


async def test_a_naive_timeout_frees_the_slot_while_the_thread_runs_on() -> None:
    running, go_on = 0, threading.Event()

    def blocking() -> None:
        nonlocal running
        running += 1
        go_on.wait(10)

    naive = asyncio.Semaphore(1)
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            async with naive:
                await asyncio.wait_for(asyncio.to_thread(blocking), 0.02)
    assert running == 3  # with a limit of one

    running, bulkhead = 0, Bulkhead("legacy", 1)
    for _ in range(3):
        with contextlib.suppress(TimeoutError, BulkheadFull):
            await asyncio.wait_for(bulkhead.run_in_thread(blocking), 0.02)
    assert (running, bulkhead.stats().refused) == (1, 2)
    go_on.set()


async def test_what_a_thread_raises_comes_to_the_caller_and_its_context_goes_to_the_thread() -> None:
    bulkhead = Bulkhead("legacy", 1)

    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await bulkhead.run_in_thread(fail)
    async with Deadline.after(5, name="request").scope() as deadline:
        assert await bulkhead.run_in_thread(current_deadline) is deadline
    with pytest.raises(BulkheadFull):  # it would wait for itself
        await bulkhead.run_in_thread(bulkhead.call, print)
    assert bulkhead.stats().in_use == 0


async def test_a_thread_that_cannot_be_started_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bulkhead = Bulkhead("legacy", 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await bulkhead.run_in_thread(print)
    assert bulkhead.stats().in_use == 0


def test_a_thread_that_outlives_its_loop_frees_its_slot_all_the_same() -> None:
    bulkhead, go_on = Bulkhead("legacy", 1), threading.Event()

    async def leave() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(bulkhead.run_in_thread(go_on.wait, 10), 0.01)

    asyncio.run(leave())
    assert bulkhead.stats().in_use == 1
    go_on.set()
    for _ in range(1000):
        if not bulkhead.stats().in_use:
            break
        time.sleep(0.005)
    assert bulkhead.stats().in_use == 0


# --- gotchas


@on_fake_time
async def test_a_semaphore_without_a_queue_limit_lets_everybody_wait_and_time_out() -> None:
    async def outcome(enter: Any) -> str:
        try:
            async with asyncio.timeout(1), enter:
                await asyncio.sleep(0.5)
        except TimeoutError:
            return "timed out"
        except BulkheadFull:
            return "refused"
        return "done"

    async def after_an_instant(enter: Any) -> tuple[int, list[str]]:
        tasks = [asyncio.create_task(outcome(enter)) for _ in range(2000)]
        await asyncio.sleep(0.001)
        left = sum(not task.done() for task in tasks)
        return left, [task.result() for task in (await asyncio.wait(tasks))[0]]

    left, outcomes = await after_an_instant(asyncio.Semaphore(10))
    assert left == 2000  # each with its memory, its client and its hope
    assert outcomes.count("timed out") > 1_900
    left, outcomes = await after_an_instant(Bulkhead("search", 10, 10, 1.0))
    assert left == 20
    assert outcomes.count("refused") == 1_980


@on_fake_time
async def test_a_release_without_an_acquire_makes_a_semaphore_grow_and_here_there_is_none() -> None:
    semaphore = asyncio.Semaphore(1)

    async def naive() -> None:
        try:
            async with asyncio.timeout(0.01):
                await semaphore.acquire()
                await asyncio.sleep(10)
        finally:
            semaphore.release()  # also when it was never acquired

    tasks = [asyncio.create_task(naive()) for _ in range(5)]
    await asyncio.wait(tasks)
    assert all(isinstance(task.exception(), TimeoutError) for task in tasks)
    assert semaphore._value == 5

    bulkhead = Bulkhead("search", 1, 5, 0.01)
    await asyncio.wait([asyncio.create_task(bulkhead.acall(asyncio.sleep, 10)) for _ in range(5)], timeout=1)
    assert bulkhead.stats().in_use == 1
    assert not hasattr(bulkhead, "release")
