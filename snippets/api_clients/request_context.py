"""One id in every log line and outgoing call of a request, across tasks, threads and queues."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import logging
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import Any, ParamSpec, TypeVar

import httpx2

P = ParamSpec("P")
R = TypeVar("R")
Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Callable[[Message], Awaitable[None]]], Awaitable[None]]


def correlation_header_from_env(environ: Mapping[str, str] = os.environ) -> str:
    """Return the header that CORRELATION_HEADER names, or X-Request-ID; read once, at import.

    Raises `ValueError` if it is not the name of a header (RFC 9110, section 5.1).
    """
    name = environ.get("CORRELATION_HEADER") or "X-Request-ID"
    if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise ValueError(f"CORRELATION_HEADER must be the name of a header, got {name!r}")
    return name


HEADERS = {  # of an HTTP call or a message, by field of the context
    "correlation_id": correlation_header_from_env(),
    "session_id": "X-Session-ID",
    "tenant": "X-Tenant-ID",
}
_FIELDS = {header.lower(): name for name, header in HEADERS.items()}
_TAKEN = {HEADERS[name].lower().encode() for name in ("correlation_id", "session_id")}
_ID = HEADERS["correlation_id"].lower().encode()
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # safe in a header, a log line, a URL, a file name


@dataclasses.dataclass(frozen=True)
class RequestContext:
    """Whose request this is. Each field is 1 to 128 letters, digits, ".", "_" or "-".

    Raises `ValueError` for one that is not.
    """

    correlation_id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(16))
    session_id: str | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        for name in HEADERS:
            value = getattr(self, name)
            if value is not None and not _VALID.fullmatch(value):
                raise ValueError(f"{name} must be 1 to 128 letters, digits, '.', '_' or '-'")


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "request_context", default=None
)


def current() -> RequestContext | None:
    """Return the context of the request that this code runs for, or None."""
    return _current.get()


@contextlib.contextmanager
def bind(context: RequestContext | None = None, **changes: str | None) -> Iterator[RequestContext]:
    """Make a context current within a `with` block: the given one, or the current one changed.

    Without either it is a new one, with an id of its own: for a job, or a message without headers.
    Raises `ValueError` for a bad value.
    """
    wanted: dict[str, Any] = {**changes}
    bound = dataclasses.replace(context or current() or RequestContext(), **wanted)
    token = _current.set(bound)
    try:
        yield bound
    finally:
        # An async generator may be closed by another task, in whose context nothing was set.
        with contextlib.suppress(ValueError):
            _current.reset(token)


def carried(fn: Callable[P, R]) -> Callable[P, R]:
    """Return a function that runs in a copy of today's context: for `executor.submit`."""
    context = contextvars.copy_context()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        return context.copy().run(fn, *args, **kwargs)  # a copy: one may not run twice at once

    return run


async def run_in_thread(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
    """Return `fn(*args, **kwargs)` from a thread that sees the current context."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, lambda run: run(*args, **kwargs), carried(fn))


def to_headers() -> dict[str, str]:
    """Return the headers that carry the current context, for a message; none without one."""
    context = current()
    return {HEADERS[name]: value for name in HEADERS if (value := getattr(context, name, None))}


def from_headers(headers: Mapping[str, str]) -> RequestContext:
    """Return the context that a message of your own services carries; bad values are left out."""
    return RequestContext(**_valid((name.lower(), value) for name, value in headers.items()))


def _valid(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the first valid value of each field; names are in lower case."""
    found: dict[str, str] = {}
    for name, value in pairs:
        field = _FIELDS.get(name)
        if field and field not in found and _VALID.fullmatch(value):
            found[field] = value
    return found


class RequestContextMiddleware:
    """ASGI middleware: a context for each HTTP request and websocket, its id in each answer.

    Put it outside of all others. It takes the correlation id and the session id that come in, if
    they are valid, and never a tenant: bind that once you know who calls. Should the application
    raise before it answers, a 500 with the id is sent, and the error goes on to the server.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:  # the lifespan
            await self._app(scope, receive, send)
            return
        known = [pair for pair in scope["headers"] if pair[0] in _TAKEN]  # they are in lower case
        context = RequestContext(**_valid((n.decode(), v.decode("latin-1")) for n, v in known))
        header = _ID, context.correlation_id.encode()
        started = scope["type"] == "websocket"

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] in {"http.response.start", "websocket.accept"}:
                started = True
                others = [pair for pair in message.get("headers", ()) if pair[0] != _ID]
                message["headers"] = [*others, header]
            await send(message)

        with bind(context):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                if not started:
                    await send({"type": "http.response.start", "status": 500, "headers": [header]})
                    await send({"type": "http.response.body", "body": b"Internal Server Error"})
                raise


def allowed_hosts_from_env(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the hosts that CONTEXT_ALLOWED_HOSTS lists, separated by commas; none if unset."""
    return [h.strip() for h in environ.get("CONTEXT_ALLOWED_HOSTS", "").split(",") if h.strip()]


def outgoing_hook(hosts: Iterable[str]) -> Callable[[httpx2.Request], None]:
    """Return a request hook for `httpx2.Client`, which sends the context to these hosts only.

    Hosts are compared exactly, but for case. A header that the caller set stays. A redirect to
    another host goes without.
    """
    allowed = {host.lower() for host in hosts}

    def hook(request: httpx2.Request) -> None:
        trusted = request.url.host.lower() in allowed
        for name, value in to_headers().items():
            if trusted:
                request.headers.setdefault(name, value)
            elif request.headers.get(name) == value:  # copied from the request that was redirected
                del request.headers[name]

    return hook


def async_outgoing_hook(hosts: Iterable[str]) -> Callable[[httpx2.Request], Awaitable[None]]:
    """Return the same hook for `httpx2.AsyncClient`."""
    hook = outgoing_hook(hosts)

    async def async_hook(request: httpx2.Request) -> None:
        hook(request)

    return async_hook


class ContextFilter(logging.Filter):
    """Gives every record `correlation_id`, `session_id` and `tenant`, "-" where there is none.

    Add it to the handler: a logger's filters do not see the records of its children.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the fields; let every record pass."""
        context = current()
        for name in HEADERS:
            setattr(record, name, getattr(context, name, None) or "-")
        return True
