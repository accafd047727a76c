"""Proves docs/patterns/caching/stale-while-revalidate.md: old values at once, one refresh behind, errors survived."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import math
import threading
import time
import weakref
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from harness.clock import Clock
from harness.depth import examples
from harness.origin import Origin
from harness.waiting import at_once, auntil, in_thread, until
from patterns.caching import stale_while_revalidate_kit as kit
from patterns.caching.stale_while_revalidate_kit import (
    ERROR_FOR,
    FRESH_FOR,
    STALE_FOR,
    Maker,
    answer_when_all_wait,
    claims_of,
    timeline,
)
from swr_async import AsyncSWRCache
from swr_core import Entry, State, log_error
from swr_stores_async import AsyncMemoryStore

# Fixtures.
maker = kit.maker

stores = pytest.mark.parametrize("kind", ["memory", "redis"])


# --- Ages -----------------------------------------------------------------------------------------


def test_each_age_has_its_state_and_the_limits_belong_to_what_follows(maker: Maker) -> None:
    cache, entry = maker.cache().inner, Entry("value", 1_000.0)
    ages = {0: "FRESH", 59.999: "FRESH", 60: "STALE", 89.999: "STALE", 90: "DEAD", 1e9: "DEAD", -0.001: "STALE"}
    assert {age: cache.state(entry, 1_000.0 + age).name for age in ages} == ages
    assert cache.state(None, 1_000.0) is State.DEAD
    none_stale = maker.cache(stale_for=0).inner
    assert [none_stale.state(entry, now) for now in (1_059.999, 1_060.0)] == [State.FRESH, State.DEAD]


@stores
def test_a_fresh_value_is_served_without_a_load(maker: Maker, valkey_url: str, kind: str) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url)), Origin()
    assert cache.get("k", origin) == 1
    maker.clock.now += 59.999
    served = cache.fetch("k", origin)
    assert (served.value, served.state.name, served.error) == (1, "FRESH", None)
    assert served.age == pytest.approx(59.999)
    assert cache.idle()
    assert origin.loads == 1


@stores
def test_a_stale_value_is_served_at_once_and_refreshed_once_behind(maker: Maker, valkey_url: str, kind: str) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url)), Origin()
    assert cache.get("k", origin) == 1
    maker.clock.now += 60
    origin.go.clear()
    claims = claims_of(cache)
    for _ in range(20):
        served = cache.fetch("k", origin)  # would hang, if it waited for the load
        assert (served.value, served.state.name, served.age) == (1, "STALE", 60)
    until(lambda: origin.loads == 2)
    origin.go.set()
    until(cache.idle)
    assert claims == ["k"]  # the other reads have not even asked whether they may
    served = cache.fetch("k", origin)
    assert (served.value, served.state.name, served.age) == (2, "FRESH", 0)
    assert origin.loads == 2


@stores
def test_a_dead_value_makes_its_callers_wait_for_one_load_that_they_share(
    maker: Maker, valkey_url: str, kind: str
) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url)), Origin()
    cache.get("k", origin)
    maker.clock.now += 90
    origin.go.clear()
    threading.Timer(0.05, origin.go.set).start()
    assert at_once(30, lambda: cache.get("k", origin)) == [2] * 30
    assert origin.loads == 2


def test_a_thousand_stale_reads_are_served_at_once_and_load_once(maker: Maker) -> None:
    cache, origin = maker.cache(), Origin()
    cache.get("k", origin)
    maker.clock.now += 60
    origin.go.clear()

    async def read_all() -> Any:
        load = maker.color.function(origin)
        return await asyncio.gather(*(cache.inner.get("k", load) for _ in range(1_000)))

    def read_all_sync() -> Any:
        return [cache.get("k", origin) for _ in range(1_000)]

    assert maker.color.call(maker.color.pick(read_all, read_all_sync)) == [1] * 1_000  # the load goes on meanwhile
    until(lambda: origin.loads == 2)
    origin.go.set()
    until(cache.idle)
    assert cache.get("k", origin) == 2
    assert origin.loads == 2


async def test_without_single_flight_a_thousand_stale_reads_load_a_thousand_times() -> None:
    loads, entry, tasks = 0, "old", list[asyncio.Task[None]]()

    async def refresh() -> None:
        nonlocal loads
        loads += 1
        await asyncio.sleep(0.01)

    async def naive() -> str:
        tasks.append(asyncio.create_task(refresh()))  # it is stale, so refresh it
        return entry

    assert await asyncio.gather(*(naive() for _ in range(1_000))) == ["old"] * 1_000
    await asyncio.gather(*tasks)
    assert loads == 1_000


@stores
def test_a_slow_load_makes_nothing_fresh_for_longer(maker: Maker, valkey_url: str, kind: str) -> None:
    cache = maker.cache(maker.store(kind, valkey_url))

    def slow() -> str:
        maker.clock.now += 7  # what it answers is as old as its question
        return "value"

    began = maker.clock.now
    assert cache.fetch("k", slow).age == 7
    assert cache.store.get("k") == Entry("value", began)
    maker.clock.now = began + 59.999
    assert cache.fetch("k", slow).state.name == "FRESH"
    maker.clock.now = began + 60
    assert cache.fetch("k", slow).state.name == "STALE"


@stores
@pytest.mark.parametrize("empty", [None, 0, "", [], False], ids=repr)
def test_an_empty_value_is_a_value(maker: Maker, valkey_url: str, kind: str, empty: object) -> None:
    loads: list[int] = []

    def load() -> object:
        loads.append(1)
        return empty

    cache = maker.cache(maker.store(kind, valkey_url))
    assert [cache.get("k", load), cache.get("k", load)] == [empty] * 2
    maker.clock.now += 60
    assert cache.get("k", load) == empty
    until(cache.idle)
    assert len(loads) == 2


# --- Errors ---------------------------------------------------------------------------------------


@stores
def test_a_failed_refresh_leaves_the_old_value_and_does_not_run_before_retry_after(
    maker: Maker, valkey_url: str, kind: str
) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url), retry_after=5.0), Origin()
    cache.get("k", origin)
    origin.error = ConnectionError("down")
    maker.clock.now += 60
    assert cache.get("k", origin) == 1
    until(cache.idle)
    assert maker.errors == [("k", "down")]
    for later in (0.0, 4.999):
        maker.clock.now += later
        assert cache.get("k", origin) == 1
        assert cache.idle()
    assert origin.loads == 2
    maker.clock.now += 0.002
    if kind == "redis":  # where the pause is kept in real time too
        cache.store.release("k", 0)
    origin.error = None
    assert cache.get("k", origin) == 1
    until(cache.idle)
    assert (cache.get("k", origin), origin.loads, len(maker.errors)) == (3, 3, 1)


def test_deleting_the_entry_on_a_failed_refresh_makes_an_outage_of_a_brown_out() -> None:
    entries, origin = {"k": "old"}, Origin()
    origin.error = ConnectionError("down")

    def naive_refresh() -> None:
        try:
            entries["k"] = str(origin())
        except ConnectionError:
            del entries["k"]  # so that the next one tries again

    assert entries.get("k") == "old"
    naive_refresh()
    assert "k" not in entries  # every caller fails now, though yesterday's answer was at hand


@stores
def test_a_dead_value_is_served_marked_within_error_for_and_then_the_error_is_raised(
    maker: Maker, valkey_url: str, kind: str
) -> None:
    cache = maker.cache(maker.store(kind, valkey_url), error_for=600.0, retry_after=2.0)
    origin = Origin()
    cache.get("k", origin)
    origin.error = ConnectionError("down")
    maker.clock.now += 90
    served = cache.fetch("k", origin)
    assert (served.value, served.state.name, served.age) == (1, "DEAD", 90)
    assert served.error is origin.error
    assert cache.get("k", origin) == 1  # at once, within retry_after
    assert origin.loads == 2
    maker.clock.now += 569.999
    assert cache.fetch("k", origin).error is origin.error
    assert origin.loads == 3
    maker.clock.now += 0.001  # 600 after it was no longer fresh
    for _ in range(2):  # nothing to serve, so it is tried each time
        with pytest.raises(ConnectionError, match="down"):
            cache.get("k", origin)
    assert origin.loads == 5
    assert maker.errors == [("k", "down")] * 4


def test_without_anything_to_serve_all_who_wait_get_the_error_of_one_load(maker: Maker) -> None:
    cache, origin = maker.cache(), Origin()
    origin.error = ConnectionError("down")
    answer_when_all_wait(cache, origin, 10)
    assert at_once(10, lambda: cache.get("k", origin)) == [origin.error] * 10
    assert (origin.loads, maker.errors) == (1, [("k", "down")])


def test_a_load_that_hangs_is_given_up_after_its_timeout(maker: Maker) -> None:
    cache = maker.cache(timeout=0.05, error_for=600.0)
    cache.set("k", 1)
    hanging = threading.Event()
    maker.clock.now += 90
    begin = time.monotonic()
    served = cache.fetch("k", lambda: hanging.wait(20))
    assert time.monotonic() - begin >= 0.05
    assert (served.value, type(served.error)) == (1, TimeoutError)
    assert [key for key, _ in maker.errors] == ["k"]
    assert cache.fetch("k", lambda: hanging.wait(20)).error is served.error  # left alone for a while
    with pytest.raises(TimeoutError):
        cache.get("new", lambda: hanging.wait(20))
    hanging.set()
    until(cache.idle)


def test_failures_are_remembered_for_retry_after_and_not_forever(maker: Maker) -> None:
    cache, origin = maker.cache(retry_after=5.0), Origin()
    origin.error = ConnectionError("down")
    for key, later, remembered in (("a", 0, "a"), ("b", 4.5, "ab"), ("c", 0.5, "bc"), ("d", 60, "d")):
        maker.clock.now += later
        with pytest.raises(ConnectionError):
            cache.get(key, origin)
        until(cache.idle)
        assert sorted(cache.inner._failed._errors) == list(remembered)
    origin.error = None
    cache.get("d", origin)
    assert not cache.inner._failed._errors


def test_what_on_error_raises_is_logged_and_harms_nobody(maker: Maker, caplog: pytest.LogCaptureFixture) -> None:
    def broken(key: str, error: BaseException) -> None:
        raise ZeroDivisionError

    cache, origin = maker.cache(on_error=broken), Origin()
    cache.get("k", origin)
    origin.error = ConnectionError("down")
    maker.clock.now += 60
    assert cache.get("k", origin) == 1
    until(cache.idle)
    assert "on_error raised" in caplog.text
    log_error("some key", ValueError("bad"))
    assert "some key: ValueError('bad')" in caplog.text
    assert inspect.signature(type(cache.inner)).parameters["on_error"].default is log_error


# --- Whose load it is -----------------------------------------------------------------------------


async def test_a_cancelled_caller_takes_neither_the_load_nor_the_others_with_it() -> None:
    unhandled: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
    cache = AsyncSWRCache(AsyncMemoryStore(), fresh_for=60, stale_for=30)
    go = asyncio.Event()

    async def load() -> str:
        await go.wait()
        return "value"

    async def fail() -> str:
        await go.wait()
        raise ConnectionError("nobody is left to hear this")

    callers = [asyncio.create_task(cache.get("k", load)) for _ in range(3)]
    alone = [asyncio.create_task(cache.get(key, loader)) for key, loader in (("kept", load), ("lost", fail))]
    await auntil(lambda: len(cache._flights) == 3)
    await asyncio.sleep(0.01)
    for caller in (callers[0], *alone):
        caller.cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.wait([*callers, *alone])
    assert [caller.cancelled() for caller in callers] == [True, False, False]
    assert [caller.result() for caller in callers[1:]] == ["value"] * 2
    await auntil(lambda: not cache._flights)
    go.clear()
    assert await cache.get("kept", load) == "value"  # though nobody waited for it
    del callers, alone, caller
    gc.collect()
    assert unhandled == []
    await cache.close()


async def test_sharing_a_bare_future_cancels_the_followers_with_the_leader() -> None:
    shared: dict[str, asyncio.Future[str]] = {}

    async def naive() -> str:
        if "k" in shared:
            return await shared["k"]
        shared["k"] = asyncio.get_running_loop().create_future()
        try:
            await asyncio.sleep(10)  # the load, in the request of the leader
        except BaseException:
            shared["k"].cancel()
            raise
        return "value"

    leader, follower = asyncio.create_task(naive()), asyncio.create_task(naive())
    await asyncio.sleep(0)
    leader.cancel()
    await asyncio.wait([leader, follower])
    assert follower.cancelled()


async def test_a_task_without_a_reference_is_lost_and_its_error_is_told_as_never_retrieved() -> None:
    unhandled: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context["message"]))

    async def refresh() -> None:
        raise ConnectionError("down")

    async def wait_for_nobody() -> None:
        await asyncio.get_running_loop().create_future()

    asyncio.create_task(refresh())  # noqa: RUF006 -- naive
    lost = weakref.ref(asyncio.create_task(wait_for_nobody()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    gc.collect()
    assert lost() is None  # collected in the middle of its work
    assert unhandled == ["Task exception was never retrieved", "Task was destroyed but it is pending!"]


TENANT = contextvars.ContextVar("TENANT", default="nobody")


def test_a_load_does_not_see_the_context_variables_of_whoever_came_first(maker: Maker) -> None:
    cache, seen = maker.cache(), list[str]()
    claim = cache.inner._store.claim

    def spy(key: str, seconds: float) -> Any:
        seen.append(TENANT.get())
        return claim(key, seconds)

    cache.inner._store.claim = spy

    async def as_tenant(name: str) -> Any:
        TENANT.set(name)
        return await cache.inner.get("k", maker.color.function(TENANT.get))

    def as_tenant_sync(name: str) -> Any:
        return contextvars.copy_context().run(lambda: (TENANT.set(name), cache.get("k", TENANT.get))[1])

    call: Any = as_tenant if maker.color.is_async else as_tenant_sync
    for age, state in ((0, "DEAD"), (60, "STALE"), (0, "FRESH")):
        maker.clock.now += age
        assert (maker.color.run(call("red")), state) == ("nobody", state)
        until(cache.idle)
    assert cache.store.get("k").stored_at == maker.clock.now
    assert seen == ["nobody"]  # nor does the store, behind


async def test_a_background_task_inherits_the_tenant_of_the_request_that_began_it() -> None:
    seen: list[str] = []

    async def refresh() -> None:
        seen.append(TENANT.get())

    async def request() -> asyncio.Task[None]:
        TENANT.set("red")
        return asyncio.create_task(refresh())  # naive

    await (await asyncio.create_task(request()))
    assert seen == ["red"]


@stores
def test_a_refresh_does_not_overwrite_what_was_set_after_it_began(maker: Maker, valkey_url: str, kind: str) -> None:
    cache, origin = maker.cache(maker.store(kind, valkey_url)), Origin()
    cache.get("k", origin)
    naive = {"k": "old"}
    maker.clock.now += 60
    origin.go.clear()
    assert cache.get("k", origin) == 1
    until(lambda: origin.loads == 2)
    maker.clock.now += 1
    cache.set("k", "newer")
    naive["k"] = "newer"
    origin.go.set()
    until(cache.idle)
    naive["k"] = "read before the change"  # the refresh ends, and stores
    assert cache.store.get("k") == Entry("newer", maker.clock.now)
    assert naive["k"] != "newer"
    cache.set("k", "in the same instant")
    assert cache.store.get("k").value == "in the same instant"


# --- Limits and the end ---------------------------------------------------------------------------


def test_refreshes_beyond_the_limit_are_skipped_and_not_queued(maker: Maker) -> None:
    cache, origin = maker.cache(max_refreshes=2), Origin()
    for key in "abcd":
        cache.get(key, origin)
    maker.clock.now += 60
    origin.go.clear()
    assert [cache.get(key, origin) for key in "aaabbbcdcd"] == [1, 1, 1, 2, 2, 2, 3, 4, 3, 4]
    until(lambda: origin.loads == 6)
    origin.go.set()
    until(cache.idle)
    assert origin.loads == 6
    assert [cache.get(key, origin) for key in "cd"] == [3, 4]  # now it is their turn
    until(cache.idle)
    assert origin.loads == 8
    until(lambda: not getattr(cache.inner, "_threads", None))  # none is held forever
    assert inspect.signature(type(cache.inner)).parameters["max_refreshes"].default == 32


def test_closing_waits_for_a_refresh(maker: Maker) -> None:
    cache, origin = maker.cache(), Origin()
    cache.get("k", origin)
    maker.clock.now += 60
    origin.go.clear()
    cache.get("k", origin)
    until(lambda: origin.loads == 2)
    threading.Timer(0.03, origin.go.set).start()
    cache.close()
    assert cache.idle()
    assert cache.store.get("k").value == 2


def test_after_closing_old_values_are_served_and_nothing_is_begun(maker: Maker) -> None:
    cache, origin = maker.cache(error_for=600.0), Origin()
    cache.get("k", origin)
    cache.close()
    maker.clock.now += 60
    assert (cache.fetch("k", origin).state.name, cache.idle()) == ("STALE", True)
    maker.clock.now += 30
    served = cache.fetch("k", origin)
    assert (served.value, str(served.error)) == (1, "the cache is closed")
    with pytest.raises(RuntimeError, match="the cache is closed"):
        cache.get("new", origin)
    assert origin.loads == 1


async def test_closing_cancels_what_takes_too_long_and_its_callers_hear_of_it() -> None:
    clock = Clock(0.0)
    cache = AsyncSWRCache(AsyncMemoryStore(), fresh_for=60, stale_for=30, clock=clock)
    ended: list[str] = []

    async def load() -> str:
        try:
            await asyncio.sleep(20 if clock.now else 0)
        finally:
            ended.append("ended")
        return "value"

    assert await cache.get("k", load) == "value"
    clock.now = 60.0
    assert await cache.get("k", load) == "value"
    waiting = asyncio.create_task(cache.get("new", load))
    await auntil(lambda: len(cache._flights) == 2)
    await asyncio.sleep(0.01)
    assert len(ended) == 1
    begin = time.monotonic()
    await cache.close(0.05)
    assert time.monotonic() - begin >= 0.05
    assert len(ended) == 3
    assert not cache._flights
    assert not cache._behind
    with pytest.raises(RuntimeError, match="the load of 'new' was cancelled"):
        await waiting


def test_closing_with_no_time_left_closes(maker: Maker) -> None:
    cache = maker.cache()
    cache.close(-0.1)  # what a deadline that has passed has left
    with pytest.raises(RuntimeError, match="the cache is closed"):
        cache.get("k", Origin())


@pytest.mark.parametrize("color", ["sync"], indirect=True)
def test_closing_drops_the_result_of_a_thread_that_outlives_it(maker: Maker) -> None:
    cache, origin = maker.cache(), Origin()
    origin.go.clear()
    reading = in_thread(cache.get, "k", origin)
    until(lambda: origin.loads)
    begin = time.monotonic()
    cache.close(0.05)
    assert time.monotonic() - begin >= 0.05
    assert all(each.daemon for each in cache.inner._threads)
    origin.go.set()
    assert reading.result(20) == 1  # whoever waited for it has it
    assert cache.store.get("k") is None


def test_memory_holds_no_more_than_it_may_and_drops_what_has_ended(maker: Maker) -> None:
    store = maker.memory(max_items=3)
    cache, naive = maker.cache(store, error_for=100.0), dict[str, int]()
    for number, key in enumerate("abcad"):
        cache.set(key, number)
        naive[key] = number
        maker.clock.now += 1
    assert [(key, entry.value) for key, (entry, _) in store._table._entries.items()] == [("c", 2), ("a", 3), ("d", 4)]
    maker.clock.now += 156  # "c" was set 158 seconds ago, and ends at 160
    cache.set("a", 5)
    assert list(store._table._entries) == ["c", "d", "a"]
    maker.clock.now += 3
    cache.set("a", 6)
    assert list(store._table._entries) == ["a"]
    assert sorted(naive) == ["a", "b", "c", "d"]  # without an end they stay forever
    wrong: Any
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"max_items must be a whole number of at least 1, got {wrong}"):
            maker.memory(max_items=wrong)
    assert inspect.signature(type(store)).parameters["max_items"].default == 10_000


def test_settings_that_cannot_work_are_refused(maker: Maker) -> None:
    cache = maker.cache()
    for name in ("fresh_for", "timeout"):
        for wrong in (0, -1.0, math.nan, math.inf, True):
            with pytest.raises(ValueError, match=f"^{name} must be a number of seconds over 0, got {wrong!r}$"):
                maker.cache(**{name: wrong})
    for name in ("stale_for", "error_for", "retry_after"):
        for wrong in (-0.001, math.nan, math.inf, False):
            with pytest.raises(ValueError, match=f"^{name} must be a number of seconds from 0, got {wrong!r}$"):
                maker.cache(**{name: wrong})
        maker.cache(**{name: 0})
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"^max_refreshes must be a whole number of at least 1, got {wrong!r}$"):
            maker.cache(max_refreshes=wrong)
    with pytest.raises(ValueError, match=r"^timeout must be a number of seconds from 0, got nan$"):
        cache.close(math.nan)
    defaults = {name: p.default for name, p in inspect.signature(type(cache.inner)).parameters.items()}
    assert [defaults[name] for name in ("error_for", "retry_after", "timeout")] == [0.0, 1.0, 10.0]
    assert defaults["clock"] is time.time


# --- Anything, in any order -----------------------------------------------------------------------


class Model(RuleBasedStateMachine):
    """One key, an origin that works or fails, time in both directions; what is served is predicted."""

    maker: Maker
    reads = 0

    def __init__(self) -> None:
        super().__init__()
        self.origin, self.clock = Origin(), self.maker.clock
        self.cache = self.maker.cache(error_for=100.0, retry_after=5.0)
        self.entry: tuple[Any, float] | None = None
        self.failed = float("-inf")

    def load(self) -> bool:
        """Predict a load, now."""
        if self.origin.error:
            self.failed = self.clock.now
        else:
            self.entry, self.failed = (self.origin.loads + 1, self.clock.now), float("-inf")
        return not self.origin.error

    @rule()
    def read(self) -> None:
        type(self).reads += 1
        value, began = self.entry or (None, float("-inf"))
        age = self.clock.now - began
        paused = 0 <= self.clock.now - self.failed < 5
        loads = self.origin.loads
        if age < 90:
            if not 0 <= age < 60 and not paused:
                self.load()
        elif not (paused and age < 160):
            value = self.entry[0] if self.load() and self.entry else value if age < 160 else "error"
        try:
            assert self.cache.get("k", self.origin) == value
        except ConnectionError:
            assert value == "error"
        until(self.cache.idle)
        assert self.origin.loads - loads <= 1
        stored = self.cache.store.get("k")
        assert (stored and (stored.value, stored.stored_at)) == self.entry

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0, 60.0, 90.0, -3_600.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def change(self) -> None:
        self.cache.set("k", "set")
        if self.entry is None or not self.clock.now < self.entry[1] <= self.clock.now:
            self.entry = ("set", self.clock.now)

    @precondition(lambda self: not self.origin.error)
    @rule()
    def break_down(self) -> None:
        self.origin.error = ConnectionError("down")

    @precondition(lambda self: self.origin.error)
    @rule()
    def recover(self) -> None:
        self.origin.error = None

    def teardown(self) -> None:
        self.maker.color.finish()


def test_whatever_happens_what_is_served_can_be_predicted(maker: Maker) -> None:
    machine: Any = type("Machine", (Model,), {"maker": maker})
    limits = settings(max_examples=examples(30), stateful_step_count=20, deadline=None, database=None)
    run_state_machine_as_test(machine, settings=limits)
    assert machine.reads > 0


def test_the_plot_shows_what_the_module_does() -> None:
    drawn = timeline()
    assert drawn["the origin works"] == [
        (0, FRESH_FOR, "fresh"),
        (FRESH_FOR, FRESH_FOR + STALE_FOR, "old, at once"),
        (FRESH_FOR + STALE_FOR, 120, "waits"),
    ]
    assert drawn["the origin is down"] == [
        (0, FRESH_FOR, "fresh"),
        (FRESH_FOR, FRESH_FOR + STALE_FOR, "old, at once"),
        (FRESH_FOR + STALE_FOR, FRESH_FOR + ERROR_FOR, "old, marked"),
        (FRESH_FOR + ERROR_FOR, 120, "error"),
    ]
