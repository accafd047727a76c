"""Proves docs/patterns/resilience/circuit-breaker.md: threads, signals, real HTTP servers, any sequence of events."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import signal
import threading
import time
import types
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from circuit_breaker import CircuitBreaker, CircuitOpen
from harness.clock import Clock
from harness.depth import examples
from harness.waiting import at_once, each_at_once, in_thread
from servers._process import free_port
from servers.faults import FaultProxy
from servers.http import Uvicorn


def answer() -> str:
    return "answer"


def fail() -> str:
    raise ConnectionError("down")


# -- threads and signals


def test_eight_threads_lose_no_count_while_the_state_is_read(clock: Clock) -> None:
    breaker = CircuitBreaker("test", min_calls=10**6, clock=clock)
    done = threading.Event()

    def hammer(number: int) -> None:
        for turn in range(500):
            with contextlib.suppress(ConnectionError):
                breaker.call(fail if turn % 4 == number % 4 else answer)

    def read() -> int:
        reads = 0
        while not done.is_set():
            seen = breaker.snapshot()
            assert breaker.state == seen.state == "closed"
            assert 0 <= seen.failures <= seen.calls <= 4000
            reads += 1
        return reads

    reader = in_thread(read)
    assert each_at_once(hammer, range(8)) == [None] * 8
    done.set()
    assert reader.result(20) > 0
    assert (breaker.snapshot().calls, breaker.snapshot().failures) == (4000, 1000)


def test_eight_threads_that_open_and_close_it_see_only_changes_that_exist() -> None:
    changes: list[tuple[str, str]] = []
    breaker = CircuitBreaker(
        "test",
        min_calls=2,
        open_for=1e-6,
        on_change=lambda name, before, after: changes.append((before, after)),
    )

    def hammer(number: int) -> None:
        coin = random.Random(number)
        for _ in range(300):
            with contextlib.suppress(ConnectionError, CircuitOpen):
                breaker.call(coin.choice([answer, fail]))
            seen = breaker.snapshot()
            assert 0 <= seen.failures <= seen.calls
            assert seen.state in ("closed", "open", "half_open")

    assert each_at_once(hammer, range(8)) == [None] * 8
    assert set(changes) == {
        ("closed", "open"),
        ("open", "half_open"),
        ("half_open", "open"),
        ("half_open", "closed"),
    }
    moved = {state: [before for before, _ in changes].count(state) for state, _ in changes}
    assert abs(moved["open"] - moved["half_open"]) <= 1


def test_one_thread_at_a_time_changes_the_state() -> None:
    inside, overlaps = 0, 0

    def clock() -> float:  # read under the lock, so never by two threads at once
        nonlocal inside, overlaps
        inside += 1
        overlaps += inside > 1
        time.sleep(0.0002)
        inside -= 1
        return 0.0

    breaker = CircuitBreaker("test", min_calls=8, failure_rate=0.4, clock=clock)

    def hammer() -> None:
        for fn in (answer, answer, answer, fail, fail, answer, fail, fail, answer):
            with contextlib.suppress(ConnectionError, CircuitOpen):
                breaker.call(fn)
            breaker.snapshot()

    assert at_once(4, hammer) == [None] * 4
    assert breaker.state == "open"
    assert overlaps == 0


def test_a_caller_who_finds_the_breaker_just_closed_is_no_probe(clock: Clock) -> None:
    breaker = CircuitBreaker("test", clock=clock)
    breaker.force_open()

    def late() -> None:
        with contextlib.suppress(ConnectionError):
            breaker.call(fail)

    with breaker._lock:
        caller = in_thread(late)
        time.sleep(0.03)  # it saw the breaker open, and waits for the lock
        breaker.reset()
    caller.result(20)
    assert (breaker.state, breaker.snapshot().calls) == ("closed", 1)


def test_a_signal_handler_may_use_the_breaker_whose_lock_its_thread_holds() -> None:
    seen: list[str] = []
    now = 0.0

    def clock() -> float:
        if not seen:
            seen.append("in the handler")
            signal.raise_signal(signal.SIGUSR1)
        return now

    breaker = CircuitBreaker("test", clock=clock)
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(breaker.snapshot().state))
    try:
        assert breaker.call(answer) == "answer"
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == ["in the handler", "closed"]


# -- over real HTTP


class Upstream:
    """An HTTP server that is fast, slow, failing or missing pages, as `mode` says."""

    def __init__(self) -> None:
        self.mode = "fast"
        self.reached = 0
        self.server = Uvicorn(self.app, interface="asgi3")

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.reached += 1
        while self.mode == "slow" and (await receive())["type"] != "http.disconnect":
            pass  # no answer until the client gives up
        status = {"failing": 503, "missing": 404}.get(self.mode, 200)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"answer"})


@pytest.fixture(scope="module")
def one_upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.server.stop()


@pytest.fixture
def upstream(one_upstream: Upstream) -> Upstream:
    one_upstream.mode, one_upstream.reached = "fast", 0
    return one_upstream


def is_down(error: Exception) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx2.TransportError)


Get = Callable[..., Awaitable[str]]


@pytest.fixture(params=["sync", "async"])
async def get(request: pytest.FixtureRequest) -> AsyncIterator[Get]:
    with httpx2.Client() as client:
        async with httpx2.AsyncClient() as aclient:

            def fetch(url: str, limits: httpx2.Timeout) -> str:
                return client.get(url, timeout=limits).raise_for_status().text

            async def afetch(url: str, limits: httpx2.Timeout) -> str:
                return (await aclient.get(url, timeout=limits)).raise_for_status().text

            async def get(breaker: CircuitBreaker, url: str, patience: float = 10.0) -> str:
                limits = httpx2.Timeout(10, read=patience)
                if request.param == "async":
                    return await breaker.acall(afetch, url, limits)
                return await asyncio.to_thread(breaker.call, fetch, url, limits)

            yield get


@pytest.mark.parametrize(("mode", "error"), [("failing", httpx2.HTTPStatusError), ("slow", httpx2.ReadTimeout)])
async def test_a_server_that_fails_or_is_slow_is_left_alone_and_found_again(
    get: Get, upstream: Upstream, clock: Clock, mode: str, error: type[Exception]
) -> None:
    breaker = CircuitBreaker("http", min_calls=5, counts=is_down, clock=clock)
    url = upstream.server.url
    assert await get(breaker, url) == "answer"
    breaker.reset()
    upstream.mode, upstream.reached = mode, 0
    for _ in range(5):
        with pytest.raises(error):
            await get(breaker, url, 0.03 if mode == "slow" else 10)
    for _ in range(5):
        with pytest.raises(CircuitOpen):
            await get(breaker, url)
    while upstream.reached < 5:  # the server may learn of a request after its client gave up
        await asyncio.sleep(0.01)
    assert upstream.reached == 5
    clock.now += 30
    upstream.mode = "fast"
    assert await get(breaker, url) == "answer"
    assert (breaker.state, upstream.reached) == ("closed", 6)


async def test_a_server_that_refuses_connections_opens_it_and_is_found_again(
    get: Get, upstream: Upstream, fault_proxy: type[FaultProxy], clock: Clock
) -> None:
    nobody = CircuitBreaker("nobody", min_calls=5, counts=is_down, clock=clock)
    for _ in range(5):
        with pytest.raises(httpx2.ConnectError):
            await get(nobody, f"http://127.0.0.1:{free_port()}")
    assert nobody.state == "open"

    proxy = fault_proxy("127.0.0.1", upstream.server.port)
    url = f"http://127.0.0.1:{proxy.port}"
    breaker = CircuitBreaker("reset", min_calls=5, counts=is_down, clock=clock)
    proxy.refuse = True
    for _ in range(5):
        with pytest.raises(httpx2.TransportError):
            await get(breaker, url)
    with pytest.raises(CircuitOpen):
        await get(breaker, url)
    assert (proxy.accepted, upstream.reached) == (5, 0)
    proxy.heal()
    clock.now += 30
    assert await get(breaker, url) == "answer"
    assert breaker.state == "closed"


async def test_a_server_that_answers_404_is_alive_but_counting_every_error_calls_it_down(
    get: Get, upstream: Upstream, clock: Clock
) -> None:
    breaker = CircuitBreaker("http", min_calls=3, counts=is_down, clock=clock)
    naive = CircuitBreaker("naive", min_calls=3, clock=clock)
    upstream.mode = "missing"
    for _ in range(3):
        for each in (breaker, naive):
            with pytest.raises(httpx2.HTTPStatusError):
                await get(each, upstream.server.url)
    assert naive.state == "open"
    assert (breaker.state, breaker.snapshot().failures, upstream.reached) == ("closed", 0, 6)


async def test_a_server_that_comes_back_meets_one_request_of_a_crowd(
    get: Get, upstream: Upstream, clock: Clock
) -> None:
    breaker = CircuitBreaker("http", min_calls=1, counts=is_down, clock=clock)
    upstream.mode = "failing"
    with pytest.raises(httpx2.HTTPStatusError):
        await get(breaker, upstream.server.url)
    upstream.mode, upstream.reached = "failing", 0
    clock.now += 30
    results = await asyncio.gather(*(get(breaker, upstream.server.url) for _ in range(50)), return_exceptions=True)
    assert upstream.reached == 1
    assert sorted(type(result).__name__ for result in results) == (["CircuitOpen"] * 49 + ["HTTPStatusError"])
    assert breaker.state == "open"


# -- any sequence of events, against a model


@types.coroutine
def until_told() -> Generator[None, str, str]:
    return (yield)


class IgnoredError(Exception):
    """Proof of life."""


class Machine(RuleBasedStateMachine):
    """Calls that begin and end in any order, on whole seconds, where the window is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.changes: list[tuple[str, str]] = []
        self.expected: list[tuple[str, str]] = []
        self.state = "closed"
        self.period = 0
        self.until = 0.0
        self.successes = 0
        self.probes = 0
        self.outcomes: list[tuple[float, bool]] = []
        self.running: list[tuple[int, Coroutine[Any, Any, str], contextvars.Context]] = []

    @initialize(min_calls=st.integers(1, 5), half_open_max=st.integers(1, 3), close_after=st.integers(1, 3))
    def make(self, min_calls: int, half_open_max: int, close_after: int) -> None:
        self.min_calls, self.half_open_max, self.close_after = min_calls, half_open_max, close_after
        self.breaker = CircuitBreaker(
            "model",
            window=10,
            open_for=5,
            min_calls=min_calls,
            half_open_max=half_open_max,
            close_after=close_after,
            counts=lambda error: not isinstance(error, IgnoredError),
            on_change=lambda name, before, after: self.changes.append((before, after)),
            clock=self.clock,
        )

    def enter(self, state: str, until: float = 0.0) -> None:
        if state != self.state:
            self.expected.append((self.state, state))
        self.state, self.period, self.until = state, self.period + 1, until
        self.successes, self.probes, self.outcomes = 0, 0, []

    def begin(self) -> bool:
        context, call = contextvars.copy_context(), self.breaker.acall(until_told)
        refusal: CircuitOpen | None = None
        try:
            context.run(call.send, None)
        except CircuitOpen as error:
            refusal = error
        if refusal:
            assert self.state == "open" or self.probes >= self.half_open_max
            left = 5 if self.until == float("inf") else self.until - self.clock.now
            assert refusal.retry_after == left > 0
            return False
        if self.state == "open":
            assert self.clock.now >= self.until
            self.enter("half_open")
        if self.state == "half_open":
            assert self.probes < self.half_open_max or self.clock.now >= self.until
            self.probes += 1
            self.until = self.clock.now + 5
        self.running.append((self.period, call, context))
        return True

    def end(self, number: int, outcome: BaseException | None) -> None:
        period, call, context = self.running.pop(number)
        if outcome is None:
            with pytest.raises(StopIteration, match="answer"):
                context.run(call.send, "answer")
        else:
            with pytest.raises(type(outcome)) as raised:
                context.run(call.throw, outcome)
            assert raised.value is outcome
        if period != self.period:
            return
        silent, failed = isinstance(outcome, asyncio.CancelledError), isinstance(outcome, OSError)
        if self.state == "half_open":
            self.probes -= 1
            if failed:
                self.enter("open", self.clock.now + 5)
            elif not silent:
                self.successes += 1
                if self.successes == self.close_after:
                    self.enter("closed")
        elif not silent:
            self.outcomes.append((self.clock.now, failed))
            failures = [failed for _, failed in self.counted()].count(True)
            if len(self.counted()) >= self.min_calls and 2 * failures >= len(self.counted()):
                self.enter("open", self.clock.now + 5)

    def counted(self) -> list[tuple[float, bool]]:
        return [(when, failed) for when, failed in self.outcomes if self.clock.now - when <= 10]

    OUTCOMES = st.sampled_from([None, None, OSError, OSError, IgnoredError, asyncio.CancelledError])

    @rule()
    def a_call_begins(self) -> None:
        self.begin()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=OUTCOMES)
    def a_call_ends(self, data: st.DataObject, outcome: type[BaseException] | None) -> None:
        number = data.draw(st.integers(0, len(self.running) - 1))
        self.end(number, outcome() if outcome else None)

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=5))
    def calls_begin_and_end(self, outcomes: list[type[BaseException] | None]) -> None:
        for outcome in outcomes:
            if self.begin():
                self.end(-1, outcome() if outcome else None)

    @rule(seconds=st.sampled_from([1, 2, 4, 5, 10, 11]))
    def time_passes(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule()
    def an_operator_opens_it(self) -> None:
        self.breaker.force_open()
        self.enter("open", float("inf"))

    @rule()
    def an_operator_closes_it(self) -> None:
        self.breaker.reset()
        self.enter("closed")

    @invariant()
    def breaker_and_model_agree(self) -> None:
        if not hasattr(self, "breaker"):
            return
        seen = self.breaker.snapshot()
        assert seen.state == self.breaker.state == self.state
        assert seen.calls == len(self.counted())
        assert seen.failures == [failed for _, failed in self.counted()].count(True)
        assert self.changes == self.expected

    def teardown(self) -> None:
        for _, call, context in self.running:
            context.run(call.close)


Machine.TestCase.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)


def test_any_sequence_of_calls_ends_and_waits_leaves_the_state_that_a_model_predicts() -> None:
    Machine.TestCase().runTest()
