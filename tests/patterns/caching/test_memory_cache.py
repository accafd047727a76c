"""Proves docs/patterns/caching/memory-cache.md: what is kept, for how long, and who computes it."""

from __future__ import annotations

import functools
import math
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cachetools
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import memory_cache
from harness.clock import Clock
from harness.depth import examples
from harness.waiting import at_once, each_at_once, in_thread
from memory_cache import MISSING, Missing, Stats, TTLCache

SNIPPETS = Path(memory_cache.__file__).parent

# --- what is kept


def test_what_was_set_is_found_until_it_is_popped_or_cleared() -> None:
    cache = TTLCache[str, int](10, 60)
    for number, key in enumerate("abc"):
        cache.set(key, number)
    assert [cache.get(key) for key in "abc"] == [0, 1, 2]
    cache.pop("b")
    cache.pop("unknown")
    assert [cache.get(key) for key in "abc"] == [0, MISSING, 2]
    cache.clear()
    assert [cache.get(key) for key in "abc"] == [MISSING] * 3
    assert len(cache) == 0


def test_a_value_that_is_set_again_is_the_new_one() -> None:
    cache = TTLCache[str, int](2, 60)
    cache.set("a", 1)
    cache.set("a", 2)
    assert (cache.get("a"), len(cache)) == (2, 1)
    assert cache.stats().evicted == 0


@pytest.mark.parametrize("value", [None, 0, "", [], False])
def test_an_empty_value_is_a_value(value: object) -> None:
    cache = TTLCache[str, object](2, 60)
    cache.set("a", value)
    assert cache.get("a", "default") is value
    assert cache.get_or_compute("a", lambda: pytest.fail("computed")) is value


def test_a_missing_key_gives_missing_or_the_default() -> None:
    cache = TTLCache[str, int](2, 60)
    assert isinstance(cache.get("a"), Missing)
    assert cache.get("a", None) is None
    assert cache.get("a", 5) == 5
    assert repr(MISSING) == "MISSING"


def test_an_entry_is_served_strictly_before_its_ttl_has_passed(clock: Clock) -> None:
    cache = TTLCache[str, int](2, 60, clock=clock)
    cache.set("a", 1)
    clock.now = math.nextafter(1060.0, 0)
    assert (cache.get("a"), len(cache)) == (1, 1)
    clock.now = 1060.0
    assert (cache.get("a"), len(cache)) == (MISSING, 0)
    cache.set("a", 1)
    clock.now = 9999.0
    assert cache.get("a") is MISSING
    assert cache.get_or_compute("a", lambda: 2) == 2


def test_reading_does_not_lengthen_a_life_and_setting_does(clock: Clock) -> None:
    cache = TTLCache[str, int](2, 60, clock=clock)
    cache.set("read", 1)
    cache.set("set", 1)
    clock.now += 59
    assert cache.get("read") == 1
    cache.set("set", 2)
    clock.now += 1
    assert [cache.get(key) for key in ("read", "set")] == [MISSING, 2]


def test_the_one_that_was_not_used_for_longest_makes_room() -> None:
    cache = TTLCache[str, int](3, 60)
    for key in "abc":
        cache.set(key, 1)
    cache.get("a")
    cache.set("d", 1)
    assert [cache.get(key, 0) for key in "abcd"] == [1, 0, 1, 1]
    assert (len(cache), cache.stats().evicted) == (3, 1)


def test_an_expired_entry_makes_room_before_a_live_one(clock: Clock) -> None:
    cache = TTLCache[str, int](3, 60, clock=clock)
    cache.set("old", 1)
    clock.now += 30
    cache.set("unused", 1)
    cache.set("c", 1)
    cache.get("old")  # used last, and yet it goes
    clock.now += 30
    cache.set("d", 1)
    assert [cache.get(key, 0) for key in ("old", "unused", "c", "d")] == [0, 1, 1, 1]
    assert cache.stats().evicted == 0


def test_expired_entries_are_dropped_and_not_only_hidden(clock: Clock) -> None:
    cache = TTLCache[int, object](100, 60, clock=clock)
    for key in range(100):
        cache.set(key, key)
    clock.now += 60
    cache.set(1, 1)
    assert len(cache._entries) == len(cache._ends) == 1


def test_the_counts_tell_what_happened(clock: Clock) -> None:
    cache = TTLCache[str, int](1, 60, clock=clock)
    cache.get("a")
    cache.set("a", 1)
    cache.get("a")
    cache.get("a")
    cache.set("b", 1)
    assert cache.stats() == Stats(hits=2, misses=1, evicted=1, size=1)
    clock.now += 60
    assert cache.stats() == Stats(hits=2, misses=1, evicted=1, size=0)


@pytest.mark.parametrize("wrong", [0, -1, math.nan, -math.inf, True])
def test_a_limit_that_is_not_above_zero_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^max_items must be a whole number of at least 1, got {wrong}$"):
        TTLCache(wrong, 1)
    with pytest.raises(ValueError, match=f"^ttl must be a number of seconds over 0, or math.inf, got {wrong}$"):
        TTLCache(1, wrong)


