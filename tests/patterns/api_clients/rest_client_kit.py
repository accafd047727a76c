"""What the proofs of rest-client share: clients of either color, a steady jitter, errors and seconds of a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from harness.clock import Clock
from harness.color import Blocking, Color
from harness.scripted import Raw, Script
from harness.tls import NOBODY
from rest_client_async import AsyncRestClient
from rest_client_sync import RestClient
from rest_policy import ApiError, RetryPolicy

TOKEN = "s3cr3t-t0ken-of-this-test"

MakeRaw = Callable[..., Raw]


def time_of_day(clock: Clock) -> float:
    """The seconds since 1970 that a client with this clock sees."""
    return clock() + 1_800_000_000


def transport_of(color: Color, **options: Any) -> Any:
    """Make a transport of a color."""
    kind: Any = color.pick(httpx2.AsyncHTTPTransport, httpx2.HTTPTransport)
    return kind(verify=NOBODY, **options)


def client_of(color: Color, base_url: str, *, clock: Clock | None = None, **options: Any) -> Blocking:
    """Make a client of a color, closed when the test is over; with a clock it does not really sleep."""
    if clock:
        sleep = color.pick(clock.asleep, clock.sleep)
        options = {"clock": clock, "sleep": sleep, "now": lambda: time_of_day(clock)} | options
    options.setdefault("transport", transport_of(color))
    kind: Any = color.pick(AsyncRestClient, RestClient)
    return Blocking(color, color.closing(kind(base_url, **options)))


def steady(**options: Any) -> RetryPolicy:
    """A policy whose jitter is always half."""
    return RetryPolicy(rng=lambda: 0.5, **options)


@pytest.fixture
def client(color: Color, scripted: Script, clock: Clock) -> Blocking:
    """A client of the scripted application that does not really sleep, and whose jitter is always half."""
    return client_of(color, f"{scripted.url}/v1", clock=clock, retry=steady())


def failure(call: Callable[[], object], kind: type[ApiError] = ApiError) -> ApiError:
    """Return the error that a call raises."""
    with pytest.raises(kind) as caught:
        call()
    return caught.value


def elapsed(call: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.monotonic()
    call()
    return time.monotonic() - begin
