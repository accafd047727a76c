"""Which URLs and addresses may be fetched for a stranger: the rules behind the guarded clients.

The table of addresses is our own, made from the IANA special-purpose registries (RFC 6890), so that
every Python gives the same answer: `ipaddress.is_private` and `is_global` have changed theirs.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import httpx2

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_URL = 2_048  # characters
REDIRECTS = (301, 302, 303, 307, 308)
# Of httpx2's client. The others lead around the guard, or would be ignored without a word.
_OPTIONS = frozenset(
    ("auth", "base_url", "default_encoding", "event_hooks", "headers", "params", "timeout")
)
_REFUSED_V4 = [
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this host
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT (RFC 6598), and the metadata of some clouds
        "127.0.0.0/8",
        "168.63.129.16/32",  # the host of a virtual machine on Azure, in a public range
        "169.254.0.0/16",  # link-local, and the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",  # documentation, as 198.51.100.0/24 and 203.0.113.0/24
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
]
# Of IPv6, only 2000::/3 has been given to the public. Outside it are ::, ::1, ::/96, fc00::/7,
# fe80::/10, fec0::/10, ff00::/8, 64:ff9b::/96 and 64:ff9b:1::/48 (RFC 6052: IPv4 in disguise).
_GIVEN_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = [
    ipaddress.IPv6Network(net)
    for net in (
        "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: IPv4 in disguise
        "3fff::/20",  # documentation
    )
]
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


def is_public(ip: str) -> bool:
    """Tell whether `ip` is an address of the public internet. False for what is no address."""
    try:
        address = ipaddress.ip_address(ip)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False  # a zone ("%eth0") belongs to a link
        if address.ipv4_mapped is None:
            return address in _GIVEN_V6 and not any(address in net for net in _REFUSED_V6)
        address = address.ipv4_mapped  # ::ffff:10.0.0.1 connects to 10.0.0.1
    return not any(address in net for net in _REFUSED_V4)


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
    def from_env(cls, env: Mapping[str, str]) -> Policy:
        """Read SSRF_ALLOWED_PORTS and SSRF_EXTRA_BLOCKED, each separated by spaces.

        Raises:
            ValueError: One of them is not a list of ports or networks. It is named.
        """
        ports = (env.get("SSRF_ALLOWED_PORTS") or "80 443").split()
        if not all(port.isascii() and port.isdigit() and 0 < int(port) < 65_536 for port in ports):
            raise ValueError("SSRF_ALLOWED_PORTS: ports are numbers from 1 to 65535")
        try:
            nets = [ipaddress.ip_network(n) for n in env.get("SSRF_EXTRA_BLOCKED", "").split()]
        except ValueError:
            raise ValueError("SSRF_EXTRA_BLOCKED: networks look like 192.0.2.0/24") from None
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


class Body:
    """Collects a body of at most `limit` bytes, and never decompresses more than that."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._limit, self._wire, self._data = limit, 0, bytearray()
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
