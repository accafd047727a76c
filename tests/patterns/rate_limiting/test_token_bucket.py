"""Proves docs/patterns/rate-limiting/token-bucket.md: bursts, order, timeouts and reservations, to the instant."""

from __future__ import annotations

import asyncio
import inspect
import math
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest

from patterns.rate_limiting import token_bucket_kit as kit
from patterns.rate_limiting.token_bucket_kit import Interrupted, World, most_in_any_interval
from token_bucket_async import AsyncTokenBucket
from token_bucket_core import RateLimitTimeout
from token_bucket_sync import TokenBucket

# Fixtures.
make = kit.make


# -- bursts and rate


def test_of_a_hundred_calls_ten_go_at_once_and_the_last_after_exactly_nine_seconds(
    make: Callable[[float, float], World],
) -> None:
    world = make(10, 10)
    jobs = [world.acquire() for _ in range(100)]
    world.advance(20)
    instants = [(job.at or math.nan) - 1000 for job in jobs]  # in order of arrival
    assert instants[:10] == [0.0] * 10
    assert instants[10:] == pytest.approx([0.1 * n for n in range(1, 91)], abs=1e-9)
    assert instants[-1] == pytest.approx(9.0, abs=1e-9)
    assert most_in_any_interval(world.granted(), rate=10) == pytest.approx(10)


def test_an_hour_without_calls_fills_it_to_the_capacity_and_no_further(make: Callable[[float, float], World]) -> None:
    world = make(10, 10)
    assert world.bucket.available() == 10
    world.advance(3600)
    assert world.bucket.available() == 10
    world.drain(10)
    assert not world.bucket.try_acquire()
    world.advance(0.5)
    assert world.bucket.available() == pytest.approx(5)
    world.advance(3600)
    assert world.bucket.available() == 10
    assert [world.bucket.try_acquire() for _ in range(11)] == [True] * 10 + [False]


def test_the_whole_capacity_may_be_taken_at_once_and_nothing_more(make: Callable[[float, float], World]) -> None:
    world = make(2, 3)
    world.drain(3)
    whole = world.acquire(3)
    world.advance(1.5)
    assert whole.at == 1001.5
    with pytest.raises(ValueError, match=r"n must be a number over 0 and at most 3, got 3\.01"):
        world.bucket.try_acquire(3.01)


def test_a_clock_that_goes_back_during_a_wait_costs_at_most_the_wait_once_more(
    make: Callable[[float, float], World],
) -> None:
    world = make(10, 1)
    world.drain(1)
    waiter = world.acquire()
    world.now -= 3600
    world.jobs[0].until -= 3600  # the operating system wakes it after a tenth of a second all the same
    world.advance(0.1)
    assert waiter.waits
    world.advance(0.1)
    assert waiter.at == world.now


