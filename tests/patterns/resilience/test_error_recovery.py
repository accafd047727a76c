"""Proves docs/patterns/resilience/error-recovery.md: what is repaired and repeated, how often, and what is not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import pickle
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from error_recovery import Failure, Fallback, GiveUp, Outcome, Recovered, Recovery, RecoveryFailed, Retry
from harness.color import Color
from harness.depth import examples
from integration_errors import (
    AuthenticationError,
    Conflict,
    IntegrationError,
    NotFound,
    RateLimited,
    ServiceUnavailable,
    UpstreamTimeout,
)
from patterns.resilience.error_recovery_kit import DOWN, First, Repair, Script, Second, Way, awaited, limited, refused
from recovery_strategies import FallbackValue, RefreshToken, WaitRateLimit


@pytest.fixture
def way(color: Color) -> Way:
    return Way(color)


# -- the run


def test_a_call_that_succeeds_is_called_once_and_needs_no_step(way: Way) -> None:
    script, repair = Script(7), First()
    result = way.run(way.recovery(repair), script)
    assert result == Recovered(7, degraded=False, steps=())
    assert (script.calls, repair.attempts, way.clock.pauses) == (1, [], [])


def test_a_manager_that_recovers_and_returns_true_never_repeats_the_call(way: Way) -> None:
    def naive(script: Script, repair: Callable[[], None]) -> object:
        try:
            return script()
        except IntegrationError:
            repair()
            return True  # "recovered"

    script, repaired = Script(refused(), "value"), list[int]()
    assert naive(script, lambda: repaired.append(1)) is True
    assert (script.calls, repaired) == (1, [1])
    script = Script(refused(), "value")
    assert way.run(way.recovery(First()), script).value == "value"
    assert script.calls == 2


def test_a_strategy_that_always_matches_loops_on_a_permanent_401_and_here_it_ends(way: Way) -> None:
    def naive(script: Script, limit: int) -> object:
        while script.calls < limit:  # the naive one has no limit
            with contextlib.suppress(IntegrationError):
                return script()
        return "still at it"

    script = Script(refused())
    assert naive(script, 1000) == "still at it"
    script, repair = Script(refused()), First(budget=10**9)
    failed = way.failed(way.recovery(repair), script)
    assert (script.calls, repair.attempts) == (4, [1, 2, 3])
    assert str(failed) == "AuthenticationError, after First, First, First"


def test_the_first_strategy_that_handles_it_is_asked_and_the_others_are_not(way: Way) -> None:
    other, first, second = Repair(on=Conflict), First(), Second()
    result = way.run(way.recovery(other, first, second), Script(DOWN, "value"))
    assert result.steps == ("First",)
    assert (other.attempts, first.attempts, second.attempts) == ([], [1], [])


def test_when_the_budget_of_one_is_spent_the_next_that_handles_it_is_asked(way: Way) -> None:
    first, second = First(budget=2), Second(Fallback("old"))
    result = way.run(way.recovery(first, second), Script(DOWN))
    assert result == ("old", True, ("First", "First", "Second"))
    assert (first.attempts, second.attempts) == ([1, 2], [1])


def test_budgets_begin_anew_with_each_run(way: Way) -> None:
    recovery = way.recovery(First())
    for _ in range(3):
        assert way.run(recovery, Script(DOWN, "value")).value == "value"


@pytest.mark.parametrize("limit", [0, 1, 2, 5])
def test_all_strategies_together_recover_max_recoveries_times_at_most(way: Way, limit: int) -> None:
    first, second, script = First(budget=2), Second(budget=9), Script(DOWN)
    failed = way.failed(way.recovery(first, second, max_recoveries=limit), script)
    assert len(first.attempts + second.attempts) == limit
    assert script.calls == limit + 1
    assert failed.__cause__ is DOWN
    steps = ["First", "First", "Second", "Second", "Second"][:limit]
    assert str(failed) == f"ServiceUnavailable, after {', '.join(steps) or 'nothing'}"


def test_by_default_it_recovers_three_times_within_thirty_seconds(way: Way) -> None:
    default, script = Recovery([First(budget=9)], clock=way.clock), Script(DOWN)
    way.failed(default, script)
    assert script.calls == 4
    for seconds, calls in ((29.75, 2), (30.0, 1)):
        slow = Script(DOWN, "value")

        def fn(slow: Script = slow, seconds: float = seconds) -> object:
            way.clock.now += seconds
            return slow()

        with contextlib.suppress(RecoveryFailed):
            way.run(default, fn)
        assert slow.calls == calls


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["retry", "late", "raise", "fall", "give"])), max_size=4),
    st.integers(0, 5),
)
@settings(max_examples=examples(100), deadline=None)
def test_whatever_the_strategies_do_the_run_ends_within_its_budgets(kinds: list[tuple[int, str]], limit: int) -> None:
    outcomes: dict[str, Outcome | Exception] = {
        "retry": Retry(),
        "late": Retry(31.0),
        "raise": KeyError(),
        "fall": Fallback(1),
        "give": GiveUp(),
    }
    strategies = [Repair(outcomes[kind], budget=budget) for budget, kind in kinds]
    script = Script(DOWN)
    try:
        ended: object = Recovery(strategies, max_recoveries=limit).run_sync(script).value
    except RecoveryFailed as failed:
        ended = failed.__cause__
    except ServiceUnavailable as error:
        ended = error
    assert ended in (1, DOWN)
    spent = [len(strategy.attempts) for strategy in strategies]
    assert sum(spent) <= limit
    assert all(count <= strategy.budget for count, strategy in zip(spent, strategies, strict=True))
    assert script.calls <= limit + 1


def test_an_error_that_no_strategy_handles_is_raised_as_it_is(way: Way) -> None:
    error = NotFound("no", status=404)
    with pytest.raises(NotFound) as raised:
        way.run(way.recovery(First(on=Conflict)), Script(error))
    assert raised.value is error
    assert error.__cause__ is None
    assert error.__context__ is None


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyError("id"), ConnectionError("of no integration")])
def test_a_bug_is_never_recovered_where_a_fallback_for_every_exception_hides_it(way: Way, error: Exception) -> None:
    def naive(fn: Callable[[], object]) -> object:
        try:
            return fn()
        except Exception:
            return "yesterday's"

    assert naive(Script(error)) == "yesterday's"
    fallback, script = FallbackValue(lambda: "yesterday's", on=lambda err: True), Script(error)
    with pytest.raises(type(error)) as raised:
        way.run(way.recovery(First(on=True), fallback), script)
    assert raised.value is error
    assert script.calls == 1


@pytest.mark.parametrize("missing", ["status", "retryable", "retry_after"])
def test_an_exception_with_the_three_attributes_is_a_failure_and_no_other(way: Way, missing: str) -> None:
    class OwnError(Exception):
        pass

    error = OwnError("of a reader's own")
    vars(error).update(status=401, retryable=False, retry_after=None)
    assert way.run(way.recovery(First()), Script(error, "value")).value == "value"
    delattr(error, missing)
    with pytest.raises(OwnError):
        way.run(way.recovery(First()), Script(error, "value"))


def test_what_a_strategy_raises_ends_the_run_with_the_original_error_attached(way: Way) -> None:
    broken = LookupError("no such secret: hunter2")
    first, second, script = First(broken), Second(), Script(DOWN)
    failed = way.failed(way.recovery(first, second), script)
    assert (failed.__cause__, failed.__context__) == (DOWN, broken)
    assert str(failed) == "First raised LookupError"  # and not its text, which may be for nobody's eyes
    assert (second.attempts, script.calls) == ([], 1)


def test_a_predicate_that_raises_ends_the_run_in_the_same_way(way: Way) -> None:
    fallback = FallbackValue(lambda: 1, on=lambda err: bool(1 / 0))
    failed = way.failed(way.recovery(fallback), Script(DOWN))
    assert (failed.__cause__, type(failed.__context__)) == (DOWN, ZeroDivisionError)


def test_giving_up_raises_the_error_as_it_is_and_asks_nobody_else(way: Way) -> None:
    second = Second()
    with pytest.raises(ServiceUnavailable) as raised:
        way.run(way.recovery(First(GiveUp()), second), Script(DOWN))
    assert raised.value is DOWN
    assert second.attempts == []


def test_a_strategy_that_mutates_the_error_changes_neither_the_budgets_nor_the_cause(way: Way) -> None:
    class Mutating(First):
        async def recover(self, err: Failure, attempt: int) -> Outcome:
            err.status, err.retryable = 429, False
            err.retry_after = 1.0
            return await super().recover(err, attempt)

    error, script = refused(), Script(refused("x"))
    script.answers = (error,)
    mutating = Mutating(budget=2, on=True)
    failed = way.failed(way.recovery(mutating, WaitRateLimit(5, budget=9), max_recoveries=4), script)
    assert failed.__cause__ is error
    assert (mutating.attempts, script.calls, way.clock.pauses) == ([1, 2], 5, [1.0, 1.0])


def test_a_failure_of_the_second_call_is_judged_anew(way: Way) -> None:
    recovery = way.recovery(First(on=AuthenticationError), FallbackValue(lambda: "old"))
    assert way.run(recovery, Script(refused(), DOWN)) == ("old", True, ("First", "FallbackValue"))
    with pytest.raises(NotFound):
        way.run(recovery, Script(refused(), NotFound("no", status=404)))


def test_a_post_is_repeated_with_the_key_that_was_made_outside_and_not_a_new_one(way: Way) -> None:
    orders: dict[str, str] = {}
    keys = iter(f"key-{n}" for n in range(9))

    def post(key: str) -> str:
        """Create the order, and lose the answer of the first call."""
        lost = not orders
        orders.setdefault(key, "order")
        if lost:
            raise UpstreamTimeout("the answer was lost")
        return orders[key]

    recovery = way.recovery(First())
    way.run(recovery, lambda: post(next(keys)))  # naive: a new key for each call
    assert len(orders) == 2
    orders.clear()
    key = next(keys)
    assert way.run(recovery, lambda: post(key)).value == "order"
    assert list(orders) == [key]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), GeneratorExit()])
async def test_an_order_to_stop_is_obeyed_at_once(error: BaseException) -> None:
    script, repair = Script(error), First(on=True)
    with pytest.raises(type(error)):
        Recovery([repair]).run_sync(script)
    assert (script.calls, repair.attempts) == (1, [])


@pytest.mark.parametrize(
    "wrong",
    [{"max_recoveries": value} for value in (-1, 1.5, float("nan"), True)]
    + [{"deadline": value} for value in (0, -1.0, float("nan"), float("inf"), True)],
    ids=str,
)
def test_a_setting_out_of_its_range_is_a_value_error_that_names_it(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError, match=rf"^{name} must be .*, got {value!r}$"):
        Recovery([], **wrong)


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), True, "1"])
def test_a_number_of_a_strategy_out_of_its_range_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"^timeout must be a number of seconds over 0, got {wrong!r}$"):
        RefreshToken(lambda: None, lambda err: None, timeout=wrong)
    with pytest.raises(ValueError, match=rf"^max_wait must be a number of seconds, 0 or more, got {wrong!r}$"):
        WaitRateLimit(wrong)
    with pytest.raises(ValueError, match=rf"^budget must be a whole number, 0 or more, got {wrong!r}$"):
        WaitRateLimit(1, budget=wrong)


def test_a_strategy_that_waits_for_a_loop_is_a_type_error_in_a_thread() -> None:
    class Waiting(First):
        async def recover(self, err: Failure, attempt: int) -> Outcome:
            future: Any = type("Never", (), {"__await__": lambda self: iter([None])})()
            await future
            return Retry()

    with pytest.raises(TypeError, match=r"use run\(\)"):
        Recovery([Waiting()]).run_sync(Script(DOWN))


def test_the_real_sleep_of_a_thread_and_the_real_clock_are_the_default() -> None:
    begin = time.monotonic()
    assert Recovery([WaitRateLimit(1)]).run_sync(Script(limited(0.02), 1)).value == 1
    assert time.monotonic() - begin >= 0.02


async def test_the_real_sleep_of_a_task_is_the_default() -> None:
    begin, script = time.monotonic(), Script(limited(0.02), 1)
    assert (await Recovery([WaitRateLimit(1)]).run(awaited(script))).value == 1
    assert time.monotonic() - begin >= 0.019


@pytest.mark.parametrize(("outcome", "name"), [(Retry(), "after"), (Fallback(7), "value"), (GiveUp(), "any")], ids=repr)
def test_an_outcome_cannot_be_changed_on_its_way(outcome: Outcome, name: str) -> None:
    assert Retry() == Retry(after=0.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(outcome, name, 1)


def test_a_failed_recovery_survives_pickling() -> None:
    with pytest.raises(RecoveryFailed) as raised:
        Recovery([First(budget=0)]).run_sync(Script(DOWN))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy)) == (RecoveryFailed, "ServiceUnavailable, after nothing")


# -- waiting


def test_a_429_that_says_two_seconds_is_repeated_after_two_seconds(way: Way) -> None:
    result = way.run(way.recovery(WaitRateLimit(max_wait=5)), Script(limited(2), "value"))
    assert (result.value, way.clock.pauses) == ("value", [2.0])


@pytest.mark.parametrize(("seconds", "slept"), [(5, [5]), (5.25, []), (0, []), (-1, []), (float("nan"), [])])
def test_a_wait_above_max_wait_is_not_begun(way: Way, seconds: float, slept: list[float]) -> None:
    error = limited(seconds)
    script = Script(error, "value")
    recovery = way.recovery(WaitRateLimit(max_wait=5))
    if slept or seconds == 0:
        assert way.run(recovery, script).value == "value"
    else:
        with pytest.raises(RateLimited) as raised:
            way.run(recovery, script)
        assert raised.value is error
    assert way.clock.pauses == slept


@pytest.mark.parametrize(("seconds", "slept"), [(30, [30]), (30.25, [])])
def test_a_wait_beyond_the_deadline_is_not_begun(way: Way, seconds: float, slept: list[float]) -> None:
    recovery, script = way.recovery(WaitRateLimit(max_wait=100)), Script(limited(seconds), "value")
    if slept:
        assert way.run(recovery, script).value == "value"
    else:
        failed = way.failed(recovery, script)
        assert str(failed) == "RateLimited, after WaitRateLimit"
    assert (way.clock.pauses, script.calls) == (slept, 1 + len(slept))


def test_after_a_wait_that_is_too_long_for_the_deadline_a_fallback_is_asked(way: Way) -> None:
    recovery = way.recovery(WaitRateLimit(max_wait=100), FallbackValue(lambda: "old"), deadline=10)
    assert way.run(recovery, Script(limited(11))).value == "old"
    assert way.clock.pauses == []


def test_three_waits_are_the_budget_and_the_deadline_counts_all_of_them(way: Way) -> None:
    recovery, script = way.recovery(WaitRateLimit(max_wait=5), max_recoveries=9), Script(limited(2))
    way.failed(recovery, script)
    assert way.clock.pauses == [2.0] * 3
    way.clock.pauses.clear()
    way.failed(way.recovery(WaitRateLimit(max_wait=5, budget=9), max_recoveries=9, deadline=5), script)
    assert way.clock.pauses == [2.0] * 2


def test_a_429_without_a_time_is_raised_where_a_default_of_sixty_seconds_blocks(
    way: Way,
) -> None:
    def naive(error: RateLimited) -> None:
        way.clock.sleep(error.retry_after or 60)

    naive(limited(None))
    assert way.clock.pauses == [60]
    way.clock.pauses.clear()
    with pytest.raises(RateLimited):
        way.run(way.recovery(WaitRateLimit(max_wait=100)), Script(limited(None), "value"))
    assert way.clock.pauses == []


def test_a_time_to_wait_that_is_not_a_rate_limits_is_left_to_others(way: Way) -> None:
    error = ServiceUnavailable("down", status=503, retry_after=1)
    with pytest.raises(ServiceUnavailable):
        way.run(way.recovery(WaitRateLimit(max_wait=100)), Script(error))


async def test_a_wait_of_no_time_is_a_plain_repeat() -> None:
    assert await WaitRateLimit(max_wait=5).recover(limited(0), 1) == Retry()


# -- falling back


def test_a_fallback_is_marked_as_degraded(way: Way) -> None:
    assert way.run(way.recovery(FallbackValue(lambda: 7)), Script(DOWN)) == Recovered(7, True, ("FallbackValue",))
    assert FallbackValue.budget == 1


async def test_a_producer_may_be_a_coroutine_function() -> None:
    async def produce() -> int:
        await asyncio.sleep(0)
        return 7

    assert (await Recovery([FallbackValue(produce)]).run(awaited(Script(DOWN)))).value == 7


def test_a_fallback_that_raises_gives_the_original_error_and_a_note(way: Way) -> None:
    error = ServiceUnavailable("down", status=503)

    def produce() -> object:
        raise LookupError("the cache is down too")

    with pytest.raises(ServiceUnavailable) as raised:
        way.run(way.recovery(FallbackValue(produce)), Script(error))
    assert raised.value is error
    assert error.__notes__ == ["the fallback raised LookupError"]


@pytest.mark.parametrize("error", [NotFound("no", status=404), refused(), Conflict("no", status=409)], ids=repr)
def test_a_fallback_stands_in_only_for_what_may_pass_unless_told_otherwise(way: Way, error: Exception) -> None:
    with pytest.raises(type(error)):
        way.run(way.recovery(FallbackValue(lambda: 7)), Script(error))
    everything = FallbackValue(lambda: 7, on=lambda err: err.status is not None)
    assert way.run(way.recovery(everything), Script(error)).value == 7
