"""An httpx2 client that connects to public addresses only, and a fetch for URLs of strangers.

The check is made where the connection is made: the host is resolved once, every answer is judged,
and the address that was judged is the one connected to. Between them there is no second lookup.
What a deadline cannot end here is the lookup itself: the system's resolver has its own time-outs.
"""

from __future__ import annotations

import contextvars
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpcore2
import httpx2

from ssrf_guard_core import (
    AddressRefused,
    Body,
    Fetched,
    FetchError,
    Policy,
    Route,
    Unreachable,
    as_httpx2,
    check_limits,
    check_options,
    core_request,
)

Resolve = Callable[[str, int], list[str]]
# Seconds that the running fetch() has left. The connection asks before each read, since a time-out
# of each read never fires when a byte comes now and then.
_LEFT: contextvars.ContextVar[Callable[[], float] | None] = contextvars.ContextVar(
    "left", default=None
)


def _resolve_host(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _time_left(timeout: float | None) -> float | None:
    """Shorten a time-out to what the fetch has left."""
    left = _LEFT.get()
    if left is None:
        return timeout
    seconds = left()
    if seconds <= 0:
        raise httpcore2.ReadTimeout("the deadline has passed")
    return seconds if timeout is None else min(timeout, seconds)


class _Timed(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _time_left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _time_left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, _time_left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class GuardedBackend(httpcore2.NetworkBackend):
    """Opens connections for httpcore2, to addresses that the policy allows."""

    def __init__(self, policy: Policy, *, resolve: Resolve = _resolve_host) -> None:
        self._policy = policy
        self._resolve = resolve
        self._tcp = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Resolve once, judge all answers, connect to one of them within `timeout` seconds."""
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the host has no address") from error
        if not all(self._policy.allows(ip) for ip in addresses):
            raise AddressRefused(host)  # one bad answer among good ones is an attack too
        share = timeout / len(addresses) if timeout and addresses else timeout
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for ip in addresses:
            try:
                within = _time_left(share)
                return _Timed(
                    self._tcp.connect_tcp(ip, port, within, local_address, socket_options)
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpx2.SyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        with as_httpx2():
            yield from self._stream

    def close(self) -> None:
        self._stream.close()


class _Transport(httpx2.BaseTransport):
    # Of public parts only: a guard put in through a private name could fall out.

    def __init__(
        self, policy: Policy, resolve: Resolve, context: ssl.SSLContext, limits: httpx2.Limits
    ) -> None:
        self._policy = policy
        self._pool = httpcore2.ConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=GuardedBackend(policy, resolve=resolve),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._policy.check(str(request.url))
        with as_httpx2():
            answer = self._pool.handle_request(core_request(request))
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(answer.stream),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        self._pool.close()


class GuardedClient(httpx2.Client):
    """An `httpx2.Client` whose every connection is judged. Make it with `guarded_client`."""

    guards_addresses = True

    def __init__(self, policy: Policy, transport: httpx2.BaseTransport, **options: Any) -> None:
        super().__init__(transport=transport, trust_env=False, **options)
        self.policy = policy
        # What one stranger's server sets must not go to the next stranger's.
        self.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))


def guarded_client(
    policy: Policy | None = None,
    *,
    verify: ssl.SSLContext | None = None,
    limits: httpx2.Limits | None = None,
    resolve: Resolve = _resolve_host,
    **options: Any,
) -> GuardedClient:
    """Make a client that reaches public addresses only. Share it; close it at the end.

    Args:
        policy: What is allowed; by default https on ports 80 and 443, and no address of your own.
        verify: Whose certificates are believed; by default what httpx2 believes.
        limits: Of connections, as in httpx2.
        resolve: Turns host and port into addresses.
        options: Of `httpx2.Client`: auth, base_url, default_encoding, event_hooks, headers,
            params, timeout.

    Raises:
        TypeError: Another option: transport, mounts, proxy and trust_env lead around the guard.
    """
    check_options(options)
    policy = policy or Policy()
    context = verify or httpx2.create_ssl_context(trust_env=False)
    transport = _Transport(policy, resolve, context, limits or httpx2.Limits())
    return GuardedClient(policy, transport, **options)


def fetch(
    client: GuardedClient,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    max_bytes: int = 5_000_000,
    max_redirects: int = 3,
    deadline: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
) -> Fetched:
    """GET a URL that a stranger chose, follow its redirects, and return the answer.

    Args:
        client: From `guarded_client`.
        url: As it came.
        headers: Sent to the URL's own origin only, like the client's headers and auth.
        max_bytes: Longest body, as sent and as decompressed.
        max_redirects: How many are followed. Each is judged like the first URL.
        deadline: Seconds for everything together, but for the lookups of the hosts.
        clock: Seconds from any beginning.

    Raises:
        FetchError: UrlRefused, AddressRefused, TooLarge or Unreachable. Show `str(error)`,
            log `error.reason`.
        ValueError: A limit is out of its range.
    """
    if not isinstance(client, GuardedClient):
        raise TypeError("fetch() needs a client from guarded_client()")
    check_limits(max_bytes, max_redirects, deadline)
    end = clock() + deadline
    token = _LEFT.set(lambda: end - clock())
    try:
        route = Route(client.policy, url, max_redirects)
        return _follow_redirects(client, route, headers, max_bytes)
    except FetchError:
        raise
    except (httpx2.HTTPError, OSError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error
    finally:
        _LEFT.reset(token)


def _follow_redirects(
    client: GuardedClient,
    route: Route,
    headers: Mapping[str, str] | None,
    max_bytes: int,
) -> Fetched:
    while True:
        request = route.request(client, headers)
        answer = client.send(request, stream=True, auth=route.auth, follow_redirects=False)
        try:
            if not route.follow(answer):
                body = Body(answer.headers.get("content-encoding", ""), max_bytes)
                for chunk in answer.iter_raw(65_536):
                    body.feed(chunk)
                return Fetched(route.url, answer.status_code, answer.headers, body.finish())
        finally:
            answer.close()
