"""A PostgreSQL pool that survives a database restart and fails fast when it is empty (async).

psycopg-pool lends, grows and reconnects. Added here: a start that waits for the server but not for
a wrong password, a ping before a connection is lent, and no trace of whoever had it before.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import psycopg
import psycopg_pool
from psycopg import AsyncConnection, generators, pq
from psycopg.rows import DictRow, dict_row

from pool_core import (
    ANSWER_WITHIN,
    FIRST_DELAY,
    LONGEST_DELAY,
    PING,
    RESET,
    PoolClosed,
    PoolConfig,
    PoolStats,
    PoolUnavailable,
    finite_seconds,
    why_give_up,
)

_Connection = AsyncConnection[DictRow]
_Pool = psycopg_pool.AsyncConnectionPool[_Connection]


class AsyncDatabase:
    """A pool whose connections are pinged before they are lent and cleaned when they come back.

    Use it as `async with AsyncDatabase(config) as db:`, or call `open()` and always `close()`.
    `clock` (monotonic seconds), `sleep` and `rng` (0 to 1) are there for tests.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._lock = asyncio.Lock()
        self._pool: _Pool | None = None
        self._drained_at = -math.inf

    async def __aenter__(self) -> AsyncDatabase:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Wait until the server can be reached, then start the pool; do nothing if it is open.

        Raises `PoolUnavailable` if the server refuses the user, the password or the database (at
        once), or if there was no server within `open_deadline`.
        """
        async with self._lock:  # or ten first requests would build ten pools
            if self._pool is not None:
                return
            await self._reach_the_server()
            pool: _Pool = psycopg_pool.AsyncConnectionPool(
                self.config.conninfo(),
                kwargs={"row_factory": dict_row},
                min_size=self.config.min_size,
                max_size=self.config.max_size,
                max_lifetime=self.config.max_lifetime,
                # psycopg-pool doubles its delay for 5 minutes, in which callers wait in vain for a
                # server that is back. Given up as early as a caller, the next connects at once.
                reconnect_timeout=self.config.acquire_timeout,
                name=self.config.app_name,
                open=False,
            )
            await pool.open()
            self._pool = pool

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool, with `timeout` seconds for its own tasks; do nothing if it is closed.

        Lent connections are closed when they come back. `ValueError` if `timeout` is not finite.
        """
        seconds = finite_seconds(timeout)
        pool, self._pool = self._pool, None
        if pool:
            await pool.close(seconds)

    @asynccontextmanager
    async def connection(
        self, timeout: float | None = None
    ) -> AsyncIterator[AsyncConnection[DictRow]]:
        """Lend a connection for one transaction; `timeout` replaces `acquire_timeout`.

        The end of the block commits; an exception or a cancellation that leaves it rolls back.
        Raises `PoolUnavailable` if no connection was free in time or the server is gone,
        `PoolClosed` if the pool is not open, and `ValueError` if `timeout` is not finite.
        """
        seconds = finite_seconds(self.config.acquire_timeout if timeout is None else timeout)
        if (pool := self._pool) is None:
            raise PoolClosed("the pool is not open: call open() first")
        conn = await self._borrow_answering(pool, seconds)
        try:
            async with conn:
                yield conn
        finally:
            try:
                await _clean_session(conn)
            except BaseException as error:
                await conn.close()  # what cannot be cleaned is replaced
                if not isinstance(error, psycopg.Error):
                    raise
            finally:
                await pool.putconn(conn)

    async def healthy(self) -> bool:
        """Tell whether a connection can be borrowed now: the server answers. Never raises."""
        try:
            async with self.connection():
                return True
        except (PoolUnavailable, PoolClosed):
            return False

    def stats(self) -> PoolStats:
        """Return the numbers of this moment, all zero if the pool is not open."""
        return PoolStats.of(self._pool.get_stats() if self._pool else {})

    async def _reach_the_server(self) -> None:
        deadline, delay = self._clock() + self.config.open_deadline, FIRST_DELAY
        while True:
            try:
                # The last attempt starts at the deadline and is given half a second.
                await _connect_once(self.config, max(deadline - self._clock(), 0.5))
            except psycopg.OperationalError as error:
                left = deadline - self._clock()
                if reason := why_give_up(error, left, self.config):
                    raise PoolUnavailable(reason) from error
            else:
                return
            await self._sleep(min(self._rng() * delay, left))
            delay = min(2 * delay, LONGEST_DELAY)

    async def _borrow_answering(self, pool: _Pool, seconds: float) -> _Connection:
        deadline, dead = self._clock() + seconds, None
        while True:
            try:
                conn = await pool.getconn(deadline - self._clock())
            except psycopg_pool.PoolTimeout:
                found = f"{self.stats()}, last seen: {dead}" if dead else f"{self.stats()}"
                raise PoolUnavailable(f"no connection within {seconds:g} s: {found}") from dead
            except psycopg_pool.PoolClosed:
                raise PoolClosed("the pool was closed") from None
            asked_at = self._clock()
            try:
                await _ask_server(conn, PING, min(ANSWER_WITHIN, seconds))
            except BaseException as error:
                silent = not conn.closed  # what is broken counts as closed by now
                await conn.close()
                await pool.putconn(conn)  # given back closed, it is replaced
                if not isinstance(error, psycopg.Error):
                    raise
                dead = error
            else:
                return conn
            # If the next ones are broken too, a ping shows it at once. But every silent one would
            # cost the whole wait, so the idle ones are then replaced together and unseen.
            if silent and asked_at > self._drained_at:
                self._drained_at = self._clock()
                await pool.drain()


async def _connect_once(config: PoolConfig, seconds: float) -> None:
    """See that the server lets us in; an attempt that takes longer fails as others do."""
    try:
        async with asyncio.timeout(seconds):
            await (await AsyncConnection.connect(config.conninfo())).close()
    except TimeoutError:
        raise psycopg.OperationalError("no answer") from None


async def _clean_session(conn: _Connection) -> None:
    """Take back whatever a borrower may have set, on the server and in the client."""
    await _ask_server(conn, RESET, ANSWER_WITHIN)
    async for _ in conn.notifies(timeout=0):
        pass  # notifications that came before UNLISTEN and that nobody read
    await conn.set_autocommit(False)
    await conn.set_isolation_level(None)
    await conn.set_read_only(None)
    await conn.set_deferrable(None)
    conn.row_factory = dict_row


async def _ask_server(conn: _Connection, command: bytes, seconds: float) -> None:
    """Run a command with a deadline; a cancelled `execute()` would wait some seconds more."""
    conn.pgconn.send_query(command)
    for result in await conn.wait(generators.execute(conn.pgconn), timeout=seconds):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())
