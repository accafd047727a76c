"""For the proofs of idempotent-processing: an inbox of either color, and a worker that is killed in its work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from harness.color import Blocking, Color
from idempotent_async import AsyncInbox
from idempotent_core import Outcome
from idempotent_sync import Inbox

#: What a proof does with a connection of either color, as if it were sync.
Handler = Callable[[Any], Any]


class Twin(Blocking):
    """An inbox of either color. Its handlers get a connection whose calls they need not await."""

    def __init__(self, color: Color, pool: Any, **settings: Any) -> None:
        kind: Any = color.pick(AsyncInbox, Inbox)
        super().__init__(color, kind(pool, **settings))

    def run(self, source: str, event_id: str, handler: Handler, **options: Any) -> Outcome[Any]:
        def on_connection(conn: Any) -> Any:
            return handler(self.color.blocking(conn))

        ours = self.color.function(on_connection)
        ended: Outcome[Any] = self.color.call(self.inner.run, source, event_id, ours, **options)
        return ended

    def run_external(self, source: str, event_id: str, handler: Callable[[str], Any], **options: Any) -> Outcome[Any]:
        ours = self.color.function(handler)
        ended: Outcome[Any] = self.color.call(self.inner.run_external, source, event_id, ours, **options)
        return ended


def pool_of(color: Color, url: str, **kwargs: Any) -> Any:
    """Return an open pool, closed when the test is over."""
    kind: Any = color.pick(AsyncConnectionPool, ConnectionPool)
    pool = color.call(kind, url, min_size=1, max_size=8, open=False, kwargs=kwargs)
    color.call(pool.open)
    return color.closing(pool)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def insert_and(then: Callable[[], None], event_id: str) -> Callable[[Any], None]:
    def handler(conn: Any) -> None:
        conn.execute("INSERT INTO ledger VALUES ('shop', %s)", (event_id,))
        then()

    return handler


def main(url: str) -> None:
    """Fork a worker for each place it can die at, and let it die there."""

    def before(inbox: Inbox) -> None:
        inbox.run("shop", "before-effect", lambda conn: die())

    def between(inbox: Inbox) -> None:
        inbox.run("shop", "before-commit", insert_and(die, "before-commit"))

    def claimed(inbox: Inbox) -> None:
        inbox.run_external("shop", "claimed", lambda key: die())

    def done(inbox: Inbox) -> None:
        def effect(key: str) -> None:
            with psycopg.connect(url) as elsewhere:
                elsewhere.execute("INSERT INTO ledger VALUES ('elsewhere', %s)", (key,))
            die()

        inbox.run_external("shop", "done-unmarked", effect)

    for step in (before, between, claimed, done):
        child = os.fork()
        if not child:
            with ConnectionPool(url, min_size=1) as pool:
                step(Inbox(pool, claim_ttl=0.001))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(sys.argv[1])
