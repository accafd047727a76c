"""Proves docs/patterns/security/ssrf-guard.md: what both clients connect to, follow, send and read."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import inspect
import itertools
import logging
import math
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest

import ssrf_guard_async
import ssrf_guard_sync
from harness.color import Color
from harness.tls import Authority
from patterns.security.ssrf_guard_kit import Site, answer, guarded, redirect
from ssrf_guard_core import AddressRefused, FetchError, Policy, TooLarge, Unreachable, UrlRefused

UNIFORM = "the URL cannot be fetched"


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    made.answers["/"] = answer()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def trusting(authority: Authority) -> ssl.SSLContext:
    return authority.client_context()


@pytest.fixture(scope="module")
def tls_context(authority: Authority) -> ssl.SSLContext:
    return authority.server_context("a.test")


@pytest.fixture
def tls_site(tls_context: ssl.SSLContext) -> Iterator[Site]:
    made = Site(tls_context)
    made.answers["/"] = answer()
    yield made
    made.stop()


def loopback(host: str, port: int) -> list[str]:
    return ["127.0.0.1"]


def test_both_twins_offer_the_same_names() -> None:
    shown = [
        {n for n, o in vars(m).items() if not n.startswith("_") and getattr(o, "__module__", "") == m.__name__}
        for m in (ssrf_guard_async, ssrf_guard_sync)
    ]
    assert shown[1] == {"GuardedBackend", "GuardedClient", "guarded_client", "fetch"}
    assert shown[0] == {name.replace("Guarded", "AsyncGuarded") for name in shown[1]}
    ours, theirs = (list(inspect.signature(m.fetch).parameters) for m in (ssrf_guard_async, ssrf_guard_sync))
    assert [*ours, "clock"] == theirs
    for module in (ssrf_guard_async, ssrf_guard_sync):
        defaults = {name: p.default for name, p in inspect.signature(module.fetch).parameters.items()}
        limits = (defaults["max_bytes"], defaults["max_redirects"], defaults["deadline"])
        assert limits == (5_000_000, 3, 15.0)
    assert inspect.signature(ssrf_guard_async.guarded_client).parameters.keys() == (
        inspect.signature(ssrf_guard_sync.guarded_client).parameters.keys()
    )


def test_the_client_says_that_it_guards_addresses(color: Color) -> None:
    with guarded(color) as client:
        assert (client.inner.guards_addresses, client.inner.policy) == (True, Policy())
        assert client.inner.trust_env is False
        assert isinstance(client.inner, httpx2.AsyncClient if color.is_async else httpx2.Client)


def test_fetch_takes_no_other_client(color: Color) -> None:
    module: Any = color.pick(ssrf_guard_async, ssrf_guard_sync)
    other = color.closing(color.pick(httpx2.AsyncClient, httpx2.Client)())
    with pytest.raises(TypeError, match=r"^fetch\(\) needs a client from guarded_client\(\)$"):
        color.call(module.fetch, other, "https://example.com/")


@pytest.mark.parametrize(
    ("limit", "meant"),
    [
        ("max_bytes", "a whole number, 0 or more"),
        ("max_redirects", "a whole number, 0 or more"),
        ("deadline", "a number of seconds over 0"),
    ],
)
@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, True, "9"])
def test_a_limit_that_is_none_is_refused_before_anything_is_sent(
    color: Color, site: Site, limit: str, meant: str, wrong: Any
) -> None:
    with guarded(color, site.policy(), loopback) as client:
        with pytest.raises(ValueError, match=rf"^{limit} must be {meant}, got {wrong!r}$"):
            client.fetch(f"http://a.test:{site.port}/", **{limit: wrong})
        with pytest.raises(ValueError, match="deadline must be a number of seconds over 0, got 0"):
            client.fetch(f"http://a.test:{site.port}/", deadline=0)
    assert site.connections == 0


def test_an_answer_comes_back_whole_with_its_status(color: Color, site: Site) -> None:
    site.answers["/gone"] = answer(gzip.compress(b"gone " * 100), "410 Gone", "Content-Encoding: gzip")
    with guarded(color, site.policy(), loopback) as client:
        first = client.fetch(f"http://a.test:{site.port}/")
        second = client.fetch(f"http://a.test:{site.port}/gone", headers={"accept-encoding": "br"})
    assert (first.url, first.status, first.body) == (f"http://a.test:{site.port}/", 200, b"hello")
    assert (second.status, second.body, second.headers["content-encoding"]) == (410, b"gone " * 100, "gzip")
    assert f"Host: a.test:{site.port}\r\n" in site.heads[0]
    assert all(head.lower().count("accept-encoding: gzip\r\n") == 1 for head in site.heads)
    assert site.connections == 1  # kept alive


def test_a_location_without_a_redirect_and_a_redirect_without_a_location_are_answers(color: Color, site: Site) -> None:
    site.answers["/created"] = answer(b"made", "201 Created", "Location: http://169.254.169.254/")
    site.answers["/choice"] = answer(b"where?", "302 Found")
    with guarded(color, site.policy()) as client:  # found by the system's own resolver
        first = client.fetch(f"http://127.0.0.1:{site.port}/created")
        second = client.fetch(f"http://127.0.0.1:{site.port}/choice")
    assert (first.status, first.body) == (201, b"made")
    assert (second.status, second.body) == (302, b"where?")


# Addresses.


@pytest.mark.parametrize(
    "found",
    [["10.0.0.1"], ["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["2606:4700::1111", "::1"], ["fe80::1%eth0"]],
)
def test_one_refused_answer_among_good_ones_refuses_them_all(
    color: Color, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    called = record_connections(monkeypatch)
    with (
        guarded(color, lookup=lambda host, port: found) as client,
        pytest.raises(AddressRefused, match=UNIFORM) as caught,
    ):
        client.fetch("https://db.internal.test/")
    assert caught.value.host == "db.internal.test"
    assert called == []


def record_connections(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    called: list[tuple[str, float | None]] = []

    async def connect(self: Any, host: str, port: int, timeout: float | None, *rest: Any) -> Any:
        called.append((host, timeout))
        raise httpcore2.ConnectError("no")

    def connect_sync(self: Any, host: str, port: int, timeout: float | None, *rest: Any) -> Any:
        called.append((host, timeout))
        raise httpcore2.ConnectTimeout("no")

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect_sync)
    return called


def test_the_address_that_was_judged_is_the_one_connected_to_after_one_lookup(
    color: Color, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = record_connections(monkeypatch)
    lookups: list[tuple[str, int]] = []

    def rebinding(host: str, port: int) -> list[str]:
        lookups.append((host, port))
        return ["8.8.8.8"] if len(lookups) == 1 else ["127.0.0.1"]

    with guarded(color, lookup=rebinding) as client, pytest.raises(Unreachable):
        client.fetch("https://rebind.test/")
    assert ([ip for ip, _ in called], lookups) == (["8.8.8.8"], [("rebind.test", 443)])


def test_naive_check_before_the_request_is_undone_by_the_second_lookup(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = itertools.chain(["8.8.8.8"], itertools.repeat("127.0.0.1"))
    real = socket.getaddrinfo

    def rebinding(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        return real(next(answers) if host == "rebind.test" else host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    checked = socket.getaddrinfo("rebind.test", site.port)[0][4][0]
    assert Policy().allows(str(checked))
    with httpx2.Client(trust_env=False) as naive:
        assert naive.get(f"http://rebind.test:{site.port}/").text == "hello"  # from inside


def test_the_system_is_asked_for_addresses_once_a_connection(color: Color, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = socket.getaddrinfo

    def counted(host: Any, port: Any, *rest: Any, **more: Any) -> Any:
        asked.append(host)
        return real("127.0.0.1", port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    with guarded(color) as client, pytest.raises(AddressRefused):
        client.fetch("https://example.test/")
    assert asked == ["example.test"]


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::1]", "0.0.0.0"])
def test_every_spelling_of_loopback_is_refused_where_the_connection_is_made(
    color: Color, site: Site, host: str
) -> None:
    policy = Policy(schemes=("http",), ports=(site.port,))
    kind = UrlRefused if host == "0177.0.0.1" else AddressRefused  # httpx2 takes no octal address
    with guarded(color, policy) as client, pytest.raises(kind):
        client.fetch(f"http://{host}:{site.port}/")
    assert site.connections == 0


def test_each_address_is_tried_in_turn_with_its_share_of_the_time(
    color: Color, monkeypatch: pytest.MonkeyPatch, site: Site
) -> None:
    called = record_connections(monkeypatch)
    with guarded(color, lookup=lambda h, p: ["8.8.8.8", "1.1.1.1"], timeout=3.0) as client:
        with pytest.raises(Unreachable):
            client.fetch("https://two.test/")
        with pytest.raises(httpx2.TransportError):
            client.get("https://two.test/", timeout=None)
    assert called == [("8.8.8.8", 1.5), ("1.1.1.1", 1.5), ("8.8.8.8", None), ("1.1.1.1", None)]


def test_a_dead_address_does_not_hide_a_living_one(color: Color, site: Site) -> None:
    policy = Policy(schemes=("http",), ports=(site.port,), opened=("127.0.0.1", "::1"))
    with guarded(color, policy, lambda h, p: ["::1", "127.0.0.1"]) as client:  # nobody listens on ::1
        assert client.fetch(f"http://a.test:{site.port}/").body == b"hello"


def test_a_host_without_an_address_is_unreachable(color: Color) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(-2, "Name or service not known")

    def broken(host: str, port: int) -> list[str]:
        return [host.encode("idna").decode()]

    for lookup, host in ((unknown, "a.test"), (broken, "a" * 64 + ".test"), (lambda h, p: [], "a.test")):
        with guarded(color, lookup=lookup) as client, pytest.raises(Unreachable, match=UNIFORM) as caught:
            client.fetch(f"https://{host}/")
        assert caught.value.reason == "ConnectError: the host has no address"


def test_the_client_alone_refuses_addresses_schemes_ports_and_socket_files_too(color: Color, site: Site) -> None:
    policy = Policy(schemes=("http",), ports=(site.port,))
    with guarded(color, policy, limits=httpx2.Limits(max_connections=1)) as client:
        for _ in range(3):  # and a refusal gives its place in the pool back
            with pytest.raises(AddressRefused):
                client.get(f"http://127.0.0.1:{site.port}/", timeout=0.2)
        for url in ("http://127.0.0.1:22/", "file:///etc/passwd", "http://evil.com\\@127.0.0.1/"):
            with pytest.raises(UrlRefused):
                client.get(url)
    backend = color.pick(ssrf_guard_async.AsyncGuardedBackend, ssrf_guard_sync.GuardedBackend)(policy)
    call = backend.connect_unix_socket
    with pytest.raises(NotImplementedError):
        color.call(call, "/run/docker.sock")


def test_proxies_of_the_environment_change_nothing(color: Color, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://127.0.0.1:{site.port}"
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with httpx2.Client() as naive:
        naive.get("http://a.test/")
    assert site.heads[0].startswith("GET http://a.test/ ")  # the naive client went elsewhere
    with guarded(color, site.policy(), loopback) as client:
        client.fetch(f"http://a.test:{site.port}/")
    assert site.heads[1].startswith("GET / ")


# TLS.


def test_tls_verifies_the_host_name_of_each_host_behind_one_address(
    color: Color, tls_site: Site, trusting: ssl.SSLContext
) -> None:
    with guarded(color, tls_site.policy("https"), loopback, verify=trusting) as client:
        assert client.fetch(f"https://a.test:{tls_site.port}/").body == b"hello"
        with pytest.raises(Unreachable) as caught:
            client.fetch(f"https://b.test:{tls_site.port}/")
        pretend = {"sni_hostname": "a.test"}
        with pytest.raises(httpx2.ConnectError):
            client.get(f"https://b.test:{tls_site.port}/", extensions=pretend)
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.reason
    assert len(tls_site.heads) == 1


def test_naive_rewriting_to_the_address_gives_two_hosts_one_connection(
    tls_site: Site, trusting: ssl.SSLContext
) -> None:
    with httpx2.Client(verify=trusting, trust_env=False) as naive:
        for host in ("a.test", "b.test"):
            found = naive.get(
                f"https://127.0.0.1:{tls_site.port}/", headers={"Host": host}, extensions={"sni_hostname": host}
            )
            assert found.status_code == 200  # for b.test nobody has looked at a certificate
    assert tls_site.connections == 1


def test_without_a_context_the_usual_authorities_are_believed_and_no_other(
    color: Color, tls_site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "SSL_CERT_FILE", str(authority.write_trust(tmp_path))
    )  # whoever sets the environment is no authority
    policy = tls_site.policy("https")
    with guarded(color, policy, loopback, verify=None) as client, pytest.raises(Unreachable) as caught:
        client.fetch(f"https://a.test:{tls_site.port}/")
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.reason


def test_garbage_inside_tls_is_one_more_failure(color: Color, tls_site: Site, trusting: ssl.SSLContext) -> None:
    def garbage(connection: socket.socket) -> None:
        with socket.socket(fileno=connection.detach()) as raw:
            raw.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)

    tls_site.answers["/"] = garbage
    policy = tls_site.policy("https")
    with guarded(color, policy, loopback, verify=trusting) as client, pytest.raises(Unreachable, match=UNIFORM):
        client.fetch(f"https://a.test:{tls_site.port}/")


# Redirects.


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_redirects_are_followed_up_to_the_limit(color: Color, site: Site, status: str) -> None:
    site.answers |= {"/3": redirect("2", status), "/2": redirect("/1", status), "/1": redirect("/", status)}
    site.answers |= {"/4": redirect("/3"), "/loop": redirect("/loop")}
    with guarded(color, site.policy(), loopback) as client:
        found = client.fetch(f"http://a.test:{site.port}/3")
        assert (found.url, found.body) == (f"http://a.test:{site.port}/", b"hello")
        for path in ("/4", "/loop"):
            with pytest.raises(UrlRefused, match=r"^more than 3 redirects$"):
                client.fetch(f"http://a.test:{site.port}{path}")
        with pytest.raises(UrlRefused, match=r"^more than 0 redirects$"):
            client.fetch(f"http://a.test:{site.port}/1", max_redirects=0)


@pytest.mark.parametrize(
    ("location", "kind", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data/", AddressRefused, "the host has an address that is not allowed"),
        ("http://[::1]/", AddressRefused, "the host has an address that is not allowed"),
        ("http://localhost:22/", UrlRefused, "the URL's port is not allowed"),
        ("file:///etc/passwd", UrlRefused, "the URL's scheme is not allowed"),
        ("http://u:p@a.test/", UrlRefused, "the URL must not hold a user name or password"),
        ("//evil.test\\@127.0.0.1/", UrlRefused, "the redirect has a blank, a control character or a backslash in it"),
        ("http://[::1", UrlRefused, "the redirect is not a URL"),
        ("http://a.test:bad/", UrlRefused, "the redirect is not a URL"),
        ("/" + "a" * 2_048, UrlRefused, "the URL is longer than 2048 characters"),
    ],
)
def test_each_hop_is_judged_anew(color: Color, site: Site, location: str, kind: type[FetchError], reason: str) -> None:
    site.answers["/away"] = redirect(location)
    policy = Policy(schemes=("http",), ports=(site.port, 80), opened=("127.0.0.1",))

    def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "a.test" else [host]

    with guarded(color, policy, lookup) as client, pytest.raises(kind) as caught:
        client.fetch(f"http://a.test:{site.port}/away")
    assert caught.value.reason == reason


def test_naive_follow_redirects_skips_the_check_that_was_made_before(color: Color, site: Site) -> None:
    inside = Site()
    inside.answers["/secret"] = answer(b"inside")
    site.answers["/away"] = redirect(f"http://127.0.0.1:{inside.port}/secret")
    with httpx2.Client(trust_env=False, follow_redirects=True) as naive:
        assert naive.get(f"http://127.0.0.1:{site.port}/away").text == "inside"
    with guarded(color, site.policy(), loopback) as client:
        with pytest.raises(UrlRefused):
            client.fetch(f"http://a.test:{site.port}/away")
        with pytest.raises(UrlRefused):  # also when httpx2 itself follows
            client.get(f"http://a.test:{site.port}/away", follow_redirects=True)
    inside.stop()


def test_a_redirect_from_https_to_http_is_refused_even_if_both_are_allowed() -> None:
    policy = Policy(schemes=("http", "https"))
    with pytest.raises(UrlRefused, match=r"^a redirect from https to http is not followed$"):
        policy.redirect("https://a.test/", "http://a.test/")
    assert policy.redirect("http://a.test/", "https://a.test/x") == "https://a.test/x"
    assert policy.redirect("http://a.test/", "//b.test") == "http://b.test"
    assert policy.redirect("https://a.test/", "https://b.test/") == "https://b.test/"


def test_credentials_and_headers_stay_with_the_first_origin_and_do_not_return_to_it(color: Color, site: Site) -> None:
    other = Site()
    site.answers |= {"/same": redirect("/away"), "/away": redirect(f"http://b.test:{other.port}/x")}
    other.answers["/x"] = redirect(f"http://a.test:{site.port}/")
    policy = Policy(schemes=("http",), ports=(site.port, other.port), opened=("127.0.0.1",))
    hidden = {"headers": {"X-Api-Key": "canary-1"}, "auth": ("ann", "canary-2"), "params": {"token": "canary-3"}}
    site.answers |= {f"{path}?token=canary-3": told for path, told in site.answers.items()}
    with guarded(color, policy, loopback, **hidden) as client:
        found = client.fetch(f"http://a.test:{site.port}/same", headers={"Cookie": "canary-4"})
    assert found.body == b"hello"
    heads = [*site.heads[:2], *other.heads, site.heads[2]]
    sent = [("canary-1" in h, "Authorization: Basic" in h, "canary-3" in h, "canary-4" in h) for h in heads]
    assert sent == [(True,) * 4, (True,) * 4, (False,) * 4, (False,) * 4]
    assert "Host: b.test" in other.heads[0]
    other.stop()


def test_what_one_server_sets_as_a_cookie_is_sent_to_nobody(color: Color, site: Site) -> None:
    site.answers["/"] = answer(b"", "200 OK", "Set-Cookie: track=canary; Path=/")
    with guarded(color, site.policy(), loopback) as client:
        client.fetch(f"http://a.test:{site.port}/")
        client.fetch(f"http://a.test:{site.port}/")
        assert not client.inner.cookies
    assert "canary" not in site.heads[1]


# Limits.


def test_a_body_over_the_limit_is_given_up_at_once_however_it_is_sent(color: Color, site: Site) -> None:
    sent: list[int] = []

    def endless(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while len(sent) < 5_000:
                connection.sendall(b"1000\r\n" + b"x" * 4_096 + b"\r\n")
                sent.append(4_096)

    bomb = gzip.compress(bytes(2_000_000))
    site.answers |= {"/endless": endless, "/bomb": answer(bomb, "200 OK", "Content-Encoding: gzip")}
    with guarded(color, site.policy(), loopback) as client:
        for path in ("/endless", "/bomb"):
            with pytest.raises(TooLarge, match=r"^the answer is longer than 100000 bytes$"):
                client.fetch(f"http://a.test:{site.port}{path}", max_bytes=100_000)
        assert client.fetch(f"http://a.test:{site.port}/", max_bytes=5).body == b"hello"
        with pytest.raises(TooLarge):
            client.fetch(f"http://a.test:{site.port}/", max_bytes=4)
    assert len(sent) < 5_000


@pytest.mark.parametrize("prefix", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"])
def test_a_drip_ends_at_the_deadline_in_the_headers_and_in_the_body(color: Color, site: Site, prefix: bytes) -> None:
    hung_up = threading.Event()

    def drip(connection: socket.socket) -> None:
        connection.sendall(prefix)
        try:
            while True:  # a byte well within every time-out of a read, without end
                connection.sendall(b"x")
                time.sleep(0.01)
        except OSError:
            hung_up.set()

    site.answers["/drip"] = drip
    with guarded(color, site.policy(), loopback) as client:
        begin = time.monotonic()
        with pytest.raises(Unreachable, match=UNIFORM):
            client.fetch(f"http://a.test:{site.port}/drip", deadline=0.1)
        assert time.monotonic() - begin > 0.08
    assert hung_up.wait(20)


class Dripping(httpcore2.NetworkStream):
    """Gives one byte each 4.9 seconds, of a clock of its own."""

    def __init__(self, text: bytes) -> None:
        self.left = list(text)
        self.seconds = 0.0

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        assert timeout is not None
        if timeout < 4.9:
            raise httpcore2.ReadTimeout
        self.seconds += 4.9
        return bytes([self.left.pop(0)]) if self.left else b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        pass


class OneStream(httpcore2.NetworkBackend):
    def __init__(self, stream: httpcore2.NetworkStream) -> None:
        self.stream = stream

    def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore2.NetworkStream:
        return self.stream


def test_naive_time_out_of_each_read_never_fires_on_a_drip() -> None:
    stream = Dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + b"x" * 100)
    with httpcore2.ConnectionPool(network_backend=OneStream(stream)) as pool:
        found = pool.request("GET", "http://a.test/", extensions={"timeout": {"read": 5.0}})
    assert found.content == b"x" * 100
    assert stream.seconds > 600  # ten minutes, with a "time-out of five seconds"


def test_a_lookup_that_hangs_ends_with_the_time_to_connect() -> None:
    async def hangs(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    async def main() -> None:
        async with ssrf_guard_async.guarded_client(resolve=hangs, timeout=0.02) as client:
            with pytest.raises(Unreachable) as caught:
                await ssrf_guard_async.fetch(client, "https://a.test/")
            assert caught.value.reason == "ConnectTimeout: connecting took too long"
            with pytest.raises(Unreachable) as caught:
                await ssrf_guard_async.fetch(client, "https://a.test/", deadline=0.01)
            assert caught.value.reason == "no whole answer within 0.01 s"

    asyncio.run(main())


def test_the_sync_deadline_shortens_each_time_out_and_ends_with_the_fetch(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    connects: list[float | None] = []
    real = httpcore2.SyncBackend.connect_tcp

    def connect(self: Any, host: str, port: int, timeout: float | None, *rest: Any) -> Any:
        connects.append(timeout)
        return real(self, host, port, timeout, *rest)

    monkeypatch.setattr(httpcore2.SyncBackend, "connect_tcp", connect)
    with ssrf_guard_sync.guarded_client(site.policy(), resolve=loopback, timeout=5.0) as client:
        url = f"http://a.test:{site.port}/"
        ticks = itertools.count(100.0, 0.5)
        ssrf_guard_sync.fetch(client, url, deadline=4.0, clock=lambda: next(ticks))
        assert connects == [3.5]  # of 4 seconds, one tick later
        client.get(url)  # without a fetch around it: as httpx2 does it
        late = iter([0.0, 4.0])
        with pytest.raises(Unreachable) as caught:
            ssrf_guard_sync.fetch(client, url, deadline=4.0, clock=lambda: next(late))
        assert caught.value.reason == "ReadTimeout: the deadline has passed"
        assert ssrf_guard_sync.fetch(client, url, deadline=60).body == b"hello"
    with ssrf_guard_sync.guarded_client(site.policy(), resolve=loopback, timeout=None) as client:
        still = ssrf_guard_sync.fetch(client, url, deadline=4.0, clock=lambda: 7.0)
        assert still.body == b"hello"
        client.get(url)
    assert connects[-1] == 4.0


# What is told.


def test_closed_open_and_refused_look_the_same_to_the_user(color: Color, site: Site) -> None:
    def mute(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH\r\n")

    site.answers |= {"/ssh": mute, "/cut": lambda connection: connection.close()}
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    policy = Policy(schemes=("http",), ports=(site.port, closed), opened=("127.0.0.1",))

    def lookup(host: str, port: int) -> list[str]:
        return ["10.0.0.1"] if host == "inside.test" else ["127.0.0.1"]

    urls = [f"http://a.test:{closed}/", f"http://inside.test:{closed}/", f"http://inside.test:{site.port}/"]
    urls += [f"http://a.test:{site.port}/ssh", f"http://a.test:{site.port}/cut"]
    reasons = set()
    with guarded(color, policy, lookup) as client:
        for url in urls:
            with pytest.raises(FetchError) as caught:
                client.fetch(url)
            assert str(caught.value) == UNIFORM
            reasons.add(caught.value.reason.partition(":")[0])
    assert reasons == {"ConnectError", "RemoteProtocolError", "the host has an address that is not allowed"}


def test_no_header_credential_or_url_appears_in_an_error_or_a_log(
    color: Color, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    canary = "canary-" + "9" * 9  # so that no line of this file holds it
    caplog.set_level(logging.WARNING)
    site.answers[f"/away?{canary}"] = redirect(f"http://169.254.169.254/{canary}")
    site.answers[f"/big?{canary}"] = answer(b"x" * 100)
    site.answers[f"/cut?{canary}"] = lambda connection: connection.close()
    policy = Policy(schemes=("http",), ports=(site.port, 80), opened=("127.0.0.1",))

    def lookup(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "a.test" else [host]

    said = []
    with guarded(color, policy, lookup, headers={"X-Key": canary}, auth=("u", canary)) as client:
        for path in ("/away", "/big", "/cut"):
            with pytest.raises(FetchError) as caught:
                client.fetch(f"http://a.test:{site.port}{path}?{canary}", max_bytes=9)
            said += [str(caught.value), repr(caught.value), caught.value.reason]
            said += traceback.format_exception(caught.value)
        with pytest.raises(FetchError) as caught:
            client.fetch(f"gopher://{canary}/")
        said += [str(caught.value), repr(caught.value), repr(client.inner)]
    assert canary not in "".join(said) + caplog.text


def test_an_error_that_is_not_of_the_network_is_not_disguised(color: Color, site: Site) -> None:
    def buggy(host: str, port: int) -> list[str]:
        raise LookupError("mine")

    with guarded(color, site.policy(), buggy) as client, pytest.raises(LookupError, match="mine"):
        client.fetch(f"http://a.test:{site.port}/")
