"""Where values come from: a slow, counted, failing function to put behind a cache."""

from __future__ import annotations

import threading
from typing import Any


class Origin:
    """Call it to load. It counts its calls, waits while `go` is clear, and raises `error` when there is one.

    Without a `value` it returns the number of the call.
    """

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.loads = 0
        self.error: BaseException | None = None
        self.go = threading.Event()
        self.go.set()
        self.started = threading.Semaphore(0)
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        with self._lock:
            self.loads += 1
            value = self.value if self.value is not None else self.loads  # read first, then slow
        self.started.release()
        assert self.go.wait(20)
        if self.error:
            raise self.error
        return value

    def wait_until_running(self) -> None:
        """Wait until one more call has begun."""
        assert self.started.acquire(timeout=20)
