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

from servers._process import free_port

APP = Path(__file__).with_name("graceful_shutdown_app.py")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can handle")


class Process:
    """A server process of which the test sees everything: output, exit code, duration."""

    def __init__(self, kind: str, log: Path, **env: str) -> None:
        self.port, self.log = free_port(), log
        self.url = f"http://127.0.0.1:{self.port}"
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                [sys.executable, str(APP), kind, str(self.port)],
                stdout=output,
                stderr=output,
                env=os.environ | {"DRAIN_DELAY_S": "0.4", "GRACE_S": "0.8"} | env,
            )

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        for _ in range(3000):
            if text in self.output():
                return
            assert self.popen.poll() is None, self.output()
            time.sleep(0.01)
        raise AssertionError(self.output())

    def term(self) -> float:
        self.popen.send_signal(signal.SIGTERM)
        return time.monotonic()


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
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as made:
        yield made


async def read_to_end(response: httpx2.Response) -> str:
    parts = [part async for part in response.aiter_text()]
    return "".join(parts)


async def test_sigterm_drains_closes_finishes_and_cleans_up_and_nothing_is_dropped(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start()
    for name, seconds in (("short", 0.9), ("long", 60)):
        await client.get(f"{process.url}/work", params={"name": name, "seconds": seconds})
    async with client.stream("GET", f"{process.url}/events") as stream:
        events = asyncio.create_task(read_to_end(stream))
        slow = asyncio.create_task(client.get(f"{process.url}/slow"))
        await asyncio.sleep(0.1)
        context = httpx2.create_ssl_context(trust_env=False)  # the slow part of a client
        begun = process.term()
        statuses = list[int]()
        with contextlib.suppress(httpx2.TransportError):  # until the listener closes
            while time.monotonic() - begun < 5:
                async with httpx2.AsyncClient(trust_env=False, verify=context) as fresh:  # a new connection each
                    statuses.append((await fresh.get(f"{process.url}/ready")).status_code)
                await asyncio.sleep(0.02)
        closed = time.monotonic() - begun
        assert (await slow).status_code == 200
        assert (await events).endswith(": closing\n\n")
    code = await asyncio.to_thread(process.popen.wait, 10)
    took = time.monotonic() - begun

    assert set(statuses[1:]) == {503}
    assert len(statuses) > 3  # it went on answering
    assert 0.4 <= closed < 3
    output = process.output()
    assert "finished short" in output
    assert "cancelled ('long',)" in output
    assert "consumed up to True" in output
    assert output.index("cancelled ('long'") > output.index("closed the pool")
    assert took < 0.4 + 0.8 + 1 + 1.5  # the last is for a machine that is busy
    assert code == -signal.SIGTERM


async def test_a_hung_callback_a_hundred_open_sockets_and_a_slow_start_do_not_keep_it_from_ending(
    start: Callable[..., Process],
) -> None:
    process = start(HANG="1", SLOW_START="0.3", DRAIN_DELAY_S="0.1", GRACE_S="0.2")
    process.wait_for("starting slowly")
    process.popen.send_signal(signal.SIGTERM)  # while it starts
    assert await asyncio.to_thread(process.popen.wait, 20) == -signal.SIGTERM
    assert "closed the pool" in process.output()

    process = start(HANG="1", DRAIN_DELAY_S="0.1", GRACE_S="0.2")
    sockets = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(100)]
    begun = process.term()
    assert await asyncio.to_thread(process.popen.wait, 20) == -signal.SIGTERM
    assert time.monotonic() - begun < 0.1 + 1 + 1 + 2  # uvicorn's limit is a whole second
    assert "closed the pool" in process.output()  # after the one that hung
    for each in sockets:
        each.close()


async def test_a_second_signal_ends_it_at_once(start: Callable[..., Process]) -> None:
    process = start(DRAIN_DELAY_S="60")
    process.term()
    time.sleep(0.2)
    assert process.popen.poll() is None
    begun = process.term()
    assert await asyncio.to_thread(process.popen.wait, 10) == -signal.SIGTERM
    assert time.monotonic() - begun < 5
    assert "closed the pool" not in process.output()


async def test_plain_uvicorn_refuses_at_once_never_ends_with_a_stream_open_and_drops_its_tasks(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start("plain")
    await client.get(f"{process.url}/work", params={"name": "short", "seconds": 0.3})
    async with client.stream("GET", f"{process.url}/events"):
        process.term()
        process.wait_for("Shutting down")
        with pytest.raises(httpx2.ConnectError):  # while the load balancer still routes here
            await client.get(f"{process.url}/ready")
        await asyncio.sleep(0.8)
        assert process.popen.poll() is None  # and in fact for ever

    process = start("plain")
    await client.get(f"{process.url}/work", params={"name": "short", "seconds": 0.3})
    process.term()
    await asyncio.to_thread(process.popen.wait, 10)
    assert "finished short" not in process.output()


async def test_a_handler_that_replaces_the_server_s_keeps_it_from_stopping(
    start: Callable[..., Process], client: httpx2.AsyncClient
) -> None:
    process = start("replaced")
    process.term()
    process.wait_for("the app's own handler")
    await asyncio.sleep(0.3)
    assert (await client.get(f"{process.url}/ready")).status_code == 200


def test_a_shell_does_not_pass_the_signal_on_and_exec_does(tmp_path: Path) -> None:
    def signaled(command: str) -> tuple[bool, int]:
        log = tmp_path / "log"
        program = "import os, signal, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
        with log.open("wb") as output:
            shell = subprocess.Popen(["sh", "-c", command, "sh", sys.executable, program], stdout=output)
        while not (found := re.search(r"pid (\d+)\n", log.read_text())):
            time.sleep(0.01)
        pid = int(found[1])
        shell.send_signal(signal.SIGTERM)
        shell.wait(10)
        time.sleep(0.1)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return True, shell.returncode
        return False, shell.returncode

    assert signaled('"$1" -c "$2"; true') == (False, -signal.SIGTERM)  # the program never knew
    assert signaled('exec "$1" -c "$2"') == (True, -signal.SIGTERM)
