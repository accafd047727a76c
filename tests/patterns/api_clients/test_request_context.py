"""Proves docs/patterns/api-clients/request-context.md: one id in every log line and outgoing call of a request."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import importlib.util
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from fastapi import Depends, FastAPI
from starlette.testclient import TestClient

import request_context
from request_context import (
    ContextFilter,
    RequestContext,
    allowed_hosts_from_env,
    async_outgoing_hook,
    bind,
    carried,
    correlation_header_from_env,
    current,
    from_headers,
    outgoing_hook,
    run_in_thread,
    to_headers,
)
from servers.http import Uvicorn


def id_of() -> str | None:
    context = current()
    return context.correlation_id if context else None


async def call(app: Any, headers: list[tuple[bytes, bytes]] | None = None, kind: str = "http") -> list[dict[str, Any]]:
    """Send one request straight to an ASGI application; return the messages that it sends."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": kind, "method": "GET", "path": "/", "query_string": b"", "headers": headers or []}
    await app(scope, receive, send)
    return sent


async def answer(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the id that the application sees."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"its own")]})
    await send({"type": "http.response.body", "body": str(id_of()).encode()})


wrapped = request_context.RequestContextMiddleware(answer)


# --- binding


def test_a_context_is_current_within_its_block_and_nests_and_unwinds_in_order() -> None:
    assert current() is None
    with bind(correlation_id="a") as outer:
        assert current() is outer
        with bind(tenant="acme", session_id="s-1") as inner:
            assert inner == RequestContext("a", "s-1", "acme")
        assert current() is outer
        with pytest.raises(ValueError, match="in the body"), bind(correlation_id="b"):
            raise ValueError("in the body")
        assert current() is outer
        with bind(RequestContext("other")) as other:
            assert (other.correlation_id, other.tenant) == ("other", None)
    assert current() is None


def test_without_an_id_a_new_one_is_made_each_time() -> None:
    with bind() as first:
        pass
    with bind(tenant="acme") as second:
        pass
    assert len(first.correlation_id) == len(second.correlation_id) == 32
    assert first.correlation_id != second.correlation_id
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.tenant = "other"  # type: ignore[misc]


BAD = ["", "a" * 129, "a" * 8192, "a b", "a\nb", "a\r\nSet-Cookie: x", "\x00", "ü", "a\n", "<script>"]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("field", ["correlation_id", "session_id", "tenant"])
def test_a_bad_value_is_refused_and_named(field: str, bad: str) -> None:
    with pytest.raises(ValueError, match=f"{field} must be 1 to 128 letters"), bind(None, **{field: bad}):
        pytest.fail("bound")
    with bind(None, **{field: "a" * 128}), bind(None, **{field: "A.z_0-9"}):
        pass


async def test_a_task_keeps_the_id_and_what_a_child_binds_is_invisible_to_its_parent() -> None:
    async def child() -> str | None:
        before = id_of()
        request_context._current.set(RequestContext("child"))
        return before

    with bind(correlation_id="parent"):
        task = asyncio.create_task(child())
    assert await task == "parent"
    with bind(correlation_id="parent"):
        await asyncio.create_task(child())
        assert id_of() == "parent"


async def test_threads_see_the_id_by_to_thread_run_in_thread_and_carried() -> None:
    barrier = threading.Barrier(2)

    def meet(tag: str, *, end: str = "") -> str:
        barrier.wait(20)
        return f"{tag}{id_of()}{end}"

    with bind(correlation_id="a"), ThreadPoolExecutor(2) as pool:
        assert await asyncio.to_thread(id_of) == "a"
        assert await run_in_thread(id_of) == "a"
        first, second = await asyncio.gather(run_in_thread(meet, "1", end="."), run_in_thread(meet, "2"))
        assert (first, second) == ("1a.", "2a")
        meet_here = carried(meet)
        assert list(pool.map(meet_here, "34")) == ["3a", "4a"]  # at the same time


# --- the middleware


@pytest.mark.parametrize("good", ["a", "a" * 128, "req-1_2.3"])
async def test_an_id_that_comes_in_is_used_and_sent_back(good: str) -> None:
    start, body = await call(wrapped, [(b"x-request-id", good.encode())])
    assert start["headers"] == [(b"x-request-id", good.encode())]  # and not the application's own
    assert body["body"] == good.encode()
    assert current() is None


@pytest.mark.parametrize("bad", [*(bad.encode("latin-1") for bad in BAD), b"\xff"])
async def test_an_id_that_is_not_valid_is_replaced_by_a_fresh_one(bad: bytes) -> None:
    (start, body), (again, _) = [await call(wrapped, [(b"x-request-id", bad)]) for _ in range(2)]
    fresh = start["headers"][0][1]
    assert len(fresh) == 32
    assert body["body"] == fresh != again["headers"][0][1]


async def test_of_duplicate_headers_the_first_valid_one_wins() -> None:
    headers = [(b"x-request-id", b"not valid"), (b"x-request-id", b"first"), (b"x-request-id", b"second")]
    start, _ = await call(wrapped, headers)
    assert start["headers"] == [(b"x-request-id", b"first")]


async def test_a_session_id_is_taken_and_a_tenant_from_outside_is_not() -> None:
    seen: list[RequestContext | None] = []

    async def look(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current())

    headers = [(b"x-session-id", b"s-1"), (b"x-tenant-id", b"somebody-else"), (b"x-request-id", b"a")]
    await call(request_context.RequestContextMiddleware(look), headers)
    assert seen == [RequestContext("a", "s-1", None)]


async def test_an_error_before_the_answer_is_a_500_with_the_id_and_goes_on_to_the_server() -> None:
    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("bug")

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    app = request_context.RequestContextMiddleware(fail)
    with pytest.raises(ValueError, match="bug"):
        await app({"type": "http", "headers": [(b"x-request-id", b"a")]}, None, send)
    assert sent == [
        {"type": "http.response.start", "status": 500, "headers": [(b"x-request-id", b"a")]},
        {"type": "http.response.body", "body": b"Internal Server Error"},
    ]
    for started in ("http", "websocket"):
        sent.clear()

        async def fail_late(scope: Any, receive: Any, send: Any) -> None:
            kind = "http.response.start" if scope["type"] == "http" else "websocket.accept"
            await send({"type": kind})
            raise ValueError("bug")

        with pytest.raises(ValueError, match="bug"):
            await request_context.RequestContextMiddleware(fail_late)({"type": started, "headers": []}, None, send)
        assert len(sent) == 1
        assert len(sent[0]["headers"]) == 1
    sent.clear()
    with pytest.raises(ValueError, match="bug"):  # a websocket that was not accepted: the server closes it
        await app({"type": "websocket", "headers": []}, None, send)
    assert sent == []


def test_fastapi_s_own_error_answers_carry_the_id_however_the_middleware_is_added() -> None:
    api = FastAPI()

    @api.get("/bug")
    async def bug() -> None:
        raise ValueError("bug")

    outside: Any = request_context.RequestContextMiddleware(api)
    inside = FastAPI()
    inside.add_middleware(request_context.RequestContextMiddleware)
    inside.router.routes.extend(api.router.routes)
    for app in (outside, inside):
        client = TestClient(app, raise_server_exceptions=False)
        for path, status in (("/bug", 500), ("/none", 404)):
            response = client.get(path, headers={"X-Request-ID": "a"})
            assert (response.status_code, response.headers["X-Request-ID"]) == (status, "a")


def test_a_websocket_has_an_id_and_the_lifespan_passes_through() -> None:
    lifespans: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            lifespans.append(id_of())
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": str(id_of())})
        await send({"type": "websocket.close"})

    asgi: Any = request_context.RequestContextMiddleware(app)
    with TestClient(asgi) as client, client.websocket_connect("/", headers={"X-Request-ID": "a"}) as socket:
        assert socket.receive_text() == "a"
        assert (b"x-request-id", b"a") in list[Any](socket.extra_headers or [])
    assert lifespans == [None]


async def test_two_requests_of_fifty_awaits_each_never_see_each_other_s_id() -> None:
    seen: dict[str, set[str | None]] = {"a": set(), "b": set()}

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        mine = str(id_of())
        for _ in range(50):
            seen[mine].add(id_of())
            await asyncio.sleep(0)

    app = request_context.RequestContextMiddleware(slow)
    with bind(correlation_id="outer"):
        await asyncio.gather(*(call(app, [(b"x-request-id", name.encode())]) for name in "ab"))
        assert id_of() == "outer"
    assert seen == {"a": {"a"}, "b": {"b"}}


# --- outgoing calls


def sent_headers(hosts: list[str], url: str, headers: dict[str, str] | None = None) -> dict[str, str]:
    """Return the headers that a request arrives with, by the sync and by the async client."""
    arrived: list[dict[str, str]] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        arrived.append({name: request.headers[name] for name in request.headers if name.startswith("x-")})
        return httpx2.Response(200)

    async def asynchronously() -> None:
        hooks = {"request": [async_outgoing_hook(hosts)]}
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(handler), event_hooks=hooks) as client:
            await client.get(url, headers=headers)

    hooks = {"request": [outgoing_hook(hosts)]}
    with bind(RequestContext("a", "s-1", "acme")):
        with httpx2.Client(transport=httpx2.MockTransport(handler), event_hooks=hooks) as client:
            client.get(url, headers=headers)
        asyncio.run(asynchronously())
    assert arrived[0] == arrived[1]
    return arrived[0]


