"""Hears from Redis what other processes change, and has the level in memory forget it (sync)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from redis import Redis, RedisError

from multi_level_core import SERVER_ERRORS, LocalLevel


class ChangeListener:
    """Subscribes to a channel of changed keys, again and again after failures, in a thread.

    `failed` is called with the error of each failure.
    """

    def __init__(
        self,
        redis: Redis,
        channel: str,
        level: LocalLevel,
        failed: Callable[[Exception], object],
    ) -> None:
        self._open_pubsub: Callable[[], Any] = redis.pubsub
        self._channel = channel
        self._level = level
        self._failed = failed
        self._stop = threading.Event()

    def start(self) -> None:
        """Listen; return when the subscription stands, or Redis has failed."""
        tried = threading.Event()
        self._stop.clear()
        self._thread = threading.Thread(target=self._listen, args=[tried], daemon=True)
        self._thread.start()
        tried.wait()

    def stop(self) -> None:
        """Listen no more; this takes up to 0.25 s."""
        self._stop.set()
        self._thread.join()

    def _listen(self, tried: threading.Event) -> None:
        while not self._stop.is_set():
            try:
                with self._open_pubsub() as pubsub:
                    pubsub.subscribe(self._channel)
                    self._hear_messages(pubsub, tried)
            except SERVER_ERRORS as error:
                self._failed(error)
            tried.set()
            self._stop.wait(0.1)

    def _hear_messages(self, pubsub: Any, tried: threading.Event) -> None:
        silent, tick = 0.0, min(self._level.ttl / 4, 0.25)
        while not self._stop.is_set():
            message = pubsub.get_message(timeout=tick)
            self._level.evict()
            if message is None:
                silent += tick
                if silent >= self._level.ttl:
                    raise RedisError(f"nothing heard for {self._level.ttl} s")
                pubsub.ping()  # the answer shows that the connection lives
            else:
                silent = 0.0
                self._level.hear(message)
            tried.set()
