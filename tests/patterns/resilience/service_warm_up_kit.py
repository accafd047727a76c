"""For the proofs of service-warm-up: a factory that is watched, and services of either color."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from harness.color import Blocking, Color
from warmup_async import AsyncServices
from warmup_sync import Services


class Service:
    """A service that remembers what was done to it."""

    def __init__(self, key: Any) -> None:
        self.key = key
        self.warmed = 0
        self.closed = 0


class Warm(Blocking):
    """Services of either color. `joined` counts who has found, or begun, a creation."""

    def __init__(self, color: Color, create: Callable[[Any], Any], **settings: Any) -> None:
        hooks = {name: color.function(hook) for name, hook in settings.items() if name in ("prewarm", "close")}
        kind: Any = color.pick(AsyncServices, Services)
        super().__init__(color, kind(color.function(create), **(settings | hooks)))
        self.joined = 0
        self._lock = threading.Lock()
        join = self.inner._join_creation

        def counted(key: Any) -> Any:
            found = join(key)
            with self._lock:
                self.joined += 1
            return found

        self.inner._join_creation = counted

    def close(self) -> None:
        self.color.call(getattr(self.inner, self.color.pick("aclose", "close")))


class Factory:
    """Makes services while `go` is set, and remembers them."""

    def __init__(self, fails: Callable[[Any], BaseException | None] = lambda key: None) -> None:
        self.fails = fails
        self.made: list[Service] = []
        self.calls: list[Any] = []
        self.closed: list[Any] = []
        self.go = threading.Event()
        self.go.set()

    def create(self, key: Any) -> Service:
        self.calls.append(key)
        assert self.go.wait(20)
        if error := self.fails(key):
            raise error
        self.made.append(Service(key))
        return self.made[-1]

    def prewarm(self, service: Service) -> None:
        service.warmed += 1

    def close(self, service: Service) -> None:
        service.closed += 1
        self.closed.append(service.key)

    def services(self, color: Color, **settings: Any) -> Warm:
        return Warm(color, self.create, **({"prewarm": self.prewarm, "close": self.close} | settings))