@pytest.mark.parametrize("wrong", [1.5, math.inf])
def test_a_number_of_items_is_a_whole_number(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"^max_items must be a whole number of at least 1, got {wrong}$"):
        TTLCache(wrong, 1)


def test_the_clock_is_monotonic_so_the_wall_clock_has_no_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: pytest.fail("asked the wall clock"))
    cache = TTLCache[str, int](2, math.inf)
    cache.set("a", 1)
    assert cache.get("a") == 1
    assert cache._clock is time.monotonic


class AgainstAModel(RuleBasedStateMachine):
    """The cache beside a list that is plainly right: entries from the least to the most recently used."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = TTLCache[int, int](4, 10, clock=self.clock)
        self.model: list[tuple[int, int, float]] = []

    def live(self) -> list[tuple[int, int, float]]:
        return [entry for entry in self.model if self.clock.now < entry[2]]

    @rule(key=st.integers(0, 6), value=st.integers())
    def set(self, key: int, value: int) -> None:
        self.cache.set(key, value)
        others = [entry for entry in self.live() if entry[0] != key]
        self.model = [*others[-3:], (key, value, self.clock.now + 10)]

    @rule(key=st.integers(0, 6))
    def get(self, key: int) -> None:
        found = next((entry for entry in self.live() if entry[0] == key), None)
        assert self.cache.get(key) == (found[1] if found else MISSING)
        if found:
            self.model.remove(found)
            self.model.append(found)

    @rule(key=st.integers(0, 6))
    def compute(self, key: int) -> None:
        found = next((entry for entry in self.live() if entry[0] == key), None)
        assert self.cache.get_or_compute(key, lambda: -key) == (found[1] if found else -key)
        if found:
            self.get(key)
        else:
            self.set(key, -key)

    @rule(key=st.integers(0, 6))
    def pop(self, key: int) -> None:
        self.cache.pop(key)
        self.model = [entry for entry in self.model if entry[0] != key]

    @rule(seconds=st.integers(0, 6))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @invariant()
    def as_many(self) -> None:
        assert len(self.cache._entries) <= 4
        assert len(self.cache) == len(self.live())
        assert self.cache._entries.keys() == self.cache._ends.keys()


TestAgainstAModel = AgainstAModel.TestCase
TestAgainstAModel.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


# --- who computes


def test_twenty_threads_that_miss_a_key_compute_it_once() -> None:
    cache, calls, arrived = TTLCache[str, object](10, 60), list[int](), threading.Event()

    def compute() -> object:
        calls.append(1)
        arrived.wait(0.05)
        return object()

    results = at_once(20, lambda: cache.get_or_compute("a", compute))
    assert len(calls) == 1
    assert len(set(map(id, results))) == 1


def test_without_single_flight_every_thread_computes() -> None:
    plain, calls = cachetools.TTLCache[str, int](10, 60), list[int]()

    def compute(key: str) -> int:
        calls.append(1)
        time.sleep(0.05)
        return 1

    naive = cachetools.cached(plain, lock=threading.Lock())(compute)
    at_once(10, lambda: naive("a"))
    assert len(calls) == 10


def test_other_keys_are_not_held_up_by_a_slow_one() -> None:
    cache, slow, done = TTLCache[str, str](10, 60), threading.Event(), threading.Event()

    def compute() -> str:
        slow.set()
        done.wait(10)
        return "late"

    computing = in_thread(cache.get_or_compute, "slow", compute)
    assert slow.wait(20)
    assert cache.get_or_compute("fast", lambda: "at once") == "at once"
    assert cache.get("slow") is MISSING
    done.set()
    assert computing.result(20) == "late"
    assert cache.get("slow") == "late"


def test_an_error_reaches_all_who_waited_and_is_not_stored() -> None:
    cache, calls = TTLCache[str, int](10, 60), list[int]()

    def fail() -> int:
        calls.append(1)
        time.sleep(0.05)
        raise ValueError("no")

    errors = at_once(8, lambda: cache.get_or_compute("a", fail))
    assert len(calls) == 1
    assert [repr(error) for error in errors] == ["ValueError('no')"] * 8
    assert cache.get_or_compute("a", lambda: 5) == 5


def test_when_the_one_who_computes_is_interrupted_another_computes() -> None:
    cache, begun, go_on = TTLCache[str, int](10, 60), threading.Event(), threading.Event()

    def interrupted() -> int:
        begun.set()
        go_on.wait(10)
        raise SystemExit

    def interrupt() -> None:
        with pytest.raises(SystemExit):
            cache.get_or_compute("a", interrupted)

    first = in_thread(interrupt)
    assert begun.wait(20)
    second = in_thread(cache.get_or_compute, "a", lambda: 7)
    time.sleep(0.02)  # so that it waits
    go_on.set()
    first.result(20)
    assert second.result(20) == 7


def test_a_computation_that_asks_for_its_own_key_is_an_error_and_not_a_deadlock() -> None:
    cache = TTLCache[str, int](10, 60)

    def compute() -> int:
        return cache.get_or_compute("a", compute)

    with pytest.raises(RuntimeError, match="the computation for 'a' asks for its own result"):
        cache.get_or_compute("a", compute)
    assert cache.get_or_compute("a", lambda: cache.get_or_compute("b", lambda: 1) + 1) == 2


@pytest.mark.parametrize("how", ["clear", "pop", "set"])
def test_what_was_forgotten_or_set_during_a_computation_is_not_overwritten_by_it(how: str) -> None:
    cache = TTLCache[str, str](10, 60)
    meanwhile: dict[str, Callable[[], None]] = {
        "clear": cache.clear,
        "pop": lambda: cache.pop("a"),
        "set": lambda: cache.set("a", "newer"),
    }

    def compute() -> str:
        meanwhile[how]()
        return "old"

    assert cache.get_or_compute("a", compute) == "old"
    assert cache.get("a") == ("newer" if how == "set" else MISSING)


def test_who_asks_after_a_clear_does_not_get_what_was_begun_before_it() -> None:
    cache, begun, go_on = TTLCache[str, str](10, 60), threading.Event(), threading.Event()

    def compute() -> str:
        begun.set()
        go_on.wait(10)
        return "old"

    computing = in_thread(cache.get_or_compute, "a", compute)
    assert begun.wait(20)
    cache.clear()
    assert cache.get_or_compute("a", lambda: "new") == "new"
    go_on.set()
    assert computing.result(20) == "old"
    assert cache.get("a") == "new"


# --- faults


def test_sixteen_threads_with_random_keys_keep_the_limit_and_the_right_values() -> None:
    cache = TTLCache[int, int](10, 0.002)

    def hammer(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(400):
            key = rng.randrange(30)
            match rng.randrange(5):
                case 0:
                    cache.set(key, key * 2)
                case 1:
                    cache.pop(key)
                case 2:
                    assert cache.get(key, key * 2) == key * 2
                case _:
                    assert cache.get_or_compute(key, functools.partial(int, key * 2)) == key * 2
            assert len(cache) <= 10

    assert each_at_once(hammer, range(16)) == [None] * 16
    assert cache._entries.keys() == cache._ends.keys()
    assert cache.flights == {}


def test_a_cachetools_container_without_a_lock_outgrows_its_limit_and_this_does_not() -> None:
    def race(put: Callable[[Any], None]) -> None:
        """Put two keys: while the first is on its way in, another thread puts the second."""
        other = threading.Thread(target=put, args=("second",))

        class First:
            hashed = 0

            def __hash__(self) -> int:
                self.hashed += 1
                if self.hashed == 2:  # past the check whether there is room
                    other.start()
                    other.join(0.05)
                return 1

        put(First())
        other.join(10)

    plain, ours = cachetools.LRUCache[Any, int](1), TTLCache[Any, int](1, 60)
    race(lambda key: plain.__setitem__(key, 1))
    race(lambda key: ours.set(key, 1))
    assert len(list(plain)) == 2
    assert len(ours) == len(ours._entries) == 1


def test_a_key_whose_comparison_uses_the_cache_does_not_lock_it_up() -> None:
    cache = TTLCache[Any, int](4, 60)

    class Nosy:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            cache.get("x")
            return self is other

    def fill() -> None:
        for _ in range(3):
            cache.set(Nosy(), 1)

    done = threading.Thread(target=fill, daemon=True)
    done.start()
    done.join(10)
    assert not done.is_alive()
    assert len(cache) == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork on this system")
def test_a_fork_during_a_computation_leaves_the_child_a_cache_that_works() -> None:
    program = """
import os, threading, time
from memory_cache import TTLCache
cache = TTLCache(10, 60)
cache.set("known", 1)
begun = threading.Event()
def hang():
    with cache.lock:
        begun.set()
        time.sleep(60)
threading.Thread(target=hang, daemon=True).start()
begun.wait()
child = os.fork()
if child == 0:
    assert cache.get("known") == 1
    assert cache.get_or_compute("new", lambda: 2) == 2
    os._exit(7)
os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env={"PYTHONPATH": str(SNIPPETS)}, timeout=20, check=False
    )
    assert run.returncode == 7


def test_new_locks_free_a_cache_from_threads_that_are_no_more() -> None:
    cache, held, go_on = TTLCache[str, int](10, 60), threading.Event(), threading.Event()
    cache.set("known", 1)

    def compute() -> int:
        with cache.lock:
            held.set()
            go_on.wait(10)
        return 2

    computing = in_thread(cache.get_or_compute, "new", compute)
    assert held.wait(20)
    memory_cache._renew_all()
    assert cache.get("known") == 1
    assert cache.get_or_compute("new", lambda: 3) == 3
    go_on.set()
    assert computing.result(20) == 2
    assert cache.get("new") == 3
