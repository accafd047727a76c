"""An ASGI application under a real uvicorn: in a thread of the test process, or as a process with several workers."""

from __future__ import annotations

import asyncio
import shutil
import socket
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import uvicorn

from servers._process import Leash, on_a_free_port, scratch


class Uvicorn:
    """Serve `app` (any ASGI callable) on a free loopback port from a thread; `url` has no trailing slash."""

    def __init__(self, app: Any, **config: Any) -> None:
        # We bind the socket, so there is no race for the port.
        # With its protocol named, asyncio sets TCP_NODELAY: a kept connection would wait 40 ms for each answer.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        settings: dict[str, Any] = {
            "log_level": "warning",
            "lifespan": "auto",
            "timeout_graceful_shutdown": 2,
        }
        self._server = uvicorn.Server(uvicorn.Config(app, **(settings | config)))
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="uvicorn", daemon=True)
        self._thread.start()
        self._await_start()

    def stop(self) -> None:
        """Finish open requests (2 s at most), run the lifespan's end, join the thread."""
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve(sockets=[self._socket]))
        except BaseException as error:  # handed to the thread that waits in _await_start
            self._failure = error

    def _await_start(self) -> None:
        while not self._server.started:
            self._thread.join(0.01)
            if not self._thread.is_alive():
                self._socket.close()
                raise RuntimeError("the application did not start") from self._failure


class UvicornProcess:
    """Serve `target` ("module:factory", called without arguments) from `workers` processes of their own."""

    def __init__(
        self,
        target: str,
        *,
        workers: int = 1,
        path: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._folder = scratch("uvicorn-")
        self._target, self._workers, self._path, self._env = target, workers, path, env
        try:
            on_a_free_port(self._start)
        except BaseException:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise

    def stop(self, sig: int | None = None) -> None:
        """End the processes and remove their folder."""
        self._leash.end(sig=sig)

    def _start(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        argv = [sys.executable, "-m", "uvicorn", "--factory", self._target, "--host", "127.0.0.1"]
        argv += ["--port", str(port), "--workers", str(self._workers)]
        argv += ["--app-dir", str(self._path)] if self._path else []
        self._leash = Leash(argv, folder=self._folder, env=self._env)
        self._leash.wait_until(self._ready)

    def _ready(self) -> bool:
        # Each worker prints the line: all of them must be up before a test counts processes.
        return self._leash.log().count("Application startup complete") >= self._workers
