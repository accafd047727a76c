"""An httpx2 client that connects to public addresses only, and a fetch for URLs of strangers.

The check is made where the connection is made: the host is resolved once, every answer is judged,
and the address that was judged is the one connected to. Between them there is no second lookup.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
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

Resolve = Callable[[str, int], Awaitable[list[str]]]


async def _resolve_host(host: str, port: int) -> list[str]:
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class AsyncGuardedBackend(httpcore2.AsyncNetworkBackend):
    """Opens connections for httpcore2, to addresses that the policy allows."""

    def __init__(self, policy: Policy, *, resolve: Resolve = _resolve_host) -> None:
        self._policy = policy
        self._resolve = resolve
        self._tcp = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # the interface of httpcore2
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve once, judge all answers, connect to one of them within `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                return await self._connect_allowed(
                    host, port, timeout, local_address, socket_options
                )
        except TimeoutError as error:
            raise httpcore2.ConnectTimeout("connecting took too long") from error

    async def _connect_allowed(
        self,
        host: str,
        port: int,
        seconds: float | None,
        local_address: str | None,
        options: Iterable[httpcore2.SOCKET_OPTION] | None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError("the host has no address") from error
        if not all(self._policy.allows(ip) for ip in addresses):
            raise AddressRefused(host)  # one bad answer among good ones is an attack too
        share = seconds / len(addresses) if seconds and addresses else seconds
        failure: Exception = httpcore2.ConnectError("the host has no address")
        for ip in addresses:
            try:
                return await self._tcp.connect_tcp(ip, port, share, local_address, options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure


class _Stream(httpx2.AsyncByteStream):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with as_httpx2():
            async for part in self._stream:
                yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


class _Transport(httpx2.AsyncBaseTransport):
    # Of public parts only: a guard put in through a private name could fall out.

    def __init__(
        self, policy: Policy, resolve: Resolve, context: ssl.SSLContext, limits: httpx2.Limits
    ) -> None:
        self._policy = policy
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=AsyncGuardedBackend(policy, resolve=resolve),
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._policy.check(str(request.url))
        with as_httpx2():
            answer = await self._pool.handle_async_request(core_request(request))
        return httpx2.Response(
            answer.status,
            headers=answer.headers,
            stream=_Stream(answer.stream),
            extensions=answer.extensions,
        )

    async def aclose(self) -> None:
        await self._pool.aclose()


class AsyncGuardedClient(httpx2.AsyncClient):
    """An `httpx2.AsyncClient` whose every connection is judged. Make it with `guarded_client`."""

    guards_addresses = True

    def __init__(
        self, policy: Policy, transport: httpx2.AsyncBaseTransport, **options: Any
    ) -> None:
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
) -> AsyncGuardedClient:
    """Make a client that reaches public addresses only. Share it; close it at the end.

    Args:
        policy: What is allowed; by default https on ports 80 and 443, and no address of your own.
        verify: Whose certificates are believed; by default what httpx2 believes.
        limits: Of connections, as in httpx2.
        resolve: Turns host and port into addresses.
        options: Of `httpx2.AsyncClient`: auth, base_url, default_encoding, event_hooks, headers,
            params, timeout.

    Raises:
        TypeError: Another option: transport, mounts, proxy and trust_env lead around the guard.
    """
    check_options(options)
    policy = policy or Policy()
    context = verify or httpx2.create_ssl_context(trust_env=False)
    transport = _Transport(policy, resolve, context, limits or httpx2.Limits())
    return AsyncGuardedClient(policy, transport, **options)


async def fetch(
    client: AsyncGuardedClient,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    max_bytes: int = 5_000_000,
    max_redirects: int = 3,
    deadline: float = 15.0,
) -> Fetched:
    """GET a URL that a stranger chose, follow its redirects, and return the answer.

    Args:
        client: From `guarded_client`.
        url: As it came.
        headers: Sent to the URL's own origin only, like the client's headers and auth.
        max_bytes: Longest body, as sent and as decompressed.
        max_redirects: How many are followed. Each is judged like the first URL.
        deadline: Seconds for everything together.

    Raises:
        FetchError: UrlRefused, AddressRefused, TooLarge or Unreachable. Show `str(error)`,
            log `error.reason`.
        ValueError: A limit is out of its range.
    """
    if not isinstance(client, AsyncGuardedClient):
        raise TypeError("fetch() needs a client from guarded_client()")
    check_limits(max_bytes, max_redirects, deadline)
    try:
        async with asyncio.timeout(deadline):
            route = Route(client.policy, url, max_redirects)
            return await _follow_redirects(client, route, headers, max_bytes)
    except FetchError:
        raise
    except TimeoutError:
        raise Unreachable(f"no whole answer within {deadline} s") from None
    except (httpx2.HTTPError, OSError) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error


async def _follow_redirects(
    client: AsyncGuardedClient,
    route: Route,
    headers: Mapping[str, str] | None,
    max_bytes: int,
) -> Fetched:
    while True:
        request = route.request(client, headers)
        answer = await client.send(request, stream=True, auth=route.auth, follow_redirects=False)
        try:
            if not route.follow(answer):
                body = Body(answer.headers.get("content-encoding", ""), max_bytes)
                async for chunk in answer.aiter_raw(65_536):
                    body.feed(chunk)
                return Fetched(route.url, answer.status_code, answer.headers, body.finish())
        finally:
            await answer.aclose()
