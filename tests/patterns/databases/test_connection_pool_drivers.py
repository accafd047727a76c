"""Proves docs/patterns/databases/connection-pool.md: what meets those who come to SQLAlchemy's or asyncpg's pool."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
import sqlalchemy
from sqlalchemy import exc

from pool_async import AsyncDatabase
from pool_core import PoolConfig, PoolUnavailable

# A port on which nobody listens, by the rules: binding it needs root, and we do not.
NOWHERE = "postgresql://app@127.0.0.1:1/app"


def engine(url: str) -> sqlalchemy.Engine:
    return sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)


def test_sqlalchemy_executes_text_objects_and_no_strings(database_url: str) -> None:
    with engine(database_url).connect() as connection:
        naive: Any = "select 1"
        with pytest.raises(exc.ObjectNotExecutableError):
            connection.execute(naive)
        assert connection.execute(sqlalchemy.text("select 1")).scalar() == 1


def test_what_sqlalchemy_has_written_vanishes_without_a_commit(database_url: str) -> None:
    with engine(database_url).begin() as connection:
        connection.execute(sqlalchemy.text("create table notes (body text)"))
    with engine(database_url).connect() as connection:
        connection.execute(sqlalchemy.text("insert into notes values ('lost')"))
    with engine(database_url).begin() as connection:
        connection.execute(sqlalchemy.text("insert into notes values ('kept')"))
    with engine(database_url).connect() as connection:
        assert connection.execute(sqlalchemy.text("select body from notes")).scalars().all() == ["kept"]


def test_sqlalchemy_knows_no_postgres_scheme_and_takes_postgresql_for_psycopg_3() -> None:
    with pytest.raises(exc.NoSuchModuleError, match="postgres"):
        engine("postgres://app@db/shop")
    assert engine("postgresql://app@db/shop").driver == "psycopg"


async def test_asyncpg_raises_an_os_error_when_refused_and_this_pool_says_unavailable() -> None:
    with pytest.raises(ConnectionRefusedError) as caught:
        await asyncpg.connect(NOWHERE)
    assert not isinstance(caught.value, asyncpg.PostgresError)  # a retry on the driver's errors never fires
    database = AsyncDatabase(PoolConfig(NOWHERE, open_deadline=0.05))
    with pytest.raises(PoolUnavailable):
        await database.open()


async def test_asyncpg_waits_without_end_to_acquire_and_to_close_and_this_pool_does_not(
    database_url: str,
) -> None:
    theirs = await asyncpg.create_pool(database_url, min_size=1, max_size=1)
    held = await theirs.acquire()
    for wait in (theirs.acquire, theirs.close):
        waiting = asyncio.ensure_future(wait())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done  # and nothing would end it but the holder
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    assert held
    theirs.terminate()

    ours = AsyncDatabase(PoolConfig(database_url, max_size=1, acquire_timeout=0.1))
    await ours.open()
    async with ours.connection(timeout=20):  # held all the while: only a deadline ends what follows
        with pytest.raises(PoolUnavailable):
            async with ours.connection():
                pass
        await asyncio.wait_for(ours.close(timeout=0.1), 20)
