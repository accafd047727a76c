"""A TCP proxy that breaks on command, to stand in front of any real server.

It runs an event loop in a thread of its own, so sync and async tests use it alike. Set its attributes at any time:

- `refuse = True`: new connections are reset at once;
- `blackhole = True`: connected, silent (bytes are held back until it is False again);
- `latency = 0.05`: every chunk waits that many seconds, each way;
- `bytes_per_second = 10_000`: throttled, each way;
- `cut_after = 100`: the connection is reset once the server has sent that many bytes;

and call `reset_all()` to reset every open connection now.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

_Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class FaultProxy:
    """Listen on a free loopback port and pass everything to `host:port` until told otherwise."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.refuse = False
        self.blackhole = False
        self.latency = 0.0
        self.bytes_per_second: float | None = None
        self.cut_after: int | None = None
        self.accepted = 0
        self.port = 0
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def listen() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(listen())
            self._loop.run_forever()
            self._loop.close()

        self._thread = threading.Thread(target=run, name="fault-proxy", daemon=True)
        self._thread.start()
        if not ready.wait(5):
            raise RuntimeError("the fault proxy did not start")

    @property
    def open_connections(self) -> int:
        """How many client connections are open at this moment."""
        return len(self._pairs)

    def heal(self) -> None:
        """Pass everything again."""
        self.refuse = self.blackhole = False
        self.latency = 0.0
        self.bytes_per_second = self.cut_after = None

    def reset_all(self) -> None:
        """Reset (TCP RST) every open connection, both ends."""
        done = threading.Event()

        def reset() -> None:
            for pair in list(self._pairs):
                self._break(pair)
            done.set()

        self._loop.call_soon_threadsafe(reset)
        done.wait(5)

    def stop(self) -> None:
        """Reset what is open, stop listening, join the thread."""

        async def wind_down() -> None:
            self._server.close()
            for pair in list(self._pairs):
                self._break(pair)
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(wind_down(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self.refuse:
            return self._reset(writer)
        try:
            up_reader, up_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            return self._reset(writer)
        pair = (writer, up_writer)
        self._pairs.add(pair)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                self._pump(reader, up_writer, pair, down=False),
                self._pump(up_reader, writer, pair, down=True),
            )
        self._pairs.discard(pair)
        for end in pair:
            end.close()
        return None

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair, *, down: bool
    ) -> None:
        seen = 0
        try:
            while data := await reader.read(65_536):
                if self.latency:
                    await asyncio.sleep(self.latency)
                if self.bytes_per_second:
                    await asyncio.sleep(len(data) / self.bytes_per_second)
                while self.blackhole:
                    await asyncio.sleep(0.01)
                if down and self.cut_after is not None and seen + len(data) > self.cut_after:
                    writer.write(data[: max(0, self.cut_after - seen)])
                    await writer.drain()
                    return self._break(pair)
                seen += len(data)
                writer.write(data)
                await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
        except OSError:
            self._break(pair)
        return None

    def _break(self, pair: _Pair) -> None:
        for end in pair:
            self._reset(end)

    @staticmethod
    def _reset(writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        if connection is not None:
            with contextlib.suppress(OSError):  # SO_LINGER 0 turns close() into a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()


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
