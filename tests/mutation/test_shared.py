"""Servers that the runs share are started once, emptied between them, and not held open by a child."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest
import redis

from mutation.shared import Shared


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("DATABASE_URL", "REDIS_URL"):
            patch.setenv(name, "nobody's")
        servers = Shared(["valkey", "postgresql", "smtp"])
        servers.start()
        yield servers
        servers.stop()


def test_a_run_finds_no_database_of_another_even_of_one_that_is_still_connected(shared: Shared) -> None:
    url = os.environ["DATABASE_URL"]
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute("create database test_left")
        with psycopg.connect(url, dbname="test_left") as open_still:
            shared.empty()
            with pytest.raises(psycopg.OperationalError):
                open_still.execute("select 1")
        names = admin.execute("select datname from pg_database where not datistemplate").fetchall()
    assert names == [("postgres",)]


def test_a_run_finds_no_key_and_no_script_of_another(shared: Shared) -> None:
    with redis.Redis.from_url(os.environ["REDIS_URL"].replace("/0", "/3")) as client:
        client.set("left", "behind")
        digest = client.script_load("return 1")
        shared.empty()
        assert client.dbsize() == 0
        assert client.script_exists(digest) == [False]


def test_servers_that_end_with_their_owner_are_not_held_by_a_child() -> None:
    class Pipe:
        closed = False

        def close(self) -> None:
            self.closed = True

    class Server:
        def __init__(self) -> None:
            self._leash = self
            self.watcher = self
            self.stdin = Pipe()

    shared = Shared([])
    shared._servers["postgresql"] = Server()
    shared.let_go()
    assert shared._servers["postgresql"].stdin.closed
