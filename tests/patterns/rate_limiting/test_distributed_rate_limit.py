"""Proves docs/patterns/rate-limiting/distributed-rate-limit.md: one limit, many processes, with and without Redis."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import json
import logging
import math
import os
import re
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import redis
import redis.asyncio

import redis_limiter_async
import redis_limiter_core
import redis_limiter_sync
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.waiting import until
from rate_limit_asgi import RateLimitMiddleware, rate_headers
from redis_limiter_async import AsyncRedisLimiter
from redis_limiter_core import Decision, Limit
from redis_limiter_fallback import Fallback
from redis_limiter_sync import RedisLimiter
from servers.faults import FaultProxy
from servers.valkey import Valkey

Make = Callable[..., Blocking]


@pytest.fixture
def make(color: Color, valkey_url: str) -> Iterator[Make]:
    """Make limiters of one color, on the test's database unless told otherwise."""

    def made(url: str = valkey_url, timeout: float = 5.0, **settings: Any) -> Blocking:
        if not color.is_async:
            return Blocking(
                color, RedisLimiter(color.closing(redis_limiter_sync.connect(url, timeout=timeout)), **settings)
            )
        client = color.closing(redis_limiter_async.connect(url, timeout=timeout))
        return Blocking(color, AsyncRedisLimiter(client, timeout=timeout, **settings))

    yield made
    color.finish()
    if color.is_async:
        with warnings.catch_warnings():  # a connection that was given up while it was made: redis-py leaves it
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def asked_of(limiter: Blocking) -> list[Any]:
    """Return a list that grows whenever the limiter asks Redis."""
    asked: list[Any] = []
    script = limiter.inner._script

    def counted(*args: Any) -> Any:
        asked.append(args)
        return script(*args)

    limiter.inner._script = counted
    return asked


SLOW = Limit(rate=1, per=3600, burst=5)


# --- the limit


def test_a_burst_is_allowed_and_the_next_hit_is_refused_and_told_when_to_come_back(make: Make) -> None:
    limiter = make()
    answers = [limiter.hit("ann", [Limit(rate=1, per=60, burst=5)]) for _ in range(6)]
    assert [answer.allowed for answer in answers] == [True] * 5 + [False]
    assert [answer.remaining for answer in answers[:5]] == [4, 3, 2, 1, 0]
    assert [answer.retry_after for answer in answers[:5]] == [0.0] * 5
    assert 30 < answers[5].retry_after <= 60
    assert 240 < answers[5].reset_after <= 300
    assert not answers[5].degraded


def test_after_exactly_retry_after_the_hit_is_allowed(make: Make, valkey: Any) -> None:
    limiter, limit = make(), [Limit(rate=1, per=3600, burst=2)]
    for _ in range(2):
        assert limiter.hit("ann", limit).allowed
    refused = limiter.hit("ann", limit)
    assert 3500 < refused.retry_after <= 3600
    (key,) = valkey.keys()

    def pass_time(seconds: float) -> None:  # for this key alone: what it waits for comes nearer
        valkey.set(key, int(valkey.get(key)) - round(seconds * 1e6))

    pass_time(refused.retry_after - 60)
    assert not limiter.hit("ann", limit).allowed
    pass_time(60)
    assert limiter.hit("ann", limit).allowed


