"""An HTTP client that sends an API key to one origin, and to nobody else.

The key is put on a copy of the request at the last moment, below redirects, hooks and logs. httpx2
takes `Authorization` away when it follows a redirect to another host, and no other header.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Protocol

import httpx2

_SENDABLE = re.compile(r"[!-~]+")  # visible ASCII: no blank, no line break, no control character


class UnusableApiKey(ValueError):
    """The key cannot be sent. The message names the setting and never shows its value."""


class SecretText(Protocol):
    """What pydantic's `SecretStr` offers."""

    def get_secret_value(self) -> str:
        """Return the text."""


class ApiKeyTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Adds the key to requests whose scheme, host and port are those of `base_url`.

    Args:
        key: The key, such as `os.environ.get("SERVICE_API_KEY")`.
        base_url: Where it may go. `https`, or `http` on loopback.
        header: The header that carries it.
        scheme: What stands before it; "" for nothing, as for `X-API-Key`.
        inner: The transport that does the sending; the async one for an async client.

    Raises:
        RuntimeError: The key or `base_url` is None or empty.
        UnusableApiKey: The key holds a blank, a control or a non-ASCII character.
        ValueError: `base_url` is not such an address.
    """

    def __init__(
        self,
        key: str | SecretText | None,
        *,
        base_url: str | None,
        header: str = "Authorization",
        scheme: str = "Bearer",
        inner: httpx2.BaseTransport | httpx2.AsyncBaseTransport,
    ) -> None:
        text = key if key is None or isinstance(key, str) else key.get_secret_value()
        if not text:
            raise RuntimeError("SERVICE_API_KEY is not set, or is empty")
        if not _SENDABLE.fullmatch(text):
            raise UnusableApiKey(
                "SERVICE_API_KEY holds a blank, a control or a non-ASCII character"
            )
        self._origin = _checked_origin(base_url)
        self._header = header
        self._value = f"{scheme} {text}".lstrip()
        self._inner = inner

    def __repr__(self) -> str:
        scheme, host, port = self._origin
        return f"ApiKeyTransport({scheme}://{host}:{port})"

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request of `httpx2.Client`."""
        if not isinstance(self._inner, httpx2.BaseTransport):
            raise TypeError("an httpx2.Client needs a blocking transport: use open_client")
        return self._inner.handle_request(self._with_key(request))

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request of `httpx2.AsyncClient`."""
        if not isinstance(self._inner, httpx2.AsyncBaseTransport):
            raise TypeError("an httpx2.AsyncClient needs an async transport: use open_async_client")
        return await self._inner.handle_async_request(self._with_key(request))

    def close(self) -> None:
        """Close the connections."""
        if isinstance(self._inner, httpx2.BaseTransport):
            self._inner.close()

    async def aclose(self) -> None:
        """Close the connections of an async client."""
        if isinstance(self._inner, httpx2.AsyncBaseTransport):
            await self._inner.aclose()

    def _with_key(self, request: httpx2.Request) -> httpx2.Request:
        if _origin_of(request.url) != self._origin:
            return request
        headers = request.headers.copy()
        headers[self._header] = self._value
        # The request itself stays without it: it lives on in responses, exceptions and redirects.
        return httpx2.Request(
            request.method,
            request.url,
            headers=headers,
            stream=request.stream,
            extensions=request.extensions,
        )


def open_client(
    key: str | SecretText | None,
    base_url: str | None,
    *,
    header: str = "Authorization",
    scheme: str = "Bearer",
    timeout: float = 10.0,
    follow_redirects: bool = False,
    transport: httpx2.BaseTransport | None = None,
) -> httpx2.Client:
    """Return a client for one service; it sends paths to `base_url`, with the key.

    `timeout` is in seconds, for connecting and for each read; `ValueError` if it is no number over
    0. The other arguments, and what else is raised, are those of `ApiKeyTransport`. Proxies come
    from `transport`, not from the environment.
    """
    _check_timeout(timeout)
    inner = transport or httpx2.HTTPTransport()
    guarded = ApiKeyTransport(key, base_url=base_url, header=header, scheme=scheme, inner=inner)
    return httpx2.Client(
        base_url=base_url or "",
        timeout=timeout,
        follow_redirects=follow_redirects,
        transport=guarded,
    )


def open_async_client(
    key: str | SecretText | None,
    base_url: str | None,
    *,
    header: str = "Authorization",
    scheme: str = "Bearer",
    timeout: float = 10.0,
    follow_redirects: bool = False,
    transport: httpx2.AsyncBaseTransport | None = None,
) -> httpx2.AsyncClient:
    """Return the client for asyncio; see `open_client`."""
    _check_timeout(timeout)
    inner = transport or httpx2.AsyncHTTPTransport()
    guarded = ApiKeyTransport(key, base_url=base_url, header=header, scheme=scheme, inner=inner)
    return httpx2.AsyncClient(
        base_url=base_url or "",
        timeout=timeout,
        follow_redirects=follow_redirects,
        transport=guarded,
    )


def _check_timeout(timeout: float) -> None:
    if not _is_number(timeout) or timeout <= 0:
        raise ValueError(f"timeout must be a number of seconds over 0, got {timeout!r}")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _checked_origin(base_url: str | None) -> tuple[str, str, int]:
    if not base_url:
        raise RuntimeError("SERVICE_BASE_URL is not set, or is empty")
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL:  # and "from None", because the address may hold a password
        raise ValueError("SERVICE_BASE_URL is not an address") from None
    secure = url.scheme == "https" or (url.scheme == "http" and _is_loopback(url.host))
    if not secure or not url.host or url.userinfo:
        raise ValueError(
            "SERVICE_BASE_URL must be https:// and a host (http:// on loopback), without a user"
        )
    return _origin_of(url)


def _origin_of(url: httpx2.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
