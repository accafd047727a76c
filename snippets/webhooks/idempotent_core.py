"""What the sync and the async inbox share: the table, its statements, outcomes and refusals."""

from __future__ import annotations

import enum
import hashlib
import inspect
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

from psycopg.pq import TransactionStatus

T = TypeVar("T")
logger = logging.getLogger(__name__)

SCHEMA = """
CREATE TABLE IF NOT EXISTS webhook_inbox (
    source      text        NOT NULL,
    event_id    text        NOT NULL,
    body_sha256 bytea,
    claim       uuid        NOT NULL,
    claimed_at  timestamptz NOT NULL,
    lease_until timestamptz,  -- NULL: the event is done
    PRIMARY KEY (source, event_id)
);
CREATE INDEX IF NOT EXISTS webhook_inbox_claimed_at ON webhook_inbox (claimed_at);
"""
MIN_KEEP = timedelta(days=3)  # Stripe goes on sending for three days
TRIES = 3  # of a transaction that PostgreSQL gave up for the sake of another one

# No colon in the source, or "a:b" + "c" and "a" + "b:c" would be one key. Visible ASCII in the
# id, because the key becomes a header.
_SOURCE = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_EVENT_ID = re.compile(r"[!-~]{1,255}")

# A row that another transaction has written and not committed is waited for. After its commit
# there is a conflict, after its rollback there is none. A dead claim is taken over by one only: the
# second finds the lease that the first has just written.
CLAIM = """
WITH t AS MATERIALIZED (
    SELECT coalesce(%(now)s::timestamptz, clock_timestamp()) AS now,
           set_config('lock_timeout', %(wait)s, true)
)
INSERT INTO webhook_inbox AS known
       (source, event_id, body_sha256, claim, claimed_at, lease_until)
SELECT %(source)s, %(event_id)s, %(digest)s, %(claim)s, now, now + %(lease)s FROM t
ON CONFLICT (source, event_id) DO UPDATE
   SET claim = excluded.claim, claimed_at = excluded.claimed_at,
       lease_until = excluded.lease_until
 WHERE known.lease_until <= excluded.claimed_at
   AND (known.body_sha256 = excluded.body_sha256) IS NOT FALSE
RETURNING true
"""
LOOK = """
SELECT (body_sha256 = %(digest)s) IS FALSE,
       extract(epoch FROM lease_until - coalesce(%(now)s, clock_timestamp()))::float8
  FROM webhook_inbox WHERE source = %(source)s AND event_id = %(event_id)s
"""
FINISH = """
INSERT INTO webhook_inbox AS known (source, event_id, body_sha256, claim, claimed_at)
VALUES (%(source)s, %(event_id)s, %(digest)s, %(claim)s, coalesce(%(now)s, clock_timestamp()))
ON CONFLICT (source, event_id) DO UPDATE SET lease_until = NULL
RETURNING known.claim = %(claim)s
"""
RELEASE = """
DELETE FROM webhook_inbox
 WHERE source = %(source)s AND event_id = %(event_id)s AND claim = %(claim)s
"""
PURGE = (
    "DELETE FROM webhook_inbox WHERE claimed_at < coalesce(%(now)s, clock_timestamp()) - %(keep)s"
)


class InProgress(Exception):
    """Another worker has the event in hand: answer 503, and have it sent again.

    `retry_after` is how many seconds that worker's claim still holds, at most.
    """

    def __init__(self, key: str, retry_after: float) -> None:
        super().__init__(f"{key} is being processed by another worker")
        self.key = key
        self.retry_after = retry_after


class BodyMismatch(Exception):
    """A known id came with another body: nothing was done. Look at it before you act on it."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key} is known, with another body")
        self.key = key


class TransactionLost(RuntimeError):
    """The handler left no transaction to commit. It swallowed a database error, or ended it."""


class Status(enum.Enum):
    """What became of an event that was handed in."""

    PROCESSED = "processed"
    DUPLICATE = "duplicate"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """`value` is what the handler returned. A duplicate has none: ask for `status`."""

    status: Status
    value: T | None = None


def event_key(source: str, event_id: str) -> str:
    """Return `source:event_id`, the same for every attempt: a downstream `Idempotency-Key`.

    Raises:
        ValueError: `source` is not 1 to 64 letters, digits and `_.-`, or `event_id` not 1 to 255
            visible ASCII characters.
    """
    if not _SOURCE.fullmatch(source) or not _EVENT_ID.fullmatch(event_id):
        raise ValueError("source or event_id is empty, too long, or has other characters in it")
    return f"{source}:{event_id}"


@dataclass(frozen=True, slots=True)
class InboxSettings:
    """What an inbox was made with, and the parameters of its statements.

    Args:
        claim_ttl: How long a claim of `run_external` holds, in seconds.
        keep: How long events are remembered.
        wait: How long, in seconds, `run` waits for a lock.
        clock: Returns an aware datetime. None: the database's own clock.

    Raises:
        ValueError: `keep` is not above 3 days and `claim_ttl`, or a time is not above 0.
    """

    claim_ttl: float
    keep: timedelta
    wait: float
    clock: Callable[[], datetime] | None

    def __post_init__(self) -> None:
        for name, seconds in (("claim_ttl", self.claim_ttl), ("wait", self.wait)):
            if not (_is_number(seconds) and seconds > 0):
                raise ValueError(f"{name} must be a number of seconds over 0, got {seconds!r}")
        if self.keep <= MIN_KEEP or self.keep.total_seconds() <= self.claim_ttl:
            raise ValueError(f"keep must be over 3 days and over claim_ttl, got {self.keep}")

    def facts_of(
        self, source: str, event_id: str, body: bytes | None, *, leased: bool
    ) -> dict[str, Any]:
        """Return the parameters of an event's statements, under a claim of its own."""
        return {
            "key": event_key(source, event_id),
            "source": source,
            "event_id": event_id,
            "digest": None if body is None else hashlib.sha256(body).digest(),
            "claim": uuid.uuid4(),
            "lease": timedelta(seconds=self.claim_ttl) if leased else None,
            "wait": f"{max(1, round(self.wait * 1000))}ms",
        }

    def now(self) -> dict[str, Any]:
        """Return the parameter for the time: without a clock the server's, which all share."""
        return {"now": self.clock() if self.clock else None}


def check_known(facts: Mapping[str, Any], row: tuple[bool, float | None] | None) -> None:
    """Return for an event that is done, raise for any other that could not be claimed."""
    if row is None:  # it was released since we tried
        raise InProgress(facts["key"], 1)
    mismatch, seconds_left = row
    if mismatch:
        raise BodyMismatch(facts["key"])
    if seconds_left is not None:
        raise InProgress(facts["key"], max(seconds_left, 1))


def check_open(status: TransactionStatus) -> None:
    """Raise `TransactionLost` if there is nothing to commit.

    A COMMIT after an error that somebody caught is a ROLLBACK without an exception.
    """
    if status != TransactionStatus.INTRANS:
        raise TransactionLost("the handler swallowed a database error, or ended the transaction")


def check_claim(facts: Mapping[str, Any], row: tuple[bool] | None) -> None:
    """Log if the claim had gone to another worker before the event was done."""
    if row != (True,):
        logger.warning("%s: done after its claim had expired; raise claim_ttl", facts["key"])


def refuse_coroutines(handler: object) -> None:
    """Raise `TypeError` for a handler of the other color: nothing of it would run."""
    if inspect.iscoroutinefunction(handler):
        raise TypeError("the handler is a coroutine function: use AsyncInbox")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
