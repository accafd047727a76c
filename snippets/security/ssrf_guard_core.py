"""Which URLs may be fetched for a stranger: rules, limits and errors of both guarded clients."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpcore2
import httpx2

from public_addresses import is_public

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2_048  # characters
REDIRECTS = (301, 302, 303, 307, 308)
# Of httpx2's client. The others lead around the guard, or would be ignored without a word.
_OPTIONS = frozenset(
    ("auth", "base_url", "default_encoding", "event_hooks", "headers", "params", "timeout")
)
# What parsers disagree about: "http://a.example\@127.0.0.1/" has two hosts.
_AMBIGUOUS = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(rb"[0-9a-z._:-]{1,253}")


class FetchError(httpx2.TransportError):
    """Nothing was fetched. `str(error)` may be shown to the user, `reason` is for your log.

    A subclass of httpx2's errors, so that code which catches those catches this too.
    """

    def __init__(self, reason: str, message: str = "the URL cannot be fetched") -> None:
        super().__init__(message)
        self.reason = reason


class UrlRefused(FetchError):
    """The URL's form, scheme or port is not allowed, or it redirects too often."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason, reason)


class AddressRefused(FetchError):
    """`host` has an address that is not public. Reads to the user as any other failure."""

    def __init__(self, host: str) -> None:
        super().__init__("the host has an address that is not allowed")
        self.host = host


class Unreachable(FetchError):
    """No answer, a broken one, or none in time. Which of them stands in `reason` only."""


class TooLarge(FetchError):
    """The body is longer than allowed, as sent or after decompression."""

    def __init__(self, limit: int) -> None:
        text = f"the answer is longer than {limit} bytes"
        super().__init__(text, text)


def check_url(
    url: str, *, schemes: Collection[str] = ("https",), ports: Collection[int] = (80, 443)
) -> None:
    """Refuse what is not a plain URL of an allowed scheme and port. Looks up no address.

    Raises:
        UrlRefused: The message says what is wrong, and repeats nothing of the URL.
    """
    if len(url) > MAX_URL:
        raise UrlRefused(f"the URL is longer than {MAX_URL} characters")
    if _AMBIGUOUS.search(url):
        raise UrlRefused("the URL has a blank, a control character or a backslash in it")
    try:
        parsed = httpx2.URL(url)  # the client's own parser: two parsers would disagree
    except (httpx2.InvalidURL, ValueError):  # the latter from a lone surrogate
        raise UrlRefused("this is not a URL") from None
    if parsed.scheme not in schemes:
        raise UrlRefused("the URL's scheme is not allowed")
    if "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise UrlRefused("the URL must not hold a user name or password")
    if not _HOST.fullmatch(parsed.raw_host):
        raise UrlRefused("the URL's host is not a host name")
    default = {"https": 443, "http": 80}.get(parsed.scheme)
    if (default if parsed.port is None else parsed.port) not in ports:
        raise UrlRefused("the URL's port is not allowed")


@dataclass(frozen=True)
class Policy:
    """What is allowed. The defaults are for a server on the internet.

    Attributes:
        schemes: Of `https` and `http`.
        ports: Ports that may be connected to.
        blocked: Further networks to refuse: your own public ranges, your NAT64 prefix.
        opened: Single addresses to allow although they are not public. For tests, and for a host
            of your own that you mean to reach. Whoever chooses the URL reaches them too.
    """

    schemes: Collection[str] = ("https",)
    ports: Collection[int] = (80, 443)
    blocked: Collection[Network] = ()
    opened: Collection[str] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Policy:
        """Read SSRF_ALLOWED_PORTS and SSRF_EXTRA_BLOCKED, each separated by spaces.

        Raises:
            ValueError: One of them is not a list of ports or networks. It is named.
        """
        text = environ.get("SSRF_ALLOWED_PORTS") or "80 443"
        ports = text.split()
        if not all(port.isascii() and port.isdigit() and 0 < int(port) < 65_536 for port in ports):
            raise ValueError(
                f"SSRF_ALLOWED_PORTS must be numbers from 1 to 65535 between spaces, got {text!r}"
            )
        text = environ.get("SSRF_EXTRA_BLOCKED", "")
        try:
            nets = [ipaddress.ip_network(net) for net in text.split()]
        except ValueError:
            raise ValueError(
                f"SSRF_EXTRA_BLOCKED must be networks such as 192.0.2.0/24, got {text!r}"
            ) from None
        return cls(ports=tuple(map(int, ports)), blocked=tuple(nets))

    def check(self, url: str) -> None:
        """Raise UrlRefused unless the URL's form, scheme and port are allowed."""
        check_url(url, schemes=self.schemes, ports=self.ports)

    def allows(self, ip: str) -> bool:
        """Tell whether a connection to this address is allowed."""
        if ip in self.opened:
            return True
        if not is_public(ip):
            return False
        address = ipaddress.ip_address(ip)
        address = getattr(address, "ipv4_mapped", None) or address
        return not any(address in net for net in self.blocked)

    def redirect(self, here: str, location: str) -> str:
        """Return the absolute URL of a redirect from `here`, or raise UrlRefused."""
        if _AMBIGUOUS.search(location):
            raise UrlRefused("the redirect has a blank, a control character or a backslash in it")
        try:
            target = httpx2.URL(here).join(location)
        except (httpx2.InvalidURL, ValueError):
            raise UrlRefused("the redirect is not a URL") from None
        self.check(str(target))
        if httpx2.URL(here).scheme == "https" != target.scheme:
            raise UrlRefused("a redirect from https to http is not followed")
        return str(target)