def test_tenths_of_tokens_and_of_rates_add_up_without_drift(make: Callable[[float, float], World]) -> None:
    world = make(0.1, 1000)
    bucket = world.bucket
    world.drain(500)
    taken = 0
    for _ in range(1_000_000 // 4):  # a million in all: two kinds of buckets, two takes a turn
        world.now += 2
        taken += bucket.try_acquire(0.1) + bucket.try_acquire(0.1)
    assert taken == 500_000
    assert bucket.available() == pytest.approx(500, abs=1e-6)
    small = make(0.1, 0.5)
    small.drain(0.5)
    waiter = small.acquire(0.5)
    small.advance(4.999)
    assert waiter.waits
    small.advance(0.001)
    assert waiter.at == pytest.approx(1005)
    for n in (0.1, 0.3, 0.2):  # which add up to 0.6000000000000001
        small.acquire(n)
    small.advance(60)
    assert small.bucket._line._queued == 0


def test_nobody_is_served_a_microsecond_early(make: Callable[[float, float], World]) -> None:
    world = make(1000, 1)
    world.drain(1)
    world.advance(0.001 - 1e-6)
    assert not world.bucket.try_acquire()
    world.advance(1e-6)
    assert world.bucket.try_acquire()


@pytest.mark.parametrize("kind", [TokenBucket, AsyncTokenBucket])
def test_the_clock_is_one_that_nobody_sets_if_you_give_none(kind: type[TokenBucket | AsyncTokenBucket]) -> None:
    assert inspect.signature(kind).parameters["clock"].default is time.monotonic


@pytest.mark.parametrize("start", [0.0, 1e6, 1.7e9])
def test_rounding_makes_nobody_wait_forever_whatever_the_clock_starts_from(
    make: Callable[[float, float], World], start: float
) -> None:
    world = make(3, 1)
    world.now = start
    for _ in range(30):
        world.acquire()
    world.advance(10.1)
    assert len(world.granted()) == 30
    assert world.granted()[-1][0] - start == pytest.approx(29 / 3, abs=1e-4)


# -- the line


def test_a_call_for_eight_is_not_overtaken_by_later_calls_for_one(make: Callable[[float, float], World]) -> None:
    world = make(10, 10)
    world.drain(10)
    large = world.acquire(8)
    small = [world.acquire(1) for _ in range(5)]
    world.advance(0.5)
    assert world.bucket.available() == 0  # five are there, and they are the large one's
    assert not world.bucket.try_acquire(1)
    world.advance(5)
    instants = [large.at, *(job.at for job in small)]
    assert instants == pytest.approx([1000.8, 1000.9, 1001.0, 1001.1, 1001.2, 1001.3])


def test_of_fifty_who_wait_only_the_first_watches_the_clock(make: Callable[[float, float], World]) -> None:
    world = make(10, 1)
    world.drain(1)
    jobs = [world.acquire() for _ in range(50)]
    for number in range(3):
        world.advance(0.1)
        assert [job.until < math.inf for job in jobs if job.waits] == [True] + [False] * (48 - number)


def test_when_the_first_of_three_gives_up_the_others_finish_when_that_lets_them(
    make: Callable[[float, float], World],
) -> None:
    world = make(5, 1)
    world.drain(1)
    first, second, third = (world.acquire() for _ in range(3))
    world.cancel(first)
    assert isinstance(first.error, (Interrupted, asyncio.CancelledError))
    world.advance(1)
    assert first.at is None
    assert [second.at, third.at] == pytest.approx([1000.2, 1000.4])


def test_when_one_in_the_middle_gives_up_those_before_keep_their_time(make: Callable[[float, float], World]) -> None:
    world = make(5, 2)
    world.drain(2)
    first, second, third = (world.acquire(n) for n in (1, 2, 1))
    world.advance(0.1)
    world.cancel(second)
    world.advance(1)
    assert [first.at, third.at] == pytest.approx([1000.2, 1000.4])


def test_a_call_that_is_cancelled_in_the_moment_of_its_grant_gives_the_tokens_back(
    make: Callable[[float, float], World],
) -> None:
    world = make(5, 2)
    world.drain(2)
    first, second = world.acquire(2), world.acquire(2)
    first.interrupted = True
    world.now += 0.4
    assert world.bucket.available() == 0  # granted, but its owner has not run yet
    world.cancel(first)
    assert first.error
    assert second.at == world.now
    assert world.bucket.available() == 0


# -- timeouts


def test_a_timeout_shorter_than_the_wait_fails_at_once_and_takes_nothing(make: Callable[[float, float], World]) -> None:
    world = make(10, 10)
    world.drain(8)
    late = world.acquire(5, timeout=0.29)
    assert isinstance(late.error, TimeoutError)
    assert isinstance(late.error, RateLimitTimeout)
    assert late.error.wait == pytest.approx(0.3)
    assert str(late.error) == "the rate limit allows this in 0.3 s, after the timeout"
    assert world.now == 1000
    assert world.bucket.available() == 2
    in_time = world.acquire(5, timeout=0.3)
    world.advance(0.3)
    assert in_time.at == pytest.approx(1000.3)


def test_a_timeout_that_differs_from_the_wait_by_rounding_is_long_enough(make: Callable[[float, float], World]) -> None:
    world = make(1, 1)
    world.drain(1)
    job = world.acquire(0.1 + 0.2, timeout=0.3)  # 0.30000000000000004
    assert job.waits


def test_those_ahead_count_for_a_timeout(make: Callable[[float, float], World]) -> None:
    world = make(10, 10)
    world.drain(10)
    for n in (4, 3):
        world.acquire(n)
    late = world.acquire(3, timeout=0.99)
    assert isinstance(late.error, TimeoutError)
    in_time = world.acquire(3, timeout=1)
    world.advance(1)
    assert in_time.at == pytest.approx(1001)


def test_a_timeout_of_zero_is_try_acquire(make: Callable[[float, float], World]) -> None:
    world = make(1, 2)
    assert world.acquire(2, timeout=0).at == 1000
    assert isinstance(world.acquire(1, timeout=0).error, TimeoutError)
    assert isinstance(world.acquire(1, timeout=-1).error, TimeoutError)
    world.advance(1)
    assert world.acquire(1, timeout=0).at == 1001


@pytest.mark.parametrize("timeout", [math.nan, math.inf, True, "1"])
def test_a_timeout_that_is_no_number_is_a_value_error_and_takes_nothing(
    make: Callable[[float, float], World], timeout: Any
) -> None:
    world = make(1, 2)
    refused = world.acquire(1, timeout=timeout).error
    assert isinstance(refused, ValueError)
    assert str(refused) == f"timeout must be a number of seconds or None, got {timeout!r}"
    assert world.bucket.available() == 2


def test_a_timeout_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(RateLimitTimeout(1.5)))
    assert (type(again), again.wait, str(again)) == (RateLimitTimeout, 1.5, str(RateLimitTimeout(1.5)))


