"""What a request may still spend on tries, time and depth, passed on with calls and messages."""

from __future__ import annotations

import contextlib
import json
import math
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from distributed_errors import CODES, HOPS, ErrorEnvelope, RemoteError, to_wire

ATTEMPT, DEPTH = "X-Attempt", "X-Call-Depth"
TIMEOUT = "X-Timeout-Ms"  # what is left, not an instant: clocks of two hosts differ
ERROR, FAILURES = "X-Error", "X-Failures"  # of a message that failed


@dataclass
class RetryScope:
    """What one incoming request, or message, may still spend. Times are in seconds.

    Args:
        service: Our own name.
        deadline: When the time is up, on `clock`; infinity for never.
        attempts: The most tries, with the one that came in.
        attempt: The number of the present try. The retries of all calls within count.
        depth: How many services it has come through.
        minimum: With no more time left than this, nothing is begun.
        clock: Returns seconds that never go back.

    Raises:
        ValueError: A number is out of its range.

    """

    service: str
    deadline: float
    attempts: int = 3
    attempt: int = 1
    depth: int = 0
    minimum: float = 0.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        counts = {"attempts": (self.attempts, 1), "attempt": (self.attempt, 1)}
        for name, (count, least) in (counts | {"depth": (self.depth, 0)}).items():
            if not isinstance(count, int) or isinstance(count, bool) or count < least:
                raise ValueError(f"{name} must be a whole number, {least} or more, got {count!r}")
        if not (_is_number(self.minimum) and self.minimum >= 0):
            raise ValueError(
                f"minimum must be a number of seconds, 0 or more, got {self.minimum!r}"
            )
        if not (_is_number(self.deadline) or self.deadline == math.inf):
            raise ValueError(f"deadline must be an instant on the clock, got {self.deadline!r}")

    @classmethod
    def from_headers(
        cls,
        headers: Mapping[str, str],
        *,
        service: str,
        seconds: float,
        trusted: bool = False,
        attempts: int = 3,
        minimum: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> RetryScope:
        """Return the scope of an incoming request or message, of at most `seconds`.

        Only a `trusted` one, from your own services, tells its attempt and depth. An attempt
        beyond ours is our last one. What cannot be read counts as not sent. Raises `ValueError`
        for a number of ours that is out of its range.
        """
        if not (_is_number(seconds) and seconds > 0):
            raise ValueError(f"seconds must be a number over 0, got {seconds!r}")
        sent = {name.lower(): value for name, value in headers.items()}

        def number(header: str, default: int) -> int:
            value = sent.get(header.lower(), "")
            return int(value) if re.fullmatch("[0-9]{1,15}", value) else default

        left = number(TIMEOUT, 10**15) / 1000
        attempt, depth = (number(ATTEMPT, 1), number(DEPTH, 0)) if trusted else (1, 0)
        return cls(
            service=service,
            deadline=clock() + min(left, seconds),
            attempts=attempts,
            attempt=min(max(attempt, 1), attempts),
            depth=depth,
            minimum=minimum,
            clock=clock,
        )

    def remaining(self) -> float:
        """Return the time left, 0 when it is up."""
        return max(0.0, self.deadline - self.clock())

    def check(self) -> None:
        """Raise the `RemoteError` to answer with if this must not go on: 504, or 508 (a loop)."""
        status = 508 if self.depth >= HOPS else 504
        if status == 508 or self.remaining() <= self.minimum:
            raise RemoteError(ErrorEnvelope(CODES[status], self.service, status))

    @contextlib.contextmanager
    def bind(self) -> Iterator[RetryScope]:
        """Make this the `current_scope()` within a `with` block."""
        token = _current.set(self)
        try:
            yield self
        finally:
            _current.reset(token)


_current: ContextVar[RetryScope | None] = ContextVar("retry_scope", default=None)


def current_scope() -> RetryScope | None:
    """Return the scope of the request that this code runs for, or None."""
    return _current.get()


def should_retry(err: BaseException, scope: RetryScope) -> bool:
    """Tell whether to call again, and count it. Ask once a failure, and only where you retry.

    Asking makes this layer the one that retries: the error is marked `exhausted`, so nobody above
    retries it should it leave this service after all.
    """
    if not getattr(err, "retryable", False) or getattr(err, "exhausted", False):
        return False
    for name, value in (("exhausted", True), ("attempts", scope.attempt)):
        try:
            setattr(err, name, value)
        except Exception:  # its class takes no assignments, such as a frozen dataclass
            vars(err)[name] = value
    wait = getattr(err, "retry_after", None) or 0.0
    if scope.attempt >= scope.attempts or scope.remaining() - wait <= scope.minimum:
        return False
    scope.attempt += 1
    return True


def outgoing_headers(scope: RetryScope) -> dict[str, str]:
    """Return the headers of a call: which try it is, how deep, and the milliseconds left.

    Raises `RemoteError` as `scope.check()` does, so that nothing is sent in vain.
    """
    scope.check()
    return message_headers(scope) | {TIMEOUT: str(int(scope.remaining() * 1000))}


def message_headers(scope: RetryScope) -> dict[str, str]:
    """Return the headers of a new message: those of a call but the time, as a message may wait."""
    return {ATTEMPT: str(scope.attempt), DEPTH: str(scope.depth + 1)}


def redelivery(
    err: BaseException,
    scope: RetryScope,
    headers: Mapping[str, str],
    *,
    trace_id: str | None = None,
    allow: Collection[str] = (),
) -> tuple[bool, dict[str, str]]:
    """Return whether to deliver a failed message again, else to dead letters, and its headers.

    They carry the number of the next try, the error (as `to_wire` has it) and "service/code" of
    the last ten. Put them over the message's own `headers`, of which `scope` was made.
    """
    again = should_retry(err, scope)
    _, _, body = to_wire(err, service=scope.service, trace_id=trace_id, allow=allow)
    error = json.loads(body)
    before = [said for said in headers.get(FAILURES, "").split(",") if said]
    return again, {
        ATTEMPT: str(scope.attempt),
        DEPTH: str(scope.depth),
        ERROR: body.decode(),
        FAILURES: ",".join([*before, f"{error['service']}/{error['code']}"][-HOPS:]),
    }


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
