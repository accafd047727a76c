"""Proves docs/patterns/resilience/graceful-shutdown.md: real processes under uvicorn get real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from harness.tls import NOBODY
from harness.waiting import until
from servers._process import free_port

APP = Path(__file__).with_name("graceful_shutdown_app.py")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can handle")


class Process:
    """A server process of which the test sees everything: output and exit code."""

    def __init__(self, kind: str, log: Path, **env: str) -> None:
        self.port = free_port()
        self.log = log
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, str(APP), kind, str(self.port)],
                stdout=output,
                stderr=output,
                env=os.environ | {"DRAIN_DELAY_S": "1", "GRACE_S": "30"} | env,
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        until(lambda: text in self.output() or self.popen.poll() is not None, within=60)
        assert text in self.output()

    def term(self) -> float:
        self.popen.send_signal(signal.SIGTERM)
        return time.monotonic()

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        return self.popen.wait(60)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(kind: str = "graceful", **env: str) -> Process:
        started.append(Process(kind, tmp_path / f"log-{len(started)}", **env))
        if "SLOW_START" not in env:
            started[-1].wait_for("Uvicorn running")
        return started[-1]

    yield begin
    for process in started:
        process.popen.kill()
        process.popen.wait(10)


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, verify=NOBODY, timeout=30) as made:
        yield made


async def read_to_end(response: httpx2.Response) -> str:
    parts = [part async for part in response.aiter_text()]
    return "".join(parts)


async def test_sigterm_drains_closes_finishes_and_cleans_up_and_nothing_is_dropped(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start()
    await client.get(f"{process.url}/work", params={"name": "short", "seconds": 1.5})
    async with client.stream("GET", f"{process.url}/events") as stream:
        events = asyncio.create_task(read_to_end(stream))
        slow = asyncio.create_task(client.get(f"{process.url}/slow", params={"seconds": 1.5}))
        await asyncio.to_thread(process.wait_for, "slow has begun")
        begun = process.term()
        statuses = list[int]()
        new_each_time = httpx2.Limits(max_keepalive_connections=0)
        async with httpx2.AsyncClient(trust_env=False, verify=NOBODY, limits=new_each_time, timeout=30) as fresh:
            with contextlib.suppress(httpx2.TransportError):  # until the listener closes
                while True:
                    statuses.append((await fresh.get(f"{process.url}/ready")).status_code)
                    await asyncio.sleep(0.02)
        closed = time.monotonic() - begun
        assert (await slow).status_code == 200
        assert (await events).endswith(": closing\n\n")
    assert await asyncio.to_thread(process.end) == -signal.SIGTERM

    assert set(statuses[1:]) == {503}  # it went on answering, and said that it is not ready
    assert closed >= 1
    output = process.output()
    assert "finished short" in output
    assert "cancelled ()" in output
    assert "consumed up to True" in output
    assert output.index("cancelled ()") > output.index("closed the pool") > output.index("finished short")


async def test_what_outlives_the_grace_time_is_cancelled_and_named(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start(DRAIN_DELAY_S="0", GRACE_S="0.1")
    await client.get(f"{process.url}/work", params={"name": "long", "seconds": 3600})
    process.term()
    assert await asyncio.to_thread(process.end) == -signal.SIGTERM
    output = process.output()
    assert "cancelled ('long',)" in output
    assert output.index("cancelled ('long'") > output.index("closed the pool")


async def test_a_hung_callback_open_sockets_and_a_slow_start_do_not_keep_it_from_ending(
    start: Callable[..., Process],
) -> None:
    process = start(HANG="1", SLOW_START="0.3", DRAIN_DELAY_S="0.1", GRACE_S="0.2")
    process.wait_for("starting slowly")
    process.term()  # while it starts
    assert await asyncio.to_thread(process.end) == -signal.SIGTERM
    assert "closed the pool" in process.output()

    process = start(HANG="1", DRAIN_DELAY_S="0.1", GRACE_S="0.2")
    sockets = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(100)]
    process.term()
    assert await asyncio.to_thread(process.end) == -signal.SIGTERM  # the callback would take an hour
    assert "closed the pool" in process.output()  # after the one that hung
    for each in sockets:
        each.close()


async def test_a_second_signal_ends_it_at_once(start: Callable[..., Process], client: httpx2.AsyncClient) -> None:
    process = start(DRAIN_DELAY_S="3600")
    process.term()
    while (await client.get(f"{process.url}/ready")).status_code == 200:
        await asyncio.sleep(0.01)
    assert process.popen.poll() is None
    process.term()
    assert await asyncio.to_thread(process.end) == -signal.SIGTERM  # and the drain would take an hour
    assert "closed the pool" not in process.output()


async def is_refused(client: httpx2.AsyncClient, url: str) -> bool:
    """Tell whether nobody listens any more; whoever waited in the queue of the socket meets a reset instead."""
    try:
        await client.get(url)
    except httpx2.ConnectError:
        return True
    except httpx2.TransportError:
        return False
    return False


async def test_plain_uvicorn_refuses_at_once_never_ends_a_stream_and_drops_its_tasks(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start("plain")
    await client.get(f"{process.url}/work", params={"name": "short", "seconds": 0.3})
    async with client.stream("GET", f"{process.url}/events"):
        process.term()
        process.wait_for("Shutting down")
        while not await is_refused(client, f"{process.url}/ready"):  # while the load balancer still routes here
            await asyncio.sleep(0.001)
        await asyncio.to_thread(process.wait_for, "finished short")
        assert process.popen.poll() is None  # and in fact forever

    process = start("plain")
    await client.get(f"{process.url}/work", params={"name": "short", "seconds": 60})
    process.term()
    await asyncio.to_thread(process.end)
    assert "finished short" not in process.output()


async def test_a_handler_that_replaces_the_server_s_keeps_it_from_stopping(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start("replaced")
    process.term()
    process.wait_for("the app's own handler")
    for _ in range(5):
        assert (await client.get(f"{process.url}/ready")).status_code == 200


def test_a_shell_does_not_pass_the_signal_on_and_exec_does(tmp_path: Path) -> None:
    def signaled(command: str) -> tuple[bool, int]:
        log = tmp_path / "log"
        program = "import os, signal, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
        with log.open("wb") as output:
            shell = subprocess.Popen(["sh", "-c", command, "sh", sys.executable, program], stdout=output)
        until(lambda: re.search(r"pid \d+\n", log.read_text()))
        pid = int(log.read_text().split()[1])
        shell.send_signal(signal.SIGTERM)
        shell.wait(10)
        time.sleep(0.05)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return True, shell.returncode
        return False, shell.returncode

    assert signaled('"$1" -c "$2"; true') == (False, -signal.SIGTERM)  # the program never knew
    assert signaled('exec "$1" -c "$2"') == (True, -signal.SIGTERM)
