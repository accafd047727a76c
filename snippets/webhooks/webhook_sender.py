"""Send webhooks to addresses that customers chose: signed, bounded, retried, never redirected.

The signature comes from a `sign` of Standard Webhooks 1.0.0 that you hand in, and the connection
from a client that guards addresses: this module refuses any other.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import httpx2

from sender_policy import EndpointUrlRefused, Uniform, check_url, next_delay, seconds_of

logger = logging.getLogger(__name__)

READ, KEPT = 65_536, 1_024  # bytes of an answer


class Outcome(enum.Enum):
    """What became of a delivery after an attempt."""

    DELIVERED = "delivered"
    WAITING = "waiting"  # failed, and due again
    EXHAUSTED = "exhausted"  # failed for the last time
    GONE = "gone"  # answered 410: nothing is to be sent there any more
    REFUSED = "refused"  # the address was refused, and nothing was sent


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a customer wants events. `secrets`: keys of 24 bytes or more, the newest first."""

    id: str
    url: str = field(repr=False)  # its path may be a capability
    secrets: Sequence[bytes] = field(repr=False)
    enabled: bool = True


@dataclass(frozen=True, slots=True)
class Message:
    """An event. `id` is the same in every attempt and for every endpoint; `body` is JSON."""

    id: str
    type: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt: the answer's status, if there was one, and when the next is, if there is one.

    `excerpt` is the beginning of the answer, or the class of the error: for the customer's log.
    """

    status: int | None
    outcome: Outcome
    retry_at: float | None
    excerpt: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that this worker, and no other, is to attempt now, for the `n`-th time."""

    endpoint: Endpoint
    message: Message
    n: int


class DeliveryLog(Protocol):
    """Keeps what is due and what happened. Times are seconds since 1970."""

    async def claim(self, limit: int, *, now: float, lease: float) -> Sequence[Due]:
        """Return what is due, and give it to nobody else for `lease` seconds."""
        ...

    async def record(self, due: Due, attempt: Attempt, *, now: float) -> bool:
        """Keep the attempt. True: the endpoint has been disabled now, and was not before."""
        ...


class Sign(Protocol):
    """Makes the three headers of Standard Webhooks."""

    def __call__(
        self, body: bytes, secrets: Sequence[bytes], *, msg_id: str, timestamp: int
    ) -> dict[str, str]:
        """Raise, rather than sign with nothing."""
        ...