CARRIED = {"x-request-id": "a", "x-session-id": "s-1", "x-tenant-id": "acme"}


@pytest.mark.parametrize("url", ["http://api.example.com/", "https://API.Example.COM:8443/x?y"])
def test_a_call_to_a_host_on_the_list_carries_the_context(url: str) -> None:
    assert sent_headers(["Api.example.com"], url) == CARRIED


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com.evil.test/",
        "http://evil.test/api.example.com",
        "http://example.com/",
        "http://sub.api.example.com/",
        "http://api.example.com@evil.test/",
        "http://api-example.com/",
    ],
)
def test_a_call_to_any_other_host_carries_nothing(url: str) -> None:
    assert sent_headers(["api.example.com"], url) == {}


def test_a_header_that_the_caller_set_is_not_overwritten() -> None:
    given = {"X-Request-ID": "mine"}
    assert sent_headers(["api.example.com"], "http://api.example.com/", given) == CARRIED | {"x-request-id": "mine"}
    assert sent_headers(["api.example.com"], "http://other.test/", given) == {"x-request-id": "mine"}


def test_a_redirect_to_another_host_goes_without_the_context() -> None:
    arrived: dict[str, set[str]] = {}

    def handler(request: httpx2.Request) -> httpx2.Response:
        arrived[request.url.host] = {name for name in request.headers if name.startswith("x-")}
        location = {"api.example.com": "http://evil.test/", "evil.test": "http://API.example.com:81/last"}
        if request.url.path == "/last":
            return httpx2.Response(200)
        return httpx2.Response(302, headers={"Location": location[request.url.host]})

    hooks = {"request": [outgoing_hook(["api.example.com"])]}
    transport = httpx2.MockTransport(handler)
    with httpx2.Client(transport=transport, event_hooks=hooks, follow_redirects=True) as client:
        with bind(RequestContext("a", "s-1")):
            client.get("http://api.example.com/")
        assert arrived == {"api.example.com": {"x-request-id", "x-session-id"}, "evil.test": set()}
        client.get("http://api.example.com/")  # outside of any request
        assert arrived["api.example.com"] == set()


