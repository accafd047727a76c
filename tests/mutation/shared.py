"""The servers that a pattern's runs share: starting PostgreSQL takes longer than most runs.

The fixtures of the proofs take their addresses from the environment. Between two runs they are emptied, so that no
mutant meets what another left behind.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

# By the name in a page's front matter: the launcher, and the variable that the fixtures read.
LAUNCHERS = {
    "postgresql": ("servers.postgres", "Postgres", "DATABASE_URL"),
    "valkey": ("servers.valkey", "Valkey", "REDIS_URL"),
}


class Shared:
    """The servers of these services, as far as they can be shared."""

    def __init__(self, services: Sequence[str]) -> None:
        self._services = [service for service in services if service in LAUNCHERS]
        self._servers: dict[str, Any] = {}

    def start(self) -> None:
        """Start them, and put their addresses into the environment."""
        for service in self._services:
            module, kind, variable = LAUNCHERS[service]
            server = getattr(importlib.import_module(module), kind)()
            self._servers[service] = server
            os.environ[variable] = server.url

    def empty(self) -> None:
        """Take away what a run that was ended has left: databases, keys, and scripts that a server remembers."""
        if "postgresql" in self._servers:
            _drop_databases(self._servers["postgresql"].url)
        if "valkey" in self._servers:
            _flush(self._servers["valkey"].url)

    def stop(self) -> None:
        """Stop them."""
        for server in self._servers.values():
            server.stop()

    def let_go(self) -> None:
        """In a child: close our end of their leashes, lest they outlive the parent because of us."""
        for server in self._servers.values():
            server._leash.watcher.stdin.close()


def _drop_databases(url: str) -> None:
    psycopg = importlib.import_module("psycopg")
    with psycopg.connect(url, autocommit=True) as admin:
        for (name,) in admin.execute("select datname from pg_database where datname like 'test%'").fetchall():
            admin.execute(f'drop database "{name}" with (force)')


def _flush(url: str) -> None:
    address = urlsplit(url)
    commands = ("FLUSHALL", "SCRIPT FLUSH", "CONFIG RESETSTAT")
    with socket.create_connection((address.hostname or "", address.port or 0), 5) as connection:
        answers = connection.makefile("rb")
        for command in commands:
            connection.sendall(command.encode() + b"\r\n")
            if not (answer := answers.readline()).startswith(b"+OK"):
                raise RuntimeError(f"{command}: {answer!r}")
        answers.close()
