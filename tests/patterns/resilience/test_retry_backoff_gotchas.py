"""Proves docs/patterns/resilience/retry-backoff.md: what naive retries do, seen to fail, and real servers."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import itertools
import math
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
import stamina
import tenacity

from bench.resilience.retry_backoff import ATTEMPTS, BASE, BEFORE, CAP, CLIENTS, crowds, instants
from retry_backoff import RetryPolicy, aretry, retry, retrying
from servers.http import Uvicorn


def failing() -> None:
    raise ConnectionError


# --- jitter


def test_without_jitter_a_hundred_clients_return_in_the_same_instant_and_with_it_they_are_spread() -> None:
    naive, ours = instants("no jitter"), instants("full jitter (this pattern)")
    assert len({tuple(client) for client in naive}) == 1  # all hundred, every time
    assert max(crowds("no jitter")) == CLIENTS
    assert len({tuple(client) for client in ours}) == CLIENTS
    assert max(crowds("full jitter (this pattern)")) < CLIENTS / 5


def test_the_plot_is_drawn_from_the_waits_of_the_module() -> None:
    rng, module = random.Random(2026), list[list[float]]()
    for _ in range(CLIENTS):
        shares, waits = [rng.random() for _ in range(ATTEMPTS)], list[float]()
        draw = iter([0.0] * BEFORE + shares).__next__
        policy = RetryPolicy(attempts=BEFORE + ATTEMPTS + 1, base=BASE, cap=CAP, rng=draw, sleep=waits.append)
        with pytest.raises(ConnectionError):
            retry(policy, failing)
        module.append(list(itertools.accumulate(waits[BEFORE:])))
    assert module == instants("full jitter (this pattern)")


def test_jitter_that_is_added_before_clamping_is_gone_at_the_cap_and_here_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    fetch = stamina.retry(on=ConnectionError, attempts=8, timeout=None, wait_initial=0.1, wait_max=2.0)(failing)
    for _ in range(CLIENTS):
        with pytest.raises(ConnectionError):
            fetch()
    last_waits = waits[6::7]  # of every client
    assert last_waits == [2.0] * CLIENTS
    assert len(set(waits[0::7])) > 90  # the first were spread

    ours = [RetryPolicy(base=0.1, cap=2.0).backoff(7) for _ in range(CLIENTS)]
    assert len(set(ours)) == CLIENTS
    assert max(crowds("jitter added, then clamped")) == CLIENTS  # and so it stands in the plot


# --- for ever, and in disguise


def test_a_bare_tenacity_retry_repeats_for_ever_without_waiting_and_a_bare_policy_does_not() -> None:
    calls = 0

    def down() -> None:
        nonlocal calls
        calls += 1
        if calls == 5000:
            raise KeyboardInterrupt  # somebody has to
        raise ConnectionError

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        tenacity.retry(down)()
    assert time.monotonic() - begun < 20  # that is no wait at all: ours would be hours

    calls, waits = 0, list[float]()
    with pytest.raises(ConnectionError):
        retry(RetryPolicy(sleep=waits.append), down)
    assert (calls, len(waits)) == (5, 4)


def test_tenacity_raises_an_error_of_its_own_where_the_policy_raises_yours() -> None:
    with pytest.raises(tenacity.RetryError) as failure:
        tenacity.retry(stop=tenacity.stop_after_attempt(2))(failing)()
    assert not isinstance(failure.value, ConnectionError)  # so your `except ConnectionError` misses it

    with pytest.raises(ConnectionError):
        retry(RetryPolicy(attempts=2, base=0, cap=0), failing)


def test_a_deadline_that_is_checked_after_the_wait_is_passed_by_it_and_here_it_is_not() -> None:
    limit, wait = 0.1, 0.08
    naive = tenacity.retry(stop=tenacity.stop_after_delay(limit), wait=tenacity.wait_fixed(wait), reraise=True)
    begun = time.monotonic()
    with pytest.raises(ConnectionError):
        naive(failing)()
    assert time.monotonic() - begun >= 2 * wait  # of the 0.1 s allowed

    now, waits = 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        waits.append(seconds)

    policy = RetryPolicy(base=wait, cap=wait, max_elapsed=limit, rng=lambda: 1.0, clock=lambda: now, sleep=sleep)
    with pytest.raises(ConnectionError):
        retry(policy, failing)
    assert waits == [wait]


def test_a_decorator_that_calls_but_does_not_wait_for_the_result_retries_nothing() -> None:
    calls = 0

    async def fetch() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError

    def lines() -> Iterator[str]:
        nonlocal calls
        calls += 1
        raise ConnectionError
        yield ""

    three = tenacity.retry(stop=tenacity.stop_after_attempt(3))
    with pytest.raises(ConnectionError):  # not even a RetryError: it saw no failure
        asyncio.run(three(lambda: fetch())())
    assert calls == 1
    with pytest.raises(ConnectionError):
        list(three(lines)())
    assert calls == 2

    anything: Callable[..., Any] = retrying(RetryPolicy())  # types would have told
    with pytest.raises(TypeError, match="returned coroutine, which has not run yet"):
        anything(lambda: fetch())()
    with pytest.raises(TypeError, match=r"lines.* is a generator function"):
        anything(lines)
    assert calls == 2


async def test_retrying_every_base_exception_swallows_a_cancel_and_here_it_ends_the_task() -> None:
    async def naive_retry(fn: Callable[[], Any]) -> None:
        for _ in range(3):
            try:
                await fn()
            except BaseException:
                await asyncio.sleep(0)

    async def hang() -> None:
        await asyncio.Event().wait()

    policy = RetryPolicy(retry_on=lambda error: True, base=0, cap=0)
    naive = asyncio.create_task(naive_retry(hang))
    ours = asyncio.create_task(aretry(policy, hang))
    await asyncio.sleep(0)
    for task in (naive, ours):
        task.cancel()
    done, running = await asyncio.wait([naive, ours], timeout=0.05)
    assert (done, running) == ({ours}, {naive})
    assert ours.cancelled()
    while not naive.done():  # it takes three
        naive.cancel()
        await asyncio.sleep(0)


def test_a_retry_at_every_layer_multiplies_and_a_budget_bounds_it() -> None:
    calls = 0

    def bottom() -> None:
        nonlocal calls
        calls += 1
        raise ConnectionError

    policy = RetryPolicy(attempts=3, base=0, cap=0)
    middle = retrying(policy)(bottom)
    with pytest.raises(ConnectionError):
        retry(policy, retrying(policy)(middle))
    assert calls == 27  # three layers of three

    calls = 0
    with pytest.raises(ConnectionError):
        retry(RetryPolicy(attempts=1), retrying(RetryPolicy(attempts=1))(middle))
    assert calls == 3  # one layer retries


# --- real servers


def retry_after(error: Exception) -> float | None:
    """Return the seconds that a 429 or 503 asks to wait, from either form of the header."""
    if not isinstance(error, httpx2.HTTPStatusError):
        return None
    value = error.response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return float(value)
    with contextlib.suppress(ValueError):
        at = email.utils.parsedate_to_datetime(value)
        return (at - datetime.datetime.now(at.tzinfo)).total_seconds()
    return None


def worth_repeating(error: Exception) -> bool:
    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in {429, 502, 503, 504}
    return isinstance(error, httpx2.TransportError)


class Server:
    """Answers with these (status, headers) in turn, then 200 for ever."""

    def __init__(self, *answers: tuple[int, dict[str, str]]) -> None:
        self.answers, self.requests = list(answers), 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.requests += 1
        status, headers = self.answers.pop(0) if self.answers else (200, {})
        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": b"fine"})


@contextlib.contextmanager
def serving(*answers: tuple[int, dict[str, str]]) -> Iterator[tuple[Server, str]]:
    server = Server(*answers)
    uvicorn = Uvicorn(server, lifespan="off")
    try:
        yield server, uvicorn.url
    finally:
        uvicorn.stop()


def http_policy(waits: list[float], **more: Any) -> RetryPolicy:
    return RetryPolicy(retry_on=worth_repeating, retry_after=retry_after, sleep=waits.append, **more)


def test_a_server_that_fails_twice_is_asked_three_times() -> None:
    waits: list[float] = []
    with serving((503, {}), (502, {})) as (server, url), httpx2.Client() as client:
        answer = retry(http_policy(waits), lambda: client.get(url).raise_for_status().text)
    assert (answer, server.requests, len(waits)) == ("fine", 3, 2)


def test_a_404_is_asked_once() -> None:
    waits: list[float] = []
    with serving((404, {})) as (server, url), httpx2.Client() as client:
        with pytest.raises(httpx2.HTTPStatusError, match="404"):
            retry(http_policy(waits), lambda: client.get(url).raise_for_status())
        assert (server.requests, waits) == (1, [])


def test_both_forms_of_a_real_retry_after_header_are_waited_for() -> None:
    waits: list[float] = []
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=20)
    forms = {"Retry-After": "3"}, {"Retry-After": email.utils.format_datetime(at, usegmt=True)}
    with serving((429, forms[0]), (503, forms[1]), (503, {"Retry-After": "soon"})) as (server, url):
        with httpx2.Client() as client:
            retry(http_policy(waits, rng=lambda: 0.0), lambda: client.get(url).raise_for_status())
        assert server.requests == 4
    assert waits[0] == 3.0
    assert 10 < waits[1] <= 20
    assert waits[2] == 0.0


def test_a_429_that_asks_for_a_year_is_not_waited_for_and_not_asked_again() -> None:
    waits: list[float] = []
    with serving(*[(429, {"Retry-After": "31536000"})] * 9) as (server, url), httpx2.Client() as client:
        for asked in range(1, 4):
            with pytest.raises(httpx2.HTTPStatusError) as failure:
                retry(http_policy(waits), lambda: client.get(url).raise_for_status())
            assert server.requests == asked
            assert "would pass max_elapsed" in failure.value.__notes__[0]
    assert waits == []


def test_a_refused_connection_is_tried_again_until_somebody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # the port is taken, and nobody listens
        address = bound.getsockname()
        tries = 0

        def connect() -> None:
            nonlocal tries
            tries += 1
            if tries == 3:
                bound.listen()
            socket.create_connection(address, timeout=5).close()

        retry(RetryPolicy(base=0.001), connect)
        assert tries == 3
        with pytest.raises(ConnectionRefusedError) as failure:
            retry(RetryPolicy(attempts=2, base=0), lambda: socket.create_connection((address[0], 1), timeout=5))
    assert failure.value.__notes__[0].startswith("attempt 2 of 2, ")


def test_a_real_wait_is_waited_for() -> None:
    calls = 0

    def twice() -> int:
        nonlocal calls
        calls += 1
        if calls < 2:
            raise TimeoutError
        return calls

    policy = RetryPolicy(base=0.05, rng=lambda: 1.0, max_elapsed=math.inf)
    begun = time.monotonic()
    assert retry(policy, twice) == 2
    assert time.monotonic() - begun >= 0.05
    calls, begun = 0, time.monotonic()

    async def atwice() -> int:
        return twice()

    assert asyncio.run(aretry(policy, atwice)) == 2
    assert time.monotonic() - begun >= 0.04  # a loop's clock is coarser