# --- messages and logs


def test_a_message_carries_the_context_and_a_consumer_takes_it_up() -> None:
    assert to_headers() == {}
    with bind(RequestContext("a", "s-1", "acme")):
        headers = to_headers()
    assert headers == {"X-Request-ID": "a", "X-Session-ID": "s-1", "X-Tenant-ID": "acme"}
    assert from_headers({name.upper(): value for name, value in headers.items()}) == RequestContext("a", "s-1", "acme")
    with bind(correlation_id="b"):
        assert to_headers() == {"X-Request-ID": "b"}


@pytest.mark.parametrize("headers", [{}, {"X-Request-ID": "not valid"}, {"X-Tenant-ID": "a\nb"}])
def test_a_message_without_valid_headers_gets_a_fresh_id_and_nothing_else(headers: dict[str, str]) -> None:
    first, second = from_headers(headers), from_headers(headers)
    assert first.correlation_id != second.correlation_id
    assert (first.session_id, first.tenant) == (None, None)


def test_log_lines_carry_the_context_through_the_handler_s_filter() -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler, logger = Lines(), logging.getLogger("request_context_proof.child")
    handler.setFormatter(logging.Formatter("%(correlation_id)s %(session_id)s %(tenant)s %(message)s"))
    handler.addFilter(ContextFilter())
    logging.getLogger("request_context_proof").addHandler(handler)
    with bind(correlation_id="a", tenant="acme"):
        logger.warning("inside")
    logger.warning("outside")
    assert lines == ["a - acme inside", "- - - outside"]


