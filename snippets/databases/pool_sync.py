"""A PostgreSQL pool that survives a database restart and fails fast when it is empty (sync).

psycopg-pool lends, grows and reconnects. Added here: a start that waits for the server but not for
a wrong password, a ping before a connection is lent, and no trace of whoever had it before.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
import psycopg_pool
from psycopg import Connection, generators, pq
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

_Connection = Connection[DictRow]
_Pool = psycopg_pool.ConnectionPool[_Connection]


class Database:
    """A pool whose connections are pinged before they are lent and cleaned when they come back.

    Use it as `with Database(config) as db:`, or call `open()` and always `close()`.
    `clock` (monotonic seconds), `sleep` and `rng` (0 to 1) are there for tests.
    """

    def __init__(
        self,
        config: PoolConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._clock = clock
        self._sleep = sleep
        self._rng = rng
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        self._drained_at = -math.inf

    def __enter__(self) -> Database:
        self.open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def open(self) -> None:
        """Wait until the server can be reached, then start the pool; do nothing if it is open.

        Raises `PoolUnavailable` if the server refuses the user, the password or the database (at
        once), or if there was no server within `open_deadline`.
        """
        with self._lock:  # or ten first requests would build ten pools
            if self._pool is not None:
                return
            self._reach_the_server()
            pool: _Pool = psycopg_pool.ConnectionPool(
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
            pool.open()
            self._pool = pool

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool, with `timeout` seconds for its own threads; do nothing if it is closed.

        Lent connections are closed when they come back. `ValueError` if `timeout` is not finite.
        """
        seconds = finite_seconds(timeout)
        pool, self._pool = self._pool, None
        if pool:
            pool.close(seconds)

    @contextmanager
    def connection(self, timeout: float | None = None) -> Iterator[Connection[DictRow]]:
        """Lend a connection for one transaction; `timeout` replaces `acquire_timeout`.

        The end of the block commits; an exception that leaves it rolls back.
        Raises `PoolUnavailable` if no connection was free in time or the server is gone,
        `PoolClosed` if the pool is not open, and `ValueError` if `timeout` is not finite.
        """
        seconds = finite_seconds(self.config.acquire_timeout if timeout is None else timeout)
        if (pool := self._pool) is None:
            raise PoolClosed("the pool is not open: call open() first")
        conn = self._borrow_answering(pool, seconds)
        try:
            with conn:
                yield conn
        finally:
            try:
                _clean_session(conn)
            except BaseException as error:
                conn.close()  # what cannot be cleaned is replaced
                if not isinstance(error, psycopg.Error):
                    raise
            finally:
                pool.putconn(conn)

    def healthy(self) -> bool:
        """Tell whether a connection can be borrowed now: the server answers. Never raises."""
        try:
            with self.connection():
                return True
        except (PoolUnavailable, PoolClosed):
            return False

    def stats(self) -> PoolStats:
        """Return the numbers of this moment, all zero if the pool is not open."""
        return PoolStats.of(self._pool.get_stats() if self._pool else {})

    def _reach_the_server(self) -> None:
        deadline, delay = self._clock() + self.config.open_deadline, FIRST_DELAY
        while True:
            try:
                # The last attempt starts at the deadline and is given what psycopg gives: 2 s.
                _connect_once(self.config, max(deadline - self._clock(), 0.5))
            except psycopg.OperationalError as error:
                left = deadline - self._clock()
                if reason := why_give_up(error, left, self.config):
                    raise PoolUnavailable(reason) from error
            else:
                return
            self._sleep(min(self._rng() * delay, left))
            delay = min(2 * delay, LONGEST_DELAY)

    def _borrow_answering(self, pool: _Pool, seconds: float) -> _Connection:
        deadline, dead = self._clock() + seconds, None
        while True:
            try:
                conn = pool.getconn(deadline - self._clock())
            except psycopg_pool.PoolTimeout:
                found = f"{self.stats()}, last seen: {dead}" if dead else f"{self.stats()}"
                raise PoolUnavailable(f"no connection within {seconds:g} s: {found}") from dead
            except psycopg_pool.PoolClosed:
                raise PoolClosed("the pool was closed") from None
            asked_at = self._clock()
            try:
                _ask_server(conn, PING, min(ANSWER_WITHIN, seconds))
            except BaseException as error:
                silent = not conn.closed  # what is broken counts as closed by now
                conn.close()
                pool.putconn(conn)  # given back closed, it is replaced
                if not isinstance(error, psycopg.Error):
                    raise
                dead = error
            else:
                return conn
            # If the next ones are broken too, a ping shows it at once. But every silent one would
            # cost the whole wait, so the idle ones are then replaced together and unseen.
            if silent and asked_at > self._drained_at:
                self._drained_at = self._clock()
                pool.drain()


def _connect_once(config: PoolConfig, seconds: float) -> None:
    """See that the server lets us in; an attempt that takes longer fails as others do."""
    limit = min(config.connect_timeout, math.ceil(seconds))  # psycopg makes two seconds of one
    Connection.connect(config.conninfo(), connect_timeout=limit).close()


def _clean_session(conn: _Connection) -> None:
    """Take back whatever a borrower may have set, on the server and in the client."""
    _ask_server(conn, RESET, ANSWER_WITHIN)
    for _ in conn.notifies(timeout=0):
        pass  # notifications that came before UNLISTEN and that nobody read
    conn.set_autocommit(False)
    conn.set_isolation_level(None)
    conn.set_read_only(None)
    conn.set_deferrable(None)
    conn.row_factory = dict_row


def _ask_server(conn: _Connection, command: bytes, seconds: float) -> None:
    """Run a command with a deadline; `execute()` would wait for a silent peer without end."""
    conn.pgconn.send_query(command)
    for result in conn.wait(generators.execute(conn.pgconn), timeout=seconds):
        if result.status == pq.ExecStatus.FATAL_ERROR:
            raise psycopg.OperationalError(result.get_error_message())
