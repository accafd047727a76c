"""Wait until something is so, and call things side by side."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def until(condition: Callable[..., object], *args: object, within: float = 20.0) -> None:
    """Poll `condition(*args)` until it is true; fail after `within` seconds. No proof measures how long it took."""
    deadline = time.monotonic() + within
    while not condition(*args):
        assert time.monotonic() < deadline, f"it did not happen within {within:g} s"
        time.sleep(0.001)


async def auntil(condition: Callable[..., object], *args: object, within: float = 20.0) -> None:
    """Poll as `until` does, and let other tasks run meanwhile."""
    deadline = time.monotonic() + within
    while not condition(*args):
        assert time.monotonic() < deadline, f"it did not happen within {within:g} s"
        await asyncio.sleep(0.001)


def at_once(times: int, call: Callable[[], Any]) -> list[Any]:
    """Call it from so many threads at the same moment; return results, and exceptions where one was raised."""
    return each_at_once(lambda _: call(), range(times))


def each_at_once(call: Callable[[T], Any], items: Iterable[T]) -> list[Any]:
    """Call it for each item, every call from a thread of its own and all at the same moment; as `at_once` otherwise."""
    wanted = list(items)
    gate = threading.Barrier(len(wanted))

    def one(item: T) -> Any:
        gate.wait(20)
        try:
            return call(item)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(wanted)) as pool:
        return list(pool.map(one, wanted))


def in_thread(call: Callable[..., T], *args: Any) -> Future[T]:
    """Begin a call in another thread; `.result(20)` of what is returned waits, and raises what the call raised."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