def check_limits(max_bytes: int, max_redirects: int, deadline: float) -> None:
    """Raise ValueError for a limit of a fetch that is none."""
    for name, count in (("max_bytes", max_bytes), ("max_redirects", max_redirects)):
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"{name} must be a whole number, 0 or more, got {count!r}")
    if not (_is_number(deadline) and deadline > 0):
        raise ValueError(f"deadline must be a number of seconds over 0, got {deadline!r}")


def check_options(options: Mapping[str, object]) -> None:
    """Raise TypeError for an option of httpx2's client that would lead around the guard."""
    if wrong := options.keys() - _OPTIONS:
        raise TypeError(f"a guarded client takes no {', '.join(sorted(wrong))}")


@contextlib.contextmanager
def as_httpx2() -> Iterator[None]:
    """Turn the errors of httpcore2 into those of httpx2."""
    try:
        yield
    except httpx2.HTTPError:
        raise  # ours
    except Exception as error:
        known = getattr(httpx2, type(error).__name__, None)  # both libraries use the same names
        if known is None or type(error).__module__.partition(".")[0] != "httpcore2":
            raise
        raise known(str(error)) from error


@dataclass(frozen=True)
class Fetched:
    """An answer, of any status. `url` is where it came from after redirects."""

    url: str
    status: int
    headers: httpx2.Headers
    body: bytes


def core_request(request: httpx2.Request) -> httpcore2.Request:
    """Return a request of httpx2 as the connection pool below it takes it."""
    url = request.url
    return httpcore2.Request(
        method=request.method,
        url=httpcore2.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        ),
        headers=request.headers.raw,
        content=request.stream,
        # Nothing else is passed on: "sni_hostname" would change whose certificate is accepted.
        extensions={"timeout": request.extensions.get("timeout", {})},
    )


class Route:
    """The way of one fetch, from `url` through at most `max_redirects` redirects."""

    def __init__(self, policy: Policy, url: str, max_redirects: int) -> None:
        policy.check(url)
        self.url = url
        self._policy = policy
        self._max_redirects = max_redirects
        self._redirects = 0
        self._home: httpx2.Origin | None = httpx2.URL(url).origin

    def request(
        self, client: httpx2.Client | httpx2.AsyncClient, headers: Mapping[str, str] | None
    ) -> httpx2.Request:
        """Return the next request. What was meant for the first origin goes nowhere else."""
        if self._home:
            request = client.build_request("GET", self.url, headers=headers)
        else:
            extensions = {"timeout": client.timeout.as_dict()}
            request = httpx2.Request("GET", self.url, extensions=extensions)
        request.headers["Accept-Encoding"] = "gzip"
        return request

    @property
    def auth(self) -> Any:
        """Return what to authenticate the next request with."""
        return httpx2.USE_CLIENT_DEFAULT if self._home else None

    def follow(self, answer: httpx2.Response) -> bool:
        """Tell whether the answer leads on, and go there; raise UrlRefused if that is no way."""
        location = answer.headers.get("location")
        if answer.status_code not in REDIRECTS or location is None:
            return False
        self.url = self._policy.redirect(self.url, location)
        if httpx2.URL(self.url).origin != self._home:
            self._home = None  # and it stays so: a way back does not make the detour trusted
        self._redirects += 1
        if self._redirects > self._max_redirects:
            raise UrlRefused(f"more than {self._max_redirects} redirects")
        return True


class Body:
    """Collects a body of at most `limit` bytes, and never decompresses more than that."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit = limit
        self._wire = 0
        self._data = bytearray()
        if encoding.strip().lower() not in ("", "identity", "gzip"):
            raise Unreachable("the answer has a Content-Encoding that was not asked for")
        self._gzip = zlib.decompressobj(31) if encoding.strip().lower() == "gzip" else None

    def feed(self, chunk: bytes) -> None:
        """Take what came over the wire. Raises TooLarge, or Unreachable when it is not gzip."""
        self._wire += len(chunk)
        try:
            room = self._limit + 1 - len(self._data)
            self._data += self._gzip.decompress(chunk, room) if self._gzip else chunk
        except zlib.error:
            raise Unreachable("the answer is not the gzip that it says it is") from None
        if self._wire > self._limit or len(self._data) > self._limit:
            raise TooLarge(self._limit)

    def finish(self) -> bytes:
        """Return the whole body. Raises Unreachable when its end is missing."""
        if self._gzip and not self._gzip.eof:
            raise Unreachable("the answer's gzip ends too early")
        return bytes(self._data)


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