def test_the_header_and_the_hosts_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONTEXT_ALLOWED_HOSTS", raising=False)
    assert allowed_hosts_from_env() == []
    monkeypatch.setenv("CONTEXT_ALLOWED_HOSTS", " stock.internal,,prices.internal ")
    assert allowed_hosts_from_env() == ["stock.internal", "prices.internal"]
    assert allowed_hosts_from_env({"CONTEXT_ALLOWED_HOSTS": "a.internal"}) == ["a.internal"]
    monkeypatch.setenv("CORRELATION_HEADER", "X-Correlation-ID")
    spec = importlib.util.spec_from_file_location("request_context_anew", request_context.__file__)
    assert spec
    assert spec.loader
    anew = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, anew)
    spec.loader.exec_module(anew)
    assert anew.HEADERS["correlation_id"] == "X-Correlation-ID"
    assert request_context.HEADERS["correlation_id"] == "X-Request-ID"


def test_a_correlation_header_that_no_header_can_have_stops_the_start_and_is_named() -> None:
    assert correlation_header_from_env({}) == correlation_header_from_env({"CORRELATION_HEADER": ""}) == "X-Request-ID"
    assert correlation_header_from_env({"CORRELATION_HEADER": "traceparent"}) == "traceparent"
    for wrong in ("X Request", "X-Request-ID:", "ü", "X\r\nY"):
        with pytest.raises(ValueError, match="CORRELATION_HEADER must be the name of a header") as caught:
            correlation_header_from_env({"CORRELATION_HEADER": wrong})
        assert str(caught.value).endswith(f", got {wrong!r}")


# --- gotchas


async def test_run_in_executor_and_submit_lose_the_id_and_carried_keeps_it() -> None:
    loop = asyncio.get_running_loop()
    with bind(correlation_id="a"), ThreadPoolExecutor(1) as pool:
        assert await loop.run_in_executor(None, id_of) is None
        assert pool.submit(id_of).result(20) is None
        assert pool.submit(carried(id_of)).result(20) == "a"
        assert await loop.run_in_executor(pool, carried(id_of)) == "a"


def test_a_variable_set_in_a_sync_dependency_does_not_reach_the_endpoint() -> None:
    user: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    app = FastAPI()

    def in_sync() -> None:
        user.set("ann")

    async def in_async() -> None:
        user.set("ann")

    @app.get("/sync", dependencies=[Depends(in_sync)])
    @app.get("/async", dependencies=[Depends(in_async)])
    async def endpoint() -> str:
        return user.get()

    @app.get("/id")
    def in_a_worker_thread() -> str | None:
        return id_of()

    asgi: Any = request_context.RequestContextMiddleware(app)
    with TestClient(asgi) as client:
        assert client.get("/sync").json() == "nobody"
        assert client.get("/async").json() == "ann"
        assert client.get("/id", headers={"X-Request-ID": "a"}).json() == "a"


async def test_a_thread_local_mixes_the_ids_of_coroutines_and_a_context_variable_does_not() -> None:
    local = threading.local()

    async def naive(name: str) -> str:
        local.id = name
        await asyncio.sleep(0)
        return str(local.id)

    async def ours(name: str) -> str | None:
        with bind(correlation_id=name):
            await asyncio.sleep(0)
            return id_of()

    assert list(await asyncio.gather(naive("a"), naive("b"))) == ["b", "b"]
    assert list(await asyncio.gather(ours("a"), ours("b"))) == ["a", "b"]


async def test_a_consumer_that_only_sets_gives_the_second_message_the_first_one_s_id() -> None:
    variable: contextvars.ContextVar[str | None] = contextvars.ContextVar("id", default=None)
    messages: list[dict[str, str]] = [{"X-Request-ID": "first"}, {}]
    naive: list[str | None] = []
    for message in messages:
        if "X-Request-ID" in message:
            variable.set(message["X-Request-ID"])
        naive.append(variable.get())
    assert naive == ["first", "first"]

    ours: list[str | None] = []
    for message in messages:
        with bind(from_headers(message)):
            ours.append(id_of())
    assert ours[0] == "first"
    assert len(ours[1] or "") == 32