# -- reservations


def test_a_reservation_tells_how_long_to_wait_and_counts_down(make: Callable[[float, float], World]) -> None:
    world = make(2, 2)
    waits = [world.bucket.reserve() for _ in range(4)]
    assert [each.wait for each in waits] == [0, 0, 0.5, 1]
    world.advance(0.75)
    assert [each.wait for each in waits] == [0, 0, 0, 0.25]
    assert not world.bucket.try_acquire(0.1)
    world.advance(0.75)
    assert [each.wait for each in waits] == [0, 0, 0, 0]
    assert world.bucket.available() == 1


def test_a_reservation_takes_its_tokens_when_due_though_nobody_looks(make: Callable[[float, float], World]) -> None:
    world = make(10, 10)
    world.drain(10)
    reserved = world.bucket.reserve(10)
    world.advance(3600)
    assert world.bucket.available() == 10
    assert reserved.wait == 0


def test_a_cancelled_reservation_gives_its_tokens_back_once_and_those_behind_move_up(
    make: Callable[[float, float], World],
) -> None:
    world = make(5, 5)
    world.drain(5)
    ahead, behind = world.bucket.reserve(5), world.bucket.reserve(1)
    waiter = world.acquire(1)
    last = world.bucket.reserve(1)
    assert (ahead.wait, behind.wait, last.wait) == pytest.approx((1, 1.2, 1.6))
    for _ in range(2):
        ahead.cancel()
    world._idle()
    assert (behind.wait, last.wait) == pytest.approx((0.2, 0.6))
    world.advance(0.6)
    assert waiter.at == pytest.approx(1000.4)
    assert world.bucket.available() == pytest.approx(0)
    for _ in range(2):
        last.cancel()  # granted just now, and not used
    assert world.bucket.available() == pytest.approx(1)


def test_a_late_reservation_gives_back_less_by_what_a_full_bucket_would_have_lost(
    make: Callable[[float, float], World],
) -> None:
    world = make(2, 4)
    early, late = world.bucket.reserve(3), world.bucket.reserve(3)
    assert (early.wait, late.wait) == (0, 1)
    world.advance(0.5)
    early.cancel()  # one has come since, so of its three two are left
    assert late.wait == 0
    assert world.bucket.available() == 1
    world.advance(1)
    assert world.bucket.available() == 3
    late.cancel()  # two have come since
    assert world.bucket.available() == 4


def test_a_reservation_that_nobody_looked_at_was_granted_when_due(make: Callable[[float, float], World]) -> None:
    world = make(2, 4)
    world.drain(4)
    reserved = world.bucket.reserve(3)  # due after 1.5 s
    world.now += 2.5  # when two more have come
    reserved.cancel()
    assert world.bucket.available() == 3


def test_a_clock_that_went_back_gives_no_more_back_than_was_taken(make: Callable[[float, float], World]) -> None:
    world = make(1, 10)
    reserved = world.bucket.reserve(2)
    world.drain(8)
    world.now -= 5
    reserved.cancel()
    assert world.bucket.available() <= 2


def test_a_reservation_that_was_free_at_once_can_be_given_back(make: Callable[[float, float], World]) -> None:
    world = make(1, 4)
    reserved = world.bucket.reserve(3)
    waiter = world.acquire(4)
    assert (reserved.wait, waiter.waits) == (0, True)
    reserved.cancel()
    world._idle()
    assert waiter.at == 1000


# -- what is refused


@pytest.mark.parametrize("n", [0, -1, math.nan, math.inf, 2.000001, True])
def test_a_call_for_nothing_or_for_more_than_the_capacity_is_a_value_error(
    make: Callable[[float, float], World], n: float
) -> None:
    world = make(1, 2)
    world.drain(2)
    for method in (world.bucket.try_acquire, world.bucket.reserve):
        with pytest.raises(ValueError, match="n must be a number over 0 and at most 2, got"):
            method(n)
    assert isinstance(world.acquire(n).error, ValueError)
    world.advance(2)
    assert world.bucket.available() == 2


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf, True])
@pytest.mark.parametrize("kind", [TokenBucket, AsyncTokenBucket])
def test_a_rate_or_capacity_that_is_no_number_above_zero_is_a_value_error(
    kind: type[TokenBucket | AsyncTokenBucket], wrong: float
) -> None:
    with pytest.raises(ValueError, match=f"^rate must be a number over 0, got {wrong}$"):
        kind(wrong, 1)
    with pytest.raises(ValueError, match=f"^capacity must be a number over 0, got {wrong}$"):
        kind(1, wrong)