class WebhookSender:
    """Attempts deliveries, one by one or all that are due.

    Args:
        http: A client whose `guards_addresses` is True, for nothing but this: no credentials in it.
        log: Keeps what is due.
        sign: Makes the headers.
        timeout: For one attempt, in seconds, from the first lookup to the last byte.
        user_agent: Tells customers who sends.
        disabled: Called once when an endpoint is disabled: tell its owner.
        clock: Seconds since 1970.
        rng: Draws the jitter.

    Raises:
        ValueError: The client has no guard, obeys proxies of the environment, or has credentials;
            or the timeout is not above 0.
    """

    def __init__(
        self,
        http: httpx2.AsyncClient,
        log: DeliveryLog,
        sign: Sign,
        *,
        timeout: float = 15.0,
        user_agent: str = "Webhooks/1.0",
        disabled: Callable[[Endpoint], Awaitable[object]] | None = None,
        clock: Callable[[], float] = time.time,
        rng: Uniform = random.uniform,
    ) -> None:
        if getattr(http, "guards_addresses", None) is not True:
            raise ValueError(
                "the client does not guard addresses: customers could reach your network"
            )
        if http.trust_env:
            raise ValueError(
                "the client obeys HTTPS_PROXY, past its guard: make it with trust_env=False"
            )
        if http.auth or {"authorization", "cookie"} & set(http.headers):
            raise ValueError("the client would send its credentials to customers")
        if not (_is_number(timeout) and timeout > 0):
            raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")
        self._http = http
        self._log = log
        self._sign = sign
        self._timeout = timeout
        self._disabled = disabled
        self._clock = clock
        self._rng = rng
        self._headers = {
            "content-type": "application/json",
            "user-agent": user_agent,
            "accept-encoding": "identity",
        }

    @classmethod
    def from_env(
        cls,
        http: httpx2.AsyncClient,
        log: DeliveryLog,
        sign: Sign,
        *,
        disabled: Callable[[Endpoint], Awaitable[object]] | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> WebhookSender:
        """Read WEBHOOK_SENDER_TIMEOUT and WEBHOOK_USER_AGENT; ValueError for a bad timeout."""
        text = environ.get("WEBHOOK_SENDER_TIMEOUT") or "15"
        if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]+)?", text):
            raise ValueError(f"WEBHOOK_SENDER_TIMEOUT must be a number of seconds, got {text!r}")
        agent = environ.get("WEBHOOK_USER_AGENT") or "Webhooks/1.0"
        return cls(http, log, sign, timeout=float(text), user_agent=agent, disabled=disabled)

    async def attempt(self, endpoint: Endpoint, message: Message, n: int) -> Attempt:
        """Send once, for the `n`-th time, and say what comes next.

        Raises:
            EndpointUrlRefused: Nothing was sent.
        """
        check_url(endpoint.url)
        # A new time for each attempt: receivers refuse one that is five minutes old.
        headers = self._sign(
            message.body, endpoint.secrets, msg_id=message.id, timestamp=int(self._clock())
        )
        status, wait, kept = None, None, bytearray()
        try:
            # httpx2's own timeouts begin anew at each read.
            async with asyncio.timeout(self._timeout):
                async with self._http.stream(
                    "POST",
                    endpoint.url,
                    content=message.body,
                    headers=self._headers | headers,
                    follow_redirects=False,
                    timeout=self._timeout,
                ) as answer:
                    status, wait = answer.status_code, answer.headers.get("retry-after")
                    async for chunk in answer.aiter_raw():  # raw: a bomb is not unpacked
                        kept += chunk
                        if len(kept) >= READ:
                            break
        except Exception as error:  # whatever a customer's server, or the guard, makes of it
            if status is None:
                kept += type(error).__name__.encode()
        finally:
            self._http.cookies.clear()  # two customers may share a host
        excerpt = bytes(kept[:KEPT]).decode(errors="replace").replace("\0", "\ufffd")
        if status is not None and 200 <= status < 300:
            return Attempt(status, Outcome.DELIVERED, None, excerpt)
        if status == 410:
            return Attempt(status, Outcome.GONE, None, excerpt)
        now = self._clock()
        delay = next_delay(n, seconds_of(wait, now) if status in (429, 503) else None, self._rng)
        if delay is None:
            return Attempt(status, Outcome.EXHAUSTED, None, excerpt)
        return Attempt(status, Outcome.WAITING, now + delay, excerpt)

    async def run_due(self, limit: int = 50) -> int:
        """Attempt up to `limit` deliveries that are due, side by side. Return how many there were.

        It takes as long as the slowest. Run several of these in a loop, in any number of processes.
        """
        lease = self._timeout + 30  # long enough to record; afterwards the worker counts as dead
        claimed = await self._log.claim(limit, now=self._clock(), lease=lease)
        ended = await asyncio.gather(*map(self._deliver_due, claimed), return_exceptions=True)
        for error in ended:
            if error is not None:  # its lease ends, and it is attempted again
                logger.error(
                    "a delivery was not attempted or not recorded: %s", type(error).__name__
                )
        return len(claimed)

    async def _deliver_due(self, due: Due) -> None:
        try:
            attempt = await self.attempt(due.endpoint, due.message, due.n)
        except EndpointUrlRefused as refused:
            attempt = Attempt(None, Outcome.REFUSED, None, str(refused))
        logger.info(
            "%s to %s: attempt %d, %s",
            due.message.id,
            due.endpoint.id,
            due.n,
            attempt.outcome.value,
        )
        if await self._log.record(due, attempt, now=self._clock()) and self._disabled:
            await self._disabled(due.endpoint)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
