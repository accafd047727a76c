"""Both twins under one face, and a worker that is killed in the middle of its work."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from idempotent_async import AsyncInbox
from idempotent_sync import Inbox, Outcome

#: A handler of either kind: it yields SQL to be run, and may return a value.
Steps = Callable[[], Generator[str, None, Any]]
External = Callable[[str], Awaitable[Any]]


class Twin:
    """Runs the sync inbox in threads, or the async one in tasks: a test cannot tell which."""

    def __init__(self, kind: str, pool: Any, **settings: Any) -> None:
        self.inbox: Any = (Inbox if kind == "sync" else AsyncInbox)(pool, **settings)
        self.sync = kind == "sync"

    async def run(self, source: str, event_id: str, steps: Steps, **options: Any) -> Outcome[Any]:
        if not self.sync:
            return await self.inbox.run(source, event_id, awaiting(steps), **options)  # type: ignore[no-any-return]
        return await asyncio.to_thread(self.inbox.run, source, event_id, blocking(steps), **options)

    async def run_external(self, source: str, event_id: str, handler: External, **options: Any) -> Outcome[Any]:
        if not self.sync:
            return await self.inbox.run_external(source, event_id, handler, **options)  # type: ignore[no-any-return]

        def in_a_thread(key: str) -> Any:
            return asyncio.run(handler(key))  # type: ignore[arg-type]

        return await asyncio.to_thread(self.inbox.run_external, source, event_id, in_a_thread, **options)

    async def purge(self) -> int:
        return await asyncio.to_thread(self.inbox.purge) if self.sync else await self.inbox.purge()


def blocking(steps: Steps) -> Callable[[Any], Any]:
    def handler(conn: Any) -> Any:
        work = steps()
        while True:
            try:
                conn.execute(next(work))
            except StopIteration as end:
                return end.value

    return handler


def awaiting(steps: Steps) -> Callable[[Any], Awaitable[Any]]:
    async def handler(conn: Any) -> Any:
        work = steps()
        while True:
            try:
                sql = next(work)
            except StopIteration as end:
                return end.value
            await conn.execute(sql)

    return handler


def pool_of(kind: str, url: str) -> Any:
    maker = ConnectionPool if kind == "sync" else AsyncConnectionPool
    return maker(url, min_size=1, max_size=8, open=False)


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
