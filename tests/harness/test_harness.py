"""The harness itself: a proof that leans on it must not be able to pass by its mistakes."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest

from harness import tls
from harness.clock import Clock
from harness.color import Blocking, Color
from harness.origin import Origin
from harness.scripted import Answer, Script
from harness.waiting import at_once, auntil, each_at_once, in_thread, until


def test_a_clock_moves_when_somebody_sleeps_and_keeps_the_pauses(color: Color) -> None:
    clock = Clock(5.0)
    seen: list[float] = []
    clock.at_pause = lambda seconds: seen.append(clock())
    color.call(color.pick(clock.asleep, clock.sleep), 2.0)
    clock.advance(1.0)
    assert (clock(), clock.pauses, seen) == (8.0, [2.0], [7.0])


def test_threads_that_sleep_at_once_lose_no_second() -> None:
    clock = Clock(0.0)
    at_once(50, lambda: clock.sleep(1.0))
    assert (clock(), len(clock.pauses)) == (50.0, 50)


class Thing:
    """The sync twin of something."""

    limit = 3

    def get(self, key: str) -> str:
        return f"got {key}"

    def fail(self) -> None:
        raise KeyError("mine")

    def all(self) -> Iterator[int]:
        yield from (1, 2, 3)

    @contextlib.contextmanager
    def lent(self) -> Iterator[str]:
        yield "lent"

    def __enter__(self) -> Thing:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.limit = 0

    close = __exit__


class AsyncThing:
    """The async twin."""

    limit = 3

    async def get(self, key: str) -> str:
        await asyncio.sleep(0)
        return f"got {key}"

    async def fail(self) -> None:
        raise KeyError("mine")

    async def all(self) -> AsyncIterator[int]:
        for number in (1, 2, 3):
            yield number

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[str]:
        yield "lent"

    async def __aenter__(self) -> AsyncThing:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.limit = 0

    aclose = __aexit__


@pytest.fixture
def thing(color: Color) -> Any:
    return color.blocking(color.pick(AsyncThing, Thing)())


def test_both_colors_are_called_alike(thing: Blocking) -> None:
    assert thing.get("x") == "got x"
    assert thing.limit == 3
    assert list(thing.all()) == [1, 2, 3]
    with thing.lent() as lent:
        assert lent == "lent"
    with thing as entered:
        assert entered.get("y") == "got y"
    assert thing.limit == 0


def test_what_a_call_raises_is_raised_in_both_colors(thing: Blocking) -> None:
    with pytest.raises(KeyError, match="mine"):
        thing.fail()


def test_a_cancelled_call_is_told_as_asyncio_tells_it() -> None:
    color = Color("async")

    async def cancelled() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        color.run(cancelled())
    color.close()


def test_a_timeout_that_a_call_raises_is_the_calls_own() -> None:
    color = Color("async")

    async def late() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        color.run(late())
    color.close()


def test_a_call_that_never_ends_fails_the_proof() -> None:
    color = Color("async")
    with pytest.raises(AssertionError, match=r"it did not end within 0\.05 s"):
        color.run(asyncio.Event().wait(), within=0.05)
    color.close()


def test_a_color_leaves_no_task_and_no_thread(color: Color) -> None:
    own = Color(color.name)
    before = set(threading.enumerate())

    async def forever() -> None:
        await asyncio.Event().wait()

    if own.is_async:
        own.call(lambda: own.afterwards(asyncio.get_running_loop().create_task(forever()).cancelled))
    own.close()
    assert set(threading.enumerate()) <= before


def test_a_color_closes_the_last_thing_first(color: Color) -> None:
    closed: list[str] = []
    own = Color(color.name)
    for name in ("pool", "client"):
        own.afterwards(own.quick(lambda name=name: closed.append(name)))
    thing: Any = own.closing(own.pick(AsyncThing, Thing)())
    own.close()
    assert closed == ["client", "pool"]
    assert thing.limit == 0


def test_a_sync_function_runs_in_both_colors_and_may_block(color: Color) -> None:
    here = threading.current_thread()
    load = color.function(lambda: threading.current_thread())
    assert (color.call(load) is here) is not color.is_async
    quick = color.quick(lambda: 3)
    assert color.call(quick) == 3


def test_a_context_variable_is_seen_in_both_colors(color: Color) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set here")
    assert color.call(color.quick(variable.get)) == "set here"


def test_until_waits_for_the_condition_and_gives_up_with_a_reason() -> None:
    done = threading.Event()
    threading.Timer(0.01, done.set).start()
    until(done.is_set)
    with pytest.raises(AssertionError, match="did not happen within 0 s"):
        until(lambda: False, within=0.0)


async def test_auntil_lets_other_tasks_run_meanwhile() -> None:
    done = asyncio.Event()
    task = asyncio.create_task(auntil(done.is_set))
    await asyncio.sleep(0)
    done.set()
    await task
    with pytest.raises(AssertionError, match="did not happen within 0 s"):
        await auntil(lambda: False, within=0.0)


def test_calls_at_once_are_all_under_way_before_one_returns() -> None:
    gate = threading.Barrier(8)

    def meet() -> int:
        return gate.wait(10)

    assert sorted(at_once(8, meet)) == list(range(8))


def test_calls_at_once_return_results_and_exceptions_in_order() -> None:
    found = each_at_once(lambda number: 10 // number, [5, 0, 2])
    assert found[0] == 2
    assert isinstance(found[1], ZeroDivisionError)
    assert found[2] == 5


def test_a_call_in_a_thread_gives_its_result_or_its_exception() -> None:
    assert in_thread(lambda number: number + 1, 2).result(10) == 3
    with pytest.raises(SystemExit):
        in_thread(lambda: (_ for _ in ()).throw(SystemExit)).result(10)


def test_an_origin_counts_waits_and_fails_on_command() -> None:
    origin = Origin()
    assert (origin(), origin(), origin.loads) == (1, 2, 2)
    origin.go.clear()
    call = in_thread(origin)
    origin.wait_until_running()
    assert not call.done()
    origin.error = KeyError("down")
    origin.go.set()
    with pytest.raises(KeyError):
        call.result(10)


def test_a_script_answers_in_order_and_keeps_what_it_saw(scripted: Script) -> None:
    scripted.answer(503, Answer(201, {"made": True}, {"x-own": "1"}))
    with httpx2.Client(verify=tls.NOBODY) as client:
        answers = [client.post(f"{scripted.url}/a?b=c", content=b"body") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 201, 201]
    assert answers[1].json() == {"made": True}
    assert answers[1].headers["x-own"] == "1"
    assert scripted.targets == ["/a?b=c"] * 3
    assert scripted.seen[0].body == b"body"


def test_a_raw_server_sends_bytes_as_they_are(raw: Any) -> None:
    server = raw(Answer(200, b"short").raw(length=500))
    with httpx2.Client(verify=tls.NOBODY) as client, pytest.raises(httpx2.TransportError):
        client.get(server.url, timeout=0.2)
    assert server.connections == 1


def test_fake_time_passes_only_while_everybody_waits() -> None:
    from harness import fake_loop

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        await asyncio.sleep(3600)
        return begin, loop.time()

    begin = time.process_time()
    assert fake_loop.run(main()) == (0.0, 3600.0)
    assert time.process_time() - begin < 10


def test_fake_time_refuses_to_wait_for_nothing() -> None:
    from harness import fake_loop

    with pytest.raises(RuntimeError, match="everybody waits and nothing is going to happen"):
        fake_loop.run(asyncio.Event().wait())
