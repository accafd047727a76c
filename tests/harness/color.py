"""Both colors of a module under one face: a proof is written once, as if everything were sync.

The async twin runs on an event loop in a thread of its own. So a proof may block, start threads, and call the twin from
many of them at once, and cannot tell which of the two it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Color:
    """One of the two colors, by `name`: "async" or "sync". `close()` closes what was given to `closing`, last first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._closing: list[Callable[[], object]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()  # threads that call at once get the same loop

    @property
    def is_async(self) -> bool:
        """Whether this is the async color."""
        return self.name == "async"

    def pick(self, of_async: T, of_sync: T) -> T:
        """Return what belongs to this color."""
        return of_async if self.is_async else of_sync

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop in its thread; it starts when it is first asked for."""
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(ThreadPoolExecutor(128))
                self._thread = threading.Thread(target=self._loop.run_forever, name="the async color", daemon=True)
                self._thread.start()
            return self._loop

    def run(self, result: Any, within: float = 30.0) -> Any:
        """Return a result, or what it gives when awaited; what a call raised is raised."""
        if not inspect.isawaitable(result):
            return result
        future = asyncio.run_coroutine_threadsafe(_awaited(result), self.loop)
        try:
            return future.result(within)
        except CancelledError:
            raise asyncio.CancelledError from None  # what the coroutine itself would have raised
        except TimeoutError:
            if not future.done():
                future.cancel()
                raise AssertionError(f"it did not end within {within:g} s") from None
            raise

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function of this color, on the loop where there is one, and return what it gives."""
        if not self.is_async:
            return function(*args, **kwargs)

        async def on_the_loop() -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return self.run(on_the_loop())

    def function(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a sync function in this color. The async one may block: it runs in a thread of its own."""
        if not self.is_async:
            return func

        @functools.wraps(func)
        async def in_a_thread(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(func, *args, **kwargs)

        return in_a_thread

    def quick(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a sync function that never blocks in this color. The async one runs on the loop."""
        if not self.is_async:
            return func

        @functools.wraps(func)
        async def on_the_loop(*args: Any, **kwargs: Any) -> Any:
            return func(*args, **kwargs)

        return on_the_loop

    def blocking(self, target: Any) -> Any:
        """Return an object of this color whose methods a proof calls as if they were sync."""
        return Blocking(self, target)

    @contextlib.contextmanager
    def entered(self, manager: Any) -> Iterator[Any]:
        """Enter a context manager of either color; the block sees what it gives."""
        if not hasattr(manager, "__aenter__"):
            with manager as given:
                yield given
            return
        given = self.run(manager.__aenter__())
        try:
            yield given
        except BaseException as error:
            if not self.run(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.run(manager.__aexit__(None, None, None))

    def each(self, items: Any) -> Iterator[Any]:
        """Iterate over what an iterator of either color gives."""
        if not hasattr(items, "__anext__"):
            yield from items
            return
        end = object()
        while (item := self.run(anext(items, end))) is not end:
            yield item

    def closing(self, thing: T) -> T:
        """Close a client, pool or the like when the test is over, by its `aclose` or `close`; return it."""
        self._closing.append(getattr(thing, "aclose", None) or thing.close)  # type: ignore[attr-defined]
        return thing

    def afterwards(self, call: Callable[[], object]) -> None:
        """Call this, awaited where needed, when the test is over."""
        self._closing.append(call)

    def finish(self) -> None:
        """Close what was given to `closing` so far."""
        while self._closing:
            self.call(self._closing.pop())

    def close(self) -> None:
        """Close everything, and end the loop with its threads."""
        try:
            self.finish()
        finally:
            if self._loop is not None and self._thread is not None:
                self.run(_cancel_what_is_left())
                self.run(self._loop.shutdown_default_executor())
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join(30)
                self._loop.close()


class Blocking:
    """An object of either color whose calls return what they return, awaited where needed. `inner` is the object."""

    def __init__(self, color: Color, target: Any) -> None:
        self.color = color
        self.inner = target

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.inner, name)
        if not callable(value) or inspect.isclass(value):
            return value

        @functools.wraps(value)
        def call(*args: Any, **kwargs: Any) -> Any:
            return self._given(self.color.call(value, *args, **kwargs))

        return call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._given(self.color.call(self.inner, *args, **kwargs))

    def __enter__(self) -> Blocking:
        kind = type(self.inner)
        self.color.run(kind.__aenter__(self.inner) if hasattr(kind, "__aenter__") else kind.__enter__(self.inner))
        return self

    def __exit__(self, *exc_info: object) -> Any:
        kind = type(self.inner)
        if hasattr(kind, "__aexit__"):
            return self.color.run(kind.__aexit__(self.inner, *exc_info))
        return kind.__exit__(self.inner, *exc_info)

    def _given(self, result: Any) -> Any:
        """Show an async iterator or context manager as a sync one."""
        if isinstance(result, AsyncGenerator):  # no other iterator: a cursor is one, and more than that
            return self.color.each(result)
        if isinstance(result, contextlib.AbstractAsyncContextManager):
            return self.color.entered(result)
        return result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


async def _cancel_what_is_left() -> None:
    """Cancel the tasks that a test left running, so that none outlives it."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
