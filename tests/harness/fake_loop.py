"""An event loop whose time passes only while everybody waits: sleeps take no time, and instants are exact."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Instead of waiting for the next timer, moves the clock to it."""

    loop: FakeTimeLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("everybody waits and nothing is going to happen")
        if not ready and timeout:
            self.loop.now += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and jumps from timer to timer. For what needs no real network."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a loop with fake time, as `asyncio.run` does."""
    with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
        return runner.run(main)


def on_fake_time(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Make a test of a coroutine function without fixtures; it runs on a loop with fake time."""

    def on_a_loop_of_its_own() -> None:
        run(test())

    on_a_loop_of_its_own.__name__, on_a_loop_of_its_own.__doc__ = test.__name__, test.__doc__
    return on_a_loop_of_its_own
