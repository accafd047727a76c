"""The launchers: real servers that answer, die on command, and never outlive the tests."""

from __future__ import annotations

import contextlib
import os
import signal
import smtplib
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from servers.faults import FaultProxy
from servers.http import Uvicorn, UvicornProcess
from servers.postgres import Postgres
from servers.smtp import Smtp
from servers.valkey import Valkey


def _refused(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return False
    return True


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    yield server
    server.stop()


def test_every_test_gets_an_empty_postgres_database(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute("select count(*) from pg_tables where schemaname = 'public'").fetchone() == (0,)
        connection.execute("create table left_behind ()")


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_gets_an_empty_valkey(valkey_url: str, turn: int) -> None:
    with redis.Redis.from_url(valkey_url) as client:
        assert client.dbsize() == 0
        client.set("left", "behind")


def test_a_killed_postgres_comes_back_on_its_port_with_what_was_committed() -> None:
    server = Postgres(max_connections=7)
    try:
        with psycopg.connect(server.url) as connection:
            assert connection.execute("show max_connections").fetchone() == ("7",)
            connection.execute("create table kept as select 42 as answer")
        port = server.port
        server.kill()
        assert _refused(port)
        server.start()
        with psycopg.connect(server.url) as connection:
            assert connection.execute("select answer from kept").fetchone() == (42,)
    finally:
        server.stop()
    assert _refused(server.port)


def test_a_killed_valkey_comes_back_empty_on_its_port(valkey: Valkey) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set("key", "value")
    valkey.kill()
    assert _refused(valkey.port)
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.get("key") is None


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_server_and_its_folder_are_gone_when_its_owner_is_killed() -> None:
    code = """
        import sys, time
        from servers.valkey import Valkey
        server = Valkey()
        print(server.port, server._folder, flush=True)
        time.sleep(60)
    """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    owner = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=env)
    assert owner.stdout
    port, folder = owner.stdout.readline().split()
    assert not _refused(int(port))
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    deadline = time.monotonic() + 5
    while not _refused(int(port)) or Path(folder).exists():
        assert time.monotonic() < deadline, "the server outlived its owner"
        time.sleep(0.02)


def test_a_server_that_does_not_come_up_says_why() -> None:
    with pytest.raises(RuntimeError, match="no-such-option"):
        Valkey("--no-such-option", "yes")


def test_the_fault_proxy_passes_refuses_delays_cuts_and_falls_silent(
    valkey: Valkey, fault_proxy: type[FaultProxy]
) -> None:
    proxy = fault_proxy("127.0.0.1", valkey.port)

    def ask(timeout: float = 2.0) -> bytes:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(100)

    assert ask() == b"+PONG\r\n"
    proxy.refuse = True
    with pytest.raises(ConnectionResetError):
        ask()
    proxy.heal()
    proxy.latency = 0.03
    begin = time.monotonic()
    assert ask() == b"+PONG\r\n"
    assert time.monotonic() - begin >= 0.06
    proxy.heal()
    proxy.cut_after = 3
    with pytest.raises((ConnectionResetError, AssertionError)):  # the three bytes may arrive before the reset
        assert ask() == b"+PONG\r\n"
    proxy.heal()
    proxy.blackhole = True
    with pytest.raises(TimeoutError):
        ask(0.1)
    proxy.heal()
    with socket.create_connection(("127.0.0.1", proxy.port), 2) as connection:
        connection.sendall(b"PING\r\n")
        assert connection.recv(100) == b"+PONG\r\n"
        assert proxy.open_connections >= 1
        proxy.reset_all()
        with pytest.raises(ConnectionResetError):
            connection.recv(100)
    assert proxy.accepted >= 6


def test_the_smtp_server_wants_tls_and_the_right_password(smtp: Smtp) -> None:
    with smtplib.SMTP("localhost", smtp.port) as client:
        assert client.docmd("AUTH", "PLAIN AHVzZXIAcGFzcw==")[0] == 530
        client.starttls(context=smtp.client_context)
        with pytest.raises(smtplib.SMTPAuthenticationError):
            client.login(smtp.username, "wrong")
        client.login(smtp.username, smtp.password)
        smtp.inbox.reject["gone@example.com"] = "550 5.1.1 no such user"
        refused = client.sendmail("a@example.com", ["b@example.com", "gone@example.com"], "Subject: hi\r\n\r\nhello")
    assert refused["gone@example.com"][0] == 550
    (message,) = smtp.inbox.messages
    assert (message.recipients, message.over_tls, message.authenticated) == (("b@example.com",), True, True)


async def _application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        message = await receive()
        while message["type"] != "lifespan.shutdown":
            await send({"type": f"{message['type']}.complete"})
            message = await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})


def application() -> Any:
    """Make the application: what a uvicorn process calls."""
    return _application


def test_an_application_answers_over_real_http_and_stops() -> None:
    server = Uvicorn(_application)
    try:
        with urllib.request.urlopen(server.url, timeout=5) as answer:
            assert answer.read() == str(os.getpid()).encode()
    finally:
        server.stop()
    assert _refused(server.port)


def test_an_application_that_cannot_start_fails_the_test_that_wants_it() -> None:
    async def broken(scope: dict[str, Any], receive: Any, send: Any) -> None:
        raise LookupError("no configuration")

    with pytest.raises(RuntimeError, match="did not start"):
        Uvicorn(broken, lifespan="on", log_level="critical")


def test_a_uvicorn_process_has_as_many_workers_as_asked() -> None:
    server = UvicornProcess("servers.test_servers:application", workers=2, path=Path(__file__).parents[1])
    try:
        seen: set[bytes] = set()
        deadline = time.monotonic() + 20
        while len(seen) < 2 and time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(server.url, timeout=5) as answer:
                seen.add(answer.read())
        assert len(seen) == 2
        assert str(os.getpid()).encode() not in seen
    finally:
        server.stop()
    assert _refused(server.port)


def test_an_environment_variable_names_a_server_to_use_instead(valkey: Valkey, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["servers.postgres", "servers.valkey"]\n')
    (tmp_path / "test_it.py").write_text('def test_it(valkey_url):\n    print("using", valkey_url)\n')
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "REDIS_URL": valkey.url}
    env.pop("PYTEST_XDIST_WORKER", None)
    argv = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:valkey", "-p", "no:schemathesis", str(tmp_path)]
    result = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert f"using {valkey.url}" in result.stdout, result.stdout
