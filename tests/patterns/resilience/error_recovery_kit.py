"""What the proofs of error recovery share: ways to run, scripted calls, a token server and its client."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import pytest

from error_mapping import from_exception
from error_recovery import Failure, Outcome, Recovered, Recovery, RecoveryFailed, Retry
from harness.clock import Clock
from harness.color import Color
from integration_errors import AuthenticationError, IntegrationError, RateLimited, ServiceUnavailable
from recovery_strategies import RefreshToken


class Way:
    """Runs a function through a recovery of either color, on a clock that only sleeps move."""

    def __init__(self, color: Color) -> None:
        self.color = color
        self.clock = Clock()

    def recovery(self, *strategies: Any, **settings: Any) -> Recovery:
        given: dict[str, Any] = {"clock": self.clock, "sleep": self.clock.asleep, "blocking_sleep": self.clock.sleep}
        return Recovery(strategies, **(given | settings))

    def run(self, recovery: Recovery, fn: Callable[[], Any]) -> Recovered[Any]:
        run: Any = self.color.pick(recovery.run, recovery.run_sync)
        result: Recovered[Any] = self.color.call(run, self.color.quick(fn))
        return result

    def failed(self, recovery: Recovery, fn: Callable[[], Any]) -> RecoveryFailed:
        with pytest.raises(RecoveryFailed) as raised:
            self.run(recovery, fn)
        return raised.value


def awaited(fn: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    """Return a coroutine function that does the same, after a turn of the loop."""

    async def afn() -> Any:
        await asyncio.sleep(0)
        return fn()

    return afn


class Script:
    """Raises or returns one thing after the other, the last one forever."""

    def __init__(self, *answers: Any) -> None:
        self.answers = answers
        self.calls = 0

    def __call__(self) -> Any:
        answer = self.answers[min(self.calls, len(self.answers) - 1)]
        self.calls += 1
        if isinstance(answer, BaseException):
            raise answer
        return answer


def refused(token: str = "old") -> AuthenticationError:
    return AuthenticationError("refused", status=401, context={"version": token})


def limited(seconds: float | None) -> RateLimited:
    return RateLimited("slow down", status=429, retry_after=seconds)


DOWN = ServiceUnavailable("down", status=503)


def version_of(err: IntegrationError) -> object:
    return err.context["version"]


AGAIN = Retry()


class Repair:
    """A strategy of a reader's own."""

    def __init__(self, outcome: Outcome | Exception = AGAIN, *, budget: int = 1, on: object = Exception) -> None:
        self.outcome = outcome
        self.budget = budget
        self.on = on
        self.attempts: list[int] = []

    def handles(self, err: Failure) -> bool:
        return isinstance(err, self.on) if isinstance(self.on, type) else bool(self.on)

    async def recover(self, err: Failure, attempt: int) -> Outcome:
        self.attempts.append(attempt)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class First(Repair):
    pass


class Second(Repair):
    pass


# -- a token server with rotating refresh tokens, and an API


class Provider:
    """Hands out a new pair of tokens for each refresh token, once. A second use revokes them all (RFC 9700, 4.14)."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.number = 1
        self.refreshes = 0
        self.calls = 0
        self.revoked = False
        self.demands: list[int] = []
        self.together = 0  # how many calls wait for each other
        self.all_here = asyncio.Event()

    @property
    def access(self) -> str:
        return f"Bearer access-{self.number}"

    def refresh(self, token: str) -> str | None:
        with self.lock:
            self.refreshes += 1
            if self.revoked or token != f"refresh-{self.number}":
                self.revoked = True
                return None
            self.number += 1
            return f"refresh-{self.number}"

    def expire(self) -> None:
        self.number += 1

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        if scope["path"] == "/token":
            token = self.refresh(headers["x-refresh"])
            status, body = (200, token or "") if token else (401, "")
        else:
            self.calls += 1
            if self.calls <= self.together:
                if self.calls == self.together:
                    self.all_here.set()
                await self.all_here.wait()
            status = self.demands.pop(0) if self.demands else 200
            if self.revoked or headers.get("authorization") != self.access:
                status = 401
            body = f"data {self.number}"
        answer = [(b"connection", b"close"), (b"retry-after", b"2"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": answer})
        await send({"type": "http.response.body", "body": body.encode()})


class Client:
    """A reader's client of the provider: keeps both tokens, maps failures."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.access = "Bearer access-0"
        self.token = "refresh-1"
        self.http = httpx2.Client(base_url=url)
        self.ahttp = httpx2.AsyncClient(base_url=url, limits=httpx2.Limits(max_connections=100))

    def _data(self, answer: httpx2.Response) -> str:
        try:
            return answer.raise_for_status().text
        except Exception as exc:
            raise from_exception(exc, service="api") from exc

    def _keep(self, answer: httpx2.Response) -> str:
        if answer.status_code != 200:
            raise AuthenticationError("log in again", status=401)
        self.token = answer.text
        self.access = f"Bearer access-{self.token.removeprefix('refresh-')}"
        return self.access

    def get(self) -> str:
        return self._data(self.http.get("/data", headers={"Authorization": self.access}))

    async def aget(self) -> str:
        return self._data(await self.ahttp.get("/data", headers={"Authorization": self.access}))

    def refresh(self) -> str:
        return self._keep(self.http.post("/token", headers={"X-Refresh": self.token}))

    async def arefresh(self) -> str:
        return self._keep(await self.ahttp.post("/token", headers={"X-Refresh": self.token}))

    def run(self, way: Way, recovery: Recovery) -> Recovered[str]:
        run: Any = way.color.pick(recovery.run, recovery.run_sync)
        result: Recovered[str] = way.color.call(run, self.aget if way.color.is_async else self.get)
        return result

    def strategy(self, way: Way) -> RefreshToken:
        return RefreshToken(self.arefresh if way.color.is_async else self.refresh, sent)


def sent(err: IntegrationError) -> str:
    """Tell the token that a failed call had sent."""
    assert isinstance(err.__cause__, httpx2.HTTPStatusError)
    return err.__cause__.request.headers["authorization"]
