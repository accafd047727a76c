"""The servers as fixtures. Each takes its environment variable first, then starts its own server, once a test process.

A test that stops, kills or reconfigures a server starts one of its own instead (`Postgres()`, `Valkey()`),
so that nobody else sees it die.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
import redis

from servers.faults import FaultProxy
from servers.postgres import Postgres
from servers.smtp import Smtp
from servers.valkey import Valkey

#: By service, the name and version of each real server that this process spoke to: the run's record is made from it.
VERSIONS: dict[str, str] = {}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Address of a real PostgreSQL's maintenance database: DATABASE_URL, else a server of our own."""
    own = None if os.environ.get("DATABASE_URL") else Postgres()
    url = own.url if own else os.environ["DATABASE_URL"]
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            row = connection.execute("show server_version").fetchone()
            VERSIONS["postgresql"] = f"PostgreSQL {str(row[0]).split()[0]}" if row else "PostgreSQL"
        yield url
    finally:
        if own:
            own.stop()


@contextmanager
def _empty_database(postgres_url: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_url, autocommit=True) as admin:
        admin.execute(f'create database "{name}"')
        try:
            yield _with_database(postgres_url, name)
        finally:
            admin.execute(f'drop database "{name}" with (force)')


@pytest.fixture
def database_url(postgres_url: str) -> Iterator[str]:
    """Address of an empty database of this test's own, dropped afterwards."""
    with _empty_database(postgres_url) as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(postgres_url: str) -> Iterator[str]:
    """Address of one database for all tests of a file: making one takes longer than most of them.

    It is empty for the first. Each empties its tables, or works under keys that no other test has.
    """
    with _empty_database(postgres_url) as url:
        yield url


def _with_database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@pytest.fixture(scope="session")
def _valkey_url() -> Iterator[str]:
    own = None if os.environ.get("REDIS_URL") else Valkey()
    url = own.url if own else os.environ["REDIS_URL"]
    try:
        with redis.Redis.from_url(url, retry=None) as client:
            facts = client.info("server")
        name = "Valkey" if "valkey_version" in facts else "Redis"
        VERSIONS["valkey"] = f"{name} {facts.get('valkey_version') or facts['redis_version']}"
        yield url
    finally:
        if own:
            own.stop()


@pytest.fixture
def valkey_url(_valkey_url: str, worker_id: str) -> Iterator[str]:
    """Address of an empty Valkey (or Redis) database of this test process: REDIS_URL's server, else our own."""
    number = int(worker_id.removeprefix("gw")) if worker_id.startswith("gw") else 0
    url = f"{_valkey_url.rstrip('/').rsplit('/', 1)[0]}/{number}" if _valkey_url.count("/") > 2 else _valkey_url
    with redis.Redis.from_url(url, retry=None) as client:
        client.flushdb()
        yield url
        client.flushdb()


@pytest.fixture
def valkey(valkey_url: str) -> Iterator[Any]:
    """A plain client of that database: what a proof sees without the module."""
    with redis.Redis.from_url(valkey_url, retry=None) as client:
        yield client


@pytest.fixture
def own_valkey() -> Iterator[Valkey]:
    """A Valkey of this test's own, to be stopped or killed."""
    server = Valkey()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def module_valkey() -> Iterator[Valkey]:
    """A Valkey for the proofs of one file, which may disturb everybody connected to it."""
    server = Valkey()
    yield server
    server.stop()


@pytest.fixture
def smtp() -> Iterator[Smtp]:
    """An SMTP server with STARTTLS and AUTH, and an empty inbox, of this test's own."""
    server = Smtp()
    VERSIONS["smtp"] = f"aiosmtpd {metadata.version('aiosmtpd')}"
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def fault_proxy() -> Iterator[type[FaultProxy]]:
    """Make fault proxies in front of any server, `fault_proxy("127.0.0.1", port)`; all are stopped afterwards."""
    made: list[FaultProxy] = []

    class Tracked(FaultProxy):
        def __init__(self, host: str, port: int) -> None:
            super().__init__(host, port)
            made.append(self)

    try:
        yield Tracked
    finally:
        for proxy in made:
            proxy.stop()
