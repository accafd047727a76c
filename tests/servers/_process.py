"""What every launcher shares: a free port, and a child process that cannot outlive the test run."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# A plain child survives when pytest is killed. A watcher owns the server instead and waits for our end of a pipe
# to close, which the operating system does for us however we die. What it reads before that says how to end:
# "<signal> keep" leaves the folder in place so that the server can be started again.
_WATCH = r"""
import os, shutil, signal, subprocess, sys, threading
folder, default, argv = sys.argv[1], sys.argv[2], sys.argv[3:]
signal.signal(signal.SIGINT, signal.SIG_IGN)      # Ctrl-C in a terminal goes to the whole group
uid, gid = os.environ.pop("LEASH_UID", ""), os.environ.pop("LEASH_GID", "")
account = dict(user=int(uid), group=int(gid), extra_groups=[]) if uid else {}
server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **account)
ending = False
def reap():
    code = server.wait()
    if not ending:                                # it ended by itself: keep its files, the log says why
        os._exit(code & 0xFF)
threading.Thread(target=reap, daemon=True).start()
order = sys.stdin.buffer.read().decode().split() or [default, "remove"]
ending = True
server.send_signal(int(order[0]))
try:
    server.wait(10)
except subprocess.TimeoutExpired:
    server.kill()
    server.wait()
if order[1] == "remove":
    shutil.rmtree(folder, ignore_errors=True)
os._exit(0)
"""


def free_port() -> int:
    """Return a loopback TCP port nobody listens on right now (another process may still take it)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def on_a_free_port(start: Callable[[int], None], attempts: int = 5) -> None:
    """Call `start(port)`; on `RuntimeError` try another port, since choosing a free one is a race."""
    for _ in range(attempts - 1):
        with contextlib.suppress(RuntimeError):
            return start(free_port())
    return start(free_port())


class Leash:
    """A server process on a leash: it is gone, and its folder with it, a moment after its owner."""

    def __init__(
        self,
        argv: Sequence[str | Path],
        *,
        folder: Path,
        stop_signal: int = signal.SIGTERM,
        account: tuple[int, int] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Start `argv` with its output in `folder/log`."""
        self.folder = folder
        self._stop_signal = int(stop_signal)
        environment = dict(os.environ if env is None else env)
        if account:
            environment |= {"LEASH_UID": str(account[0]), "LEASH_GID": str(account[1])}
        with (folder / "log").open("ab") as log:
            self.watcher = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _WATCH,
                    str(folder),
                    str(self._stop_signal),
                    *map(str, argv),
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                cwd="/" if os.name == "posix" else None,
            )

    def log(self) -> str:
        """Return what the server has printed so far."""
        return (self.folder / "log").read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool], timeout: float = 30.0) -> None:
        """Poll `ready` every 10 ms; raise `RuntimeError` with the log when the server ends or is late."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.watcher.poll() is not None or time.monotonic() > deadline:
                log = self.log()[-2000:]
                self.end(keep=True)
                raise RuntimeError(f"the server did not come up: {log}")
            time.sleep(0.01)

    def end(self, *, sig: int | None = None, keep: bool = False) -> None:
        """Send `sig` (default: the stop signal), wait, and remove the folder unless `keep`."""
        assert self.watcher.stdin is not None
        # Where the server has ended by itself there is nobody to tell.
        with contextlib.suppress(BrokenPipeError, ValueError):
            order = f"{int(sig or self._stop_signal)} {'keep' if keep else 'remove'}"
            self.watcher.stdin.write(order.encode())
        with contextlib.suppress(BrokenPipeError):
            self.watcher.stdin.close()
        self.watcher.wait(30)
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


def scratch(prefix: str) -> Path:
    """Return a new folder with a short path: a Unix socket's may have 103 bytes on macOS."""
    return Path(tempfile.mkdtemp(prefix=prefix, dir="/tmp" if Path("/tmp").is_dir() else None))