def test_one_call_that_forgets_the_header_breaks_the_chain_and_a_hook_does_not() -> None:
    arrived: list[str | None] = []

    def handler(request: httpx2.Request) -> httpx2.Response:
        arrived.append(request.headers.get("X-Request-ID"))
        return httpx2.Response(200)

    def by_hand(client: httpx2.Client, request_id: str | None = None) -> None:
        client.get("http://stock/", headers={"X-Request-ID": request_id} if request_id else None)

    transport = httpx2.MockTransport(handler)
    hooks = {"request": [outgoing_hook(["stock"])]}
    naive, ours = httpx2.Client(transport=transport), httpx2.Client(transport=transport, event_hooks=hooks)
    with naive, ours, bind(correlation_id="a"):
        by_hand(naive, "a")
        by_hand(naive)
        by_hand(ours)
    assert arrived == ["a", None, "a"]


async def test_a_generator_that_another_task_closes_raises_for_a_token_and_here_does_not() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("id", default="none")

    async def naive() -> AsyncIterator[int]:
        token = variable.set("a")
        try:
            yield 1
        finally:
            variable.reset(token)

    async def ours() -> AsyncIterator[int]:
        with bind(correlation_id="a"):
            yield 1

    async def close_elsewhere(make: Callable[[], AsyncIterator[int]]) -> None:
        generator: Any = make()
        await asyncio.create_task(generator.__anext__())
        await asyncio.create_task(generator.aclose())

    with pytest.raises(ValueError, match="was created in a different Context"):
        await close_elsewhere(naive)
    await close_elsewhere(ours)
    assert current() is None


# --- real servers


class Service:
    """An ASGI application under uvicorn that notes the ids it sees and does what it is told."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.seen: list[str | None] = []
        self.work = work
        self.server = Uvicorn(request_context.RequestContextMiddleware(self), lifespan="off")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.seen.append(id_of())
        body = await self.work()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(body).encode()})


@pytest.fixture
def chain() -> Iterator[tuple[Service, Service, list[Any]]]:
    """Service A, which works in a thread, queues a message and calls B; the messages."""
    queue: list[Any] = []

    async def work_of_a() -> str:
        queue.append({"headers": to_headers(), "in_thread": await run_in_thread(id_of)})
        hooks = {"request": [async_outgoing_hook(["127.0.0.1"])]}
        async with httpx2.AsyncClient(event_hooks=hooks, timeout=None, trust_env=False) as client:
            return (await client.get(b.server.url)).text

    async def work_of_b() -> str | None:
        await asyncio.sleep(0)
        return id_of()

    b = Service(work_of_b)
    a = Service(work_of_a)
    yield a, b, queue
    a.server.stop()
    b.server.stop()


async def test_one_id_goes_from_a_client_through_a_service_thread_queue_and_second_service(
    chain: tuple[Service, Service, list[Any]],
) -> None:
    a, b, queue = chain
    async with httpx2.AsyncClient(base_url=a.server.url, timeout=None, trust_env=False) as client:
        response = await client.get("/", headers={"X-Request-ID": "journey-1"})
    assert (response.text, response.headers["X-Request-ID"]) == ("journey-1", "journey-1")
    assert a.seen == b.seen == ["journey-1"]
    assert queue == [{"headers": {"X-Request-ID": "journey-1"}, "in_thread": "journey-1"}]
    with bind(from_headers(queue[0]["headers"])):  # the consumer
        assert id_of() == "journey-1"


async def test_a_thousand_requests_at_once_each_get_their_own_id_back() -> None:
    async def work() -> str | None:
        await asyncio.sleep(0.001)
        return id_of()

    service = Service(work)
    try:
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(
            base_url=service.server.url, limits=limits, timeout=None, trust_env=False
        ) as client:

            async def one(number: int) -> bool:
                name = f"request-{number}"
                response = await client.get("/", headers={"X-Request-ID": name})
                return response.text == response.headers["X-Request-ID"] == name

            assert all(await asyncio.gather(*(one(number) for number in range(1000))))
    finally:
        service.server.stop()
    assert len(set(service.seen)) == 1000
