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
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import stamina
import tenacity

from harness.clock import Clock
from harness.scripted import Answer, Script
from harness.tls import NOBODY
from patterns.resilience.retry_backoff_kit import ATTEMPTS, BASE, BEFORE, CAP, CLIENTS, crowds, instants
from retry_backoff import RetryPolicy, aretry, retry, retrying


def failing() -> None:
    raise ConnectionError


# --- jitter


def test_without_jitter_a_hundred_clients_return_in_one_instant_and_here_spread_out() -> None:
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


# --- forever, and in disguise


def test_a_bare_tenacity_retry_repeats_forever_without_waiting_and_a_policy_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, pauses = 0, list[float]()
    monkeypatch.setattr("tenacity.nap.time.sleep", pauses.append)

    def down() -> None:
        nonlocal calls
        calls += 1
        if calls == 5000:
            raise KeyboardInterrupt  # somebody has to
        raise ConnectionError

    with pytest.raises(KeyboardInterrupt):
        tenacity.retry(down)()
    assert set(pauses) == {0}

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


def test_a_deadline_checked_after_the_wait_is_passed_by_it_and_here_it_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit, wait, clock = 10.0, 8.0, Clock(0.0)
    monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=clock))
    stop, pauses = tenacity.stop_after_delay(limit), tenacity.wait_fixed(wait)
    with pytest.raises(ConnectionError):
        tenacity.retry(stop=stop, wait=pauses, sleep=clock.sleep, reraise=True)(failing)()
    assert clock.now == 2 * wait  # of the 10 s allowed

    clock = Clock()
    policy = RetryPolicy(base=wait, cap=wait, max_elapsed=limit, rng=lambda: 1.0, clock=clock, sleep=clock.sleep)
    with pytest.raises(ConnectionError):
        retry(policy, failing)
    assert clock.pauses == [wait]


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
    await asyncio.wait([ours])
    assert ours.cancelled()
    for _ in range(10):  # turns of the loop in which it could end
        await asyncio.sleep(0)
    assert not naive.done()
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


def answers(script: Script, *told: tuple[int, dict[str, str]]) -> str:
    """Have a server answer with these (status, headers) in turn, then 200 forever; return its address."""
    script.answer(*(Answer(status, headers=headers) for status, headers in told), Answer(200, b"fine"))
    return script.url


def http_policy(waits: list[float], **more: Any) -> RetryPolicy:
    return RetryPolicy(retry_on=worth_repeating, retry_after=retry_after, sleep=waits.append, **more)


def test_a_server_that_fails_twice_is_asked_three_times(scripted: Script) -> None:
    waits: list[float] = []
    url = answers(scripted, (503, {}), (502, {}))
    with httpx2.Client(verify=NOBODY) as client:
        answer = retry(http_policy(waits), lambda: client.get(url).raise_for_status().text)
    assert (answer, len(scripted.seen), len(waits)) == ("fine", 3, 2)


def test_a_404_is_asked_once(scripted: Script) -> None:
    waits: list[float] = []
    url = answers(scripted, (404, {}))
    with httpx2.Client(verify=NOBODY) as client, pytest.raises(httpx2.HTTPStatusError, match="404"):
        retry(http_policy(waits), lambda: client.get(url).raise_for_status())
    assert (len(scripted.seen), waits) == (1, [])


def test_both_forms_of_a_real_retry_after_header_are_waited_for(scripted: Script) -> None:
    waits: list[float] = []
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2000)
    forms = {"Retry-After": "3"}, {"Retry-After": email.utils.format_datetime(at, usegmt=True)}
    url = answers(scripted, (429, forms[0]), (503, forms[1]), (503, {"Retry-After": "soon"}))
    policy = http_policy(waits, rng=lambda: 0.0, max_elapsed=math.inf)
    with httpx2.Client(verify=NOBODY) as client:
        retry(policy, lambda: client.get(url).raise_for_status())
    assert len(scripted.seen) == 4
    assert waits[0] == 3.0
    assert 1000 < waits[1] <= 2000
    assert waits[2] == 0.0


def test_a_429_that_asks_for_a_year_is_not_waited_for_and_not_asked_again(scripted: Script) -> None:
    waits: list[float] = []
    url = answers(scripted, *[(429, {"Retry-After": "31536000"})] * 9)
    with httpx2.Client(verify=NOBODY) as client:
        for asked in range(1, 4):
            with pytest.raises(httpx2.HTTPStatusError) as failure:
                retry(http_policy(waits), lambda: client.get(url).raise_for_status())
            assert len(scripted.seen) == asked
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

        retry(RetryPolicy(base=0.001, max_elapsed=math.inf), connect)
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