def test_four_processes_at_once_are_granted_the_limit_and_not_one_more(valkey_url: str) -> None:
    program = """
import sys, time
from redis_limiter_core import Limit
from redis_limiter_sync import RedisLimiter, connect
limiter = RedisLimiter(connect(sys.argv[1], timeout=10))
limiter.hit("warm-up", [Limit(1000)])
print("ready", flush=True)
sys.stdin.readline()
print(sum(limiter.hit("shared", [Limit(rate=1, per=3600, burst=100)]).allowed for _ in range(200)))
"""
    env = os.environ | {"PYTHONPATH": str(Path(redis_limiter_sync.__file__).parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, valkey_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    granted = []
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        output, _ = process.communicate(timeout=30)
        granted.append(int(output))
    assert sum(granted) == 100


def test_over_time_the_rate_comes_on_top_of_the_burst(make: Make) -> None:
    limiter, limit, granted = make(), [Limit(rate=100, per=1, burst=1000)], 1000
    begun = time.monotonic()
    assert limiter.hit("ann", limit, cost=1000).allowed
    emptied = time.monotonic()
    while True:  # until all that has come in by then is taken
        sent = time.monotonic()
        allowed = limiter.hit("ann", limit).allowed
        granted += allowed
        if not allowed and sent - emptied >= 0.3:
            break
    assert 1000 + 100 * (sent - emptied) - 3 <= granted <= 1000 + 100 * (time.monotonic() - begun) + 1


def test_of_several_limits_a_refusal_by_one_consumes_from_none(make: Make) -> None:
    limiter = make()
    tight, wide = Limit(rate=1, per=3600, burst=2), Limit(rate=1, per=3600, burst=10)
    answers = [limiter.hit("ann", [wide, tight]) for _ in range(5)]
    assert [answer.allowed for answer in answers] == [True, True, False, False, False]
    assert {answer.limit for answer in answers} == {tight}
    assert limiter.hit("ann", [wide], cost=0).remaining == 8
    assert limiter.hit("ann", [tight], cost=0).remaining == 0


def test_the_decision_is_that_of_the_limit_that_leaves_the_least(make: Make) -> None:
    limiter = make()
    quick, slow = Limit(rate=10, per=1, burst=3), Limit(rate=1, per=3600, burst=3)
    for _ in range(3):
        limiter.hit("ann", [quick, slow])
    refused = limiter.hit("ann", [quick, slow])
    assert refused.limit == slow
    assert refused.retry_after > 3000


def test_a_cost_takes_several_or_none_when_it_does_not_fit_and_a_cost_of_zero_looks(make: Make) -> None:
    limiter = make()
    assert limiter.hit("ann", [SLOW], cost=3).remaining == 2
    assert not limiter.hit("ann", [SLOW], cost=3).allowed
    for _ in range(3):
        assert limiter.hit("ann", [SLOW], cost=0).remaining == 2
    assert limiter.hit("ann", [SLOW], cost=2).allowed
    empty = limiter.hit("ann", [SLOW], cost=0)
    assert (empty.allowed, empty.remaining) == (False, 0)
    assert empty.retry_after > 3000


def test_a_refund_gives_back_and_never_more_than_there_was(make: Make, valkey: Any) -> None:
    limiter = make()
    limiter.hit("ann", [SLOW], cost=4)
    limiter.refund("ann", [SLOW], 3)
    assert limiter.hit("ann", [SLOW], cost=0).remaining == 4
    limiter.refund("ann", [SLOW], 100)
    assert limiter.hit("ann", [SLOW], cost=0).remaining == 5
    assert valkey.dbsize() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda each: each.hit("ann", [SLOW], cost=-1), "cost must be a whole number of at least 0, got -1"),
        (lambda each: each.hit("ann", [SLOW], cost=6), "cost 6 can never pass a burst of 5"),
        (lambda each: each.hit("ann", []), "there is no limit to hold to"),
        (lambda each: each.hit("ann", [SLOW], cost=True), "cost must be a whole number of at least 0, got True"),
        (lambda each: each.hit("ann", [SLOW], cost=1.5), r"cost must be a whole number of at least 0, got 1\.5"),
        (lambda each: each.refund("ann", [SLOW], 0), "cost must be a whole number of at least 1, got 0"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(make: Make, call: Callable[[Blocking], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(make())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0}, "rate must be a number over 0, got 0"),
        ({"rate": -1}, "rate must be a number over 0, got -1"),
        ({"rate": math.inf}, "rate must be a number over 0, got inf"),
        ({"rate": math.nan}, "rate must be a number over 0, got nan"),
        ({"rate": True}, "rate must be a number over 0, got True"),
        ({"rate": 1, "per": 0}, "per must be a number of seconds over 0, got 0"),
        ({"rate": 1, "per": math.inf}, "per must be a number of seconds over 0, got inf"),
        ({"rate": 1, "per": math.nan}, "per must be a number of seconds over 0, got nan"),
        ({"rate": 1, "burst": -1}, "burst must be a whole number of at least 0, got -1"),
        ({"rate": 1, "burst": 1.5}, "burst must be a whole number of at least 0, got 1.5"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Limit(**wrong)


def test_a_burst_is_as_many_as_the_rate_unless_told() -> None:
    assert (Limit(10).burst, Limit(2.9).burst, Limit(0.1).burst, Limit(10, burst=3).burst) == (10, 2, 1, 3)
    assert (Limit(10, 60).interval, Limit(10).per) == (6.0, 1.0)


# --- what is in Redis


def test_every_key_has_a_time_to_live_of_the_time_to_recover_and_then_it_is_gone(make: Make, valkey: Any) -> None:
    limiter = make()
    limiter.hit("ann", [Limit(rate=100, per=100, burst=10), Limit(rate=10, per=100, burst=5)], cost=5)
    lives = sorted(int(valkey.pttl(key)) for key in valkey.scan_iter())
    assert len(lives) == 2
    assert 0 < lives[0] <= 5_001
    assert lives[0] < lives[1] <= 50_001
    assert lives[1] > 40_000
    valkey.flushdb()
    limiter.hit("ann", [Limit(rate=100, per=1, burst=10)], cost=5)
    until(lambda: not valkey.dbsize())


def test_the_keys_of_one_call_share_a_hash_tag_and_say_nothing_about_the_caller(make: Make, valkey: Any) -> None:
    limiter = make(prefix="api")
    nasty = ["ann", "a b", "{x}", "a:b", "\n\x00", "ü" * 10_240]
    for key in nasty:
        assert limiter.hit(key, [Limit(1, 60), Limit(100, 3600)]).allowed
    keys = sorted(key.decode() for key in valkey.scan_iter())
    assert len(keys) == 2 * len(nasty)
    tags = {key.split("{")[1].split("}")[0] for key in keys}
    assert len(tags) == len(nasty)
    assert all(len(tag) == 32 for tag in tags)
    assert all(key.startswith("api:{") and key.endswith(("}:1/60/1", "}:100/3600/100")) for key in keys)


def test_other_prefixes_keys_and_limits_are_counted_apart(make: Make) -> None:
    one = [Limit(1, 3600)]
    first, second = make(prefix="a"), make(prefix="b")
    assert first.hit("ann", one).allowed
    assert second.hit("ann", one).allowed
    assert first.hit("bob", one).allowed
    assert first.hit("ann", [Limit(1, 3601)]).allowed
    assert not first.hit("ann", one).allowed


def test_what_is_no_number_in_redis_counts_as_nothing_and_a_far_future_is_cut(make: Make, valkey: Any) -> None:
    limiter = make()
    limiter.hit("ann", [SLOW])
    (key,) = valkey.scan_iter()
    valkey.set(key, "nonsense")
    assert limiter.hit("ann", [SLOW]).remaining == 4
    valkey.set(key, str(10**18))  # as after the clock of Redis went back
    assert limiter.hit("ann", [SLOW]).reset_after <= 5 * 3600


def test_a_clock_that_is_wrong_changes_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = make()
    for offset in (0, 3600, -3600, 7200, 0):
        real = time.time()
        monkeypatch.setattr(time, "time", lambda wrong=real + offset: wrong)
        assert limiter.hit("ann", [SLOW]).allowed
    assert not limiter.hit("ann", [SLOW]).allowed


def test_a_flushed_script_and_a_flushed_database_are_invisible_to_the_caller(make: Make, valkey: Any) -> None:
    limiter = make(on_error="closed")
    for command in ("SCRIPT FLUSH", "FLUSHALL"):
        assert limiter.hit("ann", [SLOW]).allowed
        valkey.execute_command(*command.split())
        answer = limiter.hit("ann", [SLOW])
        assert (answer.allowed, answer.degraded) == (True, False)


def test_a_thousand_keys_each_have_their_own_limit(make: Make) -> None:
    limiter, one = make(), [Limit(1, 3600)]
    assert all(limiter.hit(str(number), one).allowed for number in range(1000))
    assert not any(limiter.hit(str(number), one).allowed for number in range(0, 1000, 100))


# --- without Redis


@pytest.fixture
def down(fault_proxy: type[FaultProxy]) -> FaultProxy:
    """Something that refuses connections, and counts them."""
    proxy = fault_proxy("127.0.0.1", 1)
    proxy.refuse = True
    return proxy


@pytest.fixture
def hung() -> Iterator[int]:
    """The port of something that accepts connections and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield listener.getsockname()[1]


@pytest.mark.parametrize(
    ("on_error", "allowed"), [("open", [True] * 6), ("closed", [False] * 6), ("local", [True] * 5 + [False])]
)
@pytest.mark.parametrize("fault", ["refused", "hung"])
def test_without_redis_the_decision_comes_at_once_and_says_that_it_is_degraded(
    make: Make, clock: Clock, down: FaultProxy, hung: int, on_error: str, allowed: list[bool], fault: str
) -> None:
    port = hung if fault == "hung" else down.port
    limiter = make(f"redis://127.0.0.1:{port}/0", timeout=0.05, on_error=on_error, clock=clock)
    asked = asked_of(limiter)
    answers = [limiter.hit("ann", [SLOW]) for _ in range(6)]
    assert len(asked) == 1  # one timeout for all six, however long the server hangs
    assert [answer.allowed for answer in answers] == allowed
    assert all(answer.degraded for answer in answers)
    assert answers[-1].limit == SLOW
    assert (answers[-1].retry_after > 0) is (not answers[-1].allowed)
    limiter.refund("ann", [SLOW], 1)


def test_while_redis_is_down_it_is_asked_once_a_second(make: Make, clock: Clock, down: FaultProxy) -> None:
    limiter = make(f"redis://127.0.0.1:{down.port}/0", clock=clock)
    asked = asked_of(limiter)
    asking: list[int] = []
    for later in (0.0, 0.5, 0.499, 0.001, 0.999, 1.0):
        clock.advance(later)
        before = len(asked)
        limiter.hit("ann", [SLOW])
        asking.append(len(asked) - before)
    assert asking == [1, 0, 0, 1, 0, 1]


def test_a_crash_under_load_is_survived_and_the_limit_holds_again_after_it(
    make: Make, clock: Clock, own_valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "redis_limiter_fallback")
    limiter = make(own_valkey.url, on_error="local", clock=clock)
    assert not limiter.hit("ann", [SLOW]).degraded
    own_valkey.kill()
    answers = [limiter.hit("ann", [SLOW]) for _ in range(8)]
    assert all(answer.degraded for answer in answers)
    assert [answer.allowed for answer in answers].count(True) == 5
    own_valkey.start()
    assert limiter.hit("ann", [SLOW]).degraded  # the second is not over
    clock.advance(1.0)
    answers = [limiter.hit("ann", [SLOW]) for _ in range(6)]
    assert not any(answer.degraded for answer in answers)
    assert [answer.allowed for answer in answers] == [True] * 5 + [False]
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert texts[0].startswith("the rate limiter is local without Redis: ")
    assert texts[1] == "the rate limiter has Redis again"


def test_on_its_own_a_process_holds_to_its_share(make: Make, clock: Clock, down: FaultProxy) -> None:
    limiter = make(f"redis://127.0.0.1:{down.port}/0", on_error="local", processes=4, clock=clock)
    limits = [Limit(rate=40, per=1, burst=40), Limit(rate=1000, per=1, burst=1000)]
    answers = [limiter.hit("ann", limits) for _ in range(12)]
    assert [answer.allowed for answer in answers] == [True] * 10 + [False] * 2
    assert [answer.remaining for answer in answers[:10]] == list(range(9, -1, -1))
    assert answers[10].limit == limits[0]
    assert answers[10].retry_after == pytest.approx(0.1)  # a tenth of a second each, for four
    assert answers[9].reset_after == pytest.approx(1.0)
    clock.advance(0.1)
    assert limiter.hit("ann", limits, cost=0).remaining == 1
    assert limiter.hit("ann", limits).allowed
    assert not limiter.hit("ann", limits).allowed
    clock.advance(3600)
    assert limiter.hit("ann", limits, cost=10).allowed
    assert limiter.hit("bob", limits, cost=20).allowed  # more than its share, and yet it has to pass some time


def test_what_is_kept_in_the_process_is_bounded() -> None:
    fallback = Fallback("local", 1, lambda: 0.0, max_local_keys=100)
    for number in range(1000):
        fallback.decide(str(number), [Limit(1, 60), Limit(10, 60)], 1, None)
    assert len(fallback._local) == 100


def test_a_mistake_in_the_client_of_threads_does_not_open_the_limiter() -> None:
    limiter: Any = RedisLimiter(redis.Redis())

    def mistaken(*_: object) -> None:  # such as a provider of credentials with a misspelled name
        raise AttributeError("'Vault' object has no attribute 'pasword'")

    limiter._script = mistaken
    with pytest.raises(AttributeError, match="pasword"):
        limiter.hit("ann", [Limit(1)])


def test_settings_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (RedisLimiter, AsyncRedisLimiter):
        client: Any = redis.Redis() if kind is RedisLimiter else redis.asyncio.Redis()
        with pytest.raises(ValueError, match="on_error must be open, closed or local, got 'maybe'"):
            kind(client, on_error="maybe")
        wrong: Any
        for wrong in (0, 1.5, True, math.nan):
            with pytest.raises(ValueError, match=f"processes must be a whole number of at least 1, got {wrong!r}"):
                kind(client, processes=wrong)
        for environ in ({}, {"REDIS_URL": ""}):
            with pytest.raises(RuntimeError, match=r"^REDIS_URL is not set, or is empty$"):
                kind.from_env(environ)
        with pytest.raises(ValueError, match=r"^RATE_LIMIT_ON_ERROR must be open, closed or local, got 'maybe'$"):
            kind.from_env({"REDIS_URL": "redis://127.0.0.1:1/0", "RATE_LIMIT_ON_ERROR": "maybe"})
        made = kind.from_env({"REDIS_URL": "redis://127.0.0.1:1/0", "RATE_LIMIT_ON_ERROR": "closed"})
        assert made._fallback._on_error == "closed"
        for empty in ({}, {"RATE_LIMIT_ON_ERROR": ""}):
            assert kind.from_env({"REDIS_URL": "redis://127.0.0.1:1/0"} | empty)._fallback._on_error == "open"
    for wrong in (0, -1, math.nan, math.inf, True):
        with pytest.raises(ValueError, match=f"timeout must be a number of seconds over 0, got {wrong!r}"):
            AsyncRedisLimiter(redis.asyncio.Redis(), timeout=wrong)
        for connecting in (redis_limiter_sync.connect, redis_limiter_async.connect):
            with pytest.raises(ValueError, match=f"timeout must be a number of seconds over 0, got {wrong!r}"):
                connecting("redis://127.0.0.1:1/0", timeout=wrong)
    for connecting in (redis_limiter_sync.connect, redis_limiter_async.connect):
        pool: Any = connecting("redis://127.0.0.1:1/0").connection_pool
        assert (pool.timeout, pool.max_connections) == (0.05, 50)
        assert {name: pool.connection_kwargs[name] for name in ("socket_timeout", "socket_connect_timeout")} == {
            "socket_timeout": 0.05,
            "socket_connect_timeout": 0.05,
        }


async def test_the_decision_does_not_wait_longer_than_its_timeout_even_if_the_client_would(hung: int) -> None:
    patient = redis_limiter_async.connect(f"redis://127.0.0.1:{hung}/0", timeout=30)
    limiter = AsyncRedisLimiter(patient, timeout=0.05)
    begun = time.monotonic()
    async with asyncio.timeout(20):  # the client would wait for 30
        assert (await limiter.hit("ann", [SLOW])).degraded
    assert time.monotonic() - begun >= 0.05
    await patient.aclose()
    del patient, limiter
    with warnings.catch_warnings():  # the connection was given up while it was made: redis-py leaves it
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_an_open_answer_has_nothing_to_wait_for_and_a_share_is_at_least_one() -> None:
    wide, tight = Limit(100, 60), Limit(3, 60)
    assert Fallback("open", 1, Clock()).decide("ann", [wide, tight], 1, None) == Decision(
        True, tight, 3, 0.0, 0.0, degraded=True
    )
    assert Fallback("closed", 1, Clock()).decide("ann", [wide, tight], 1, None) == Decision(
        False, tight, 0, 1.0, 1.0, degraded=True
    )
    local = Fallback("local", 8, Clock())
    answers = [local.decide("ann", [tight, wide], 1, None) for _ in range(2)]
    assert [answer.allowed for answer in answers] == [True, False]
    assert answers[1].limit == tight
    assert answers[1].retry_after == pytest.approx(8 * 20)


def test_the_defaults_are_those_of_the_page() -> None:
    for kind in (RedisLimiter, AsyncRedisLimiter):
        defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items() if name != "client"}
        assert defaults.pop("timeout", 0.05) == 0.05
        assert defaults == {"prefix": "rl", "on_error": "open", "processes": 1, "clock": time.monotonic}
        for name in ("hit", "refund"):
            assert inspect.signature(getattr(kind, name)).parameters["cost"].default == 1


def test_of_equal_waits_the_limit_with_the_least_left_is_told(make: Make) -> None:
    limiter = make()
    few, many = Limit(rate=10, per=3600, burst=9), Limit(rate=1, per=3600, burst=50)
    assert limiter.hit("ann", [many, few]).limit == few
    assert limiter.hit("ann", [few, many]).limit == few
    assert limiter.hit("ann", [few, many], cost=0).remaining == 7


# --- the middleware


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-mine", b"1")]})
    await send({"type": "http.response.body", "body": b"fine"})


def by_user(scope: Any) -> str | None:
    return dict(scope["headers"]).get(b"x-user", b"").decode() or None


async def test_a_client_above_its_limit_gets_429_with_retry_after_and_others_do_not(
    valkey_url: str, valkey: Any
) -> None:
    client = redis_limiter_async.connect(valkey_url, timeout=5)
    limiter = AsyncRedisLimiter(client, timeout=5)
    wrapped = RateLimitMiddleware(app, limiter=limiter, limits=[Limit(rate=2, per=60)], key=by_user)
    asgi: Any = wrapped
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(asgi), base_url="http://api") as api:
        headers = {"X-User": "ann-secret-key"}
        answers = [await api.get("/", headers=headers) for _ in range(3)]
        other = await api.get("/", headers={"X-User": "bob"})
        free = await api.get("/")
    await client.aclose()
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    told = [re.fullmatch('"default";r=([0-9]+);t=([0-9]+)', answer.headers["RateLimit"]) for answer in answers]
    numbers = [(int(match[1]), int(match[2])) for match in told if match]
    assert [left for left, _ in numbers] == [1, 0, 0]
    assert all(most - 10 < reset <= most for (_, reset), most in zip(numbers, [30, 60, 60], strict=True))
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"default";q=2;w=60'}
    assert 20 < int(answers[2].headers["Retry-After"]) <= 30
    assert answers[2].json() == {"title": "Too Many Requests", "status": 429}
    assert answers[2].headers["Content-Type"] == "application/problem+json"
    assert answers[0].headers["X-Mine"] == "1"
    assert "Retry-After" not in answers[0].headers
    assert other.status_code == 200
    assert (free.status_code, "RateLimit" in free.headers) == (200, False)
    assert not any("secret" in str(key) for key in valkey.scan_iter())


async def test_a_wait_of_a_moment_is_a_retry_after_of_a_second_and_only_http_is_limited() -> None:
    asked: list[str] = []

    class Refusing:
        async def hit(self, key: str, limits: Any) -> Decision:
            asked.append(key)
            return Decision(False, Limit(100), -1, 0.003, 0.5)

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    limiter: Any = Refusing()
    wrapped = RateLimitMiddleware(app, limiter=limiter, limits=[Limit(1)], key=lambda scope: "ann")
    await wrapped({"type": "http"}, None, send)
    assert dict(sent[0]["headers"])[b"retry-after"] == b"1"
    assert dict(sent[0]["headers"])[b"ratelimit"] == b'"default";r=0;t=1'
    assert int(dict(sent[0]["headers"])[b"content-length"]) == len(sent[1]["body"])
    assert asked == ["ann"]
    await wrapped({"type": "websocket"}, None, send)
    assert asked == ["ann"]
    assert rate_headers(Decision(True, Limit(1, 0.5, 3), 2, 0.0, 0.2))[0] == (b"ratelimit-policy", b'"default";q=3;w=2')


# --- gotchas


def test_read_compute_and_write_from_two_processes_grants_more_than_the_limit(valkey: Any, make: Make) -> None:
    def naive(meanwhile: Callable[[], Any] = lambda: None) -> bool:
        used = int(valkey.get("naive") or 0)
        meanwhile()  # another process, between the read and the write
        if used >= 1:
            return False
        valkey.set("naive", used + 1)
        return True

    second: list[bool] = []
    first = naive(lambda: second.append(naive()))
    assert (first, second) == (True, [True])  # two of one

    limiter, one = make(), [Limit(1, 3600)]
    assert [limiter.hit("ann", one).allowed for _ in range(2)] == [True, False]


def test_a_sorted_set_of_timestamps_counts_hits_of_the_same_instant_once(valkey: Any) -> None:
    def naive(now: float) -> bool:
        valkey.zremrangebyscore("log", 0, now - 60)
        if int(valkey.zcard("log")) >= 100:
            return False
        valkey.zadd("log", {str(int(now * 1000)): now})
        return True

    assert sum(naive(1000.0) for _ in range(800)) == 800
    assert valkey.zcard("log") == 1


def test_incr_and_then_expire_locks_a_key_forever_when_it_stops_in_between(valkey: Any, make: Make) -> None:
    def naive(crash: bool = False) -> bool:
        used = int(valkey.incr("window"))
        if crash:
            raise ConnectionError("the process ended here")
        if used == 1:
            valkey.expire("window", 60)
        return used <= 100

    with pytest.raises(ConnectionError):
        naive(crash=True)
    for _ in range(100):
        naive()
    assert valkey.ttl("window") == -1
    assert not naive()  # today, tomorrow, next year

    make().hit("ann", [SLOW])
    assert all(int(valkey.pttl(key)) > 0 for key in valkey.scan_iter("rl:*"))


def test_the_default_client_turns_fail_open_into_fail_slow(down: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("redis.retry.sleep", waits.append)
    with contextlib.suppress(redis.RedisError), redis.Redis(port=down.port) as client:
        client.ping()
    assert len(waits) == 10
    assert sum(waits) > 1.0
    assert redis.Redis().connection_pool.connection_kwargs.get("socket_timeout", 5) == 5

    waits.clear()
    with redis_limiter_sync.connect(f"redis://127.0.0.1:{down.port}/0") as client:
        assert RedisLimiter(client).hit("ann", [SLOW]).degraded
    assert waits == []


def test_lua_cuts_fractions_and_prints_a_large_time_in_e_notation(valkey: Any) -> None:
    assert valkey.eval("return 3.99", 0) == 3
    assert "e+15" in str(valkey.eval("return tostring(1795190908182100)", 0))
    assert valkey.eval("return string.format('%.0f', 1795190908182100)", 0) == b"1795190908182100"


def test_a_key_from_x_forwarded_for_lets_the_client_choose_its_bucket(make: Make) -> None:
    limiter, one = make(), [Limit(1, 3600)]

    def naive_key(scope: dict[str, Any]) -> str:
        return str(dict(scope["headers"])[b"x-forwarded-for"].split(b",")[0].decode())

    def address(scope: dict[str, Any]) -> str:
        return str(scope["client"][0])

    scopes = [
        {"client": ("203.0.113.9", 1), "headers": [(b"x-forwarded-for", f"198.51.100.{number}".encode())]}
        for number in range(20)
    ]
    assert all(limiter.hit(f"naive {naive_key(scope)}", one).allowed for scope in scopes)
    assert [limiter.hit(address(scope), one).allowed for scope in scopes].count(True) == 1


def test_the_script_is_the_same_for_both_and_the_decision_is_plain_data(make: Make) -> None:
    assert make().inner._script.script == redis_limiter_core.LUA
    decision = Decision(True, Limit(1), 0, 0.0, 1.0)
    assert not decision.degraded
    assert json.dumps(decision.remaining) == "0"
    with pytest.raises(AttributeError):
        decision.allowed = False  # type: ignore[misc]
