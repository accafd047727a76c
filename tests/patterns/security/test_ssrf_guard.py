"""Proves docs/patterns/security/ssrf-guard.md: which URLs and addresses are refused."""

from __future__ import annotations

import dataclasses
import gzip
import ipaddress
import socket
import tracemalloc

import httpcore2
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.depth import examples
from public_addresses import is_public
from ssrf_guard_core import (
    AddressRefused,
    Body,
    FetchError,
    Policy,
    TooLarge,
    Unreachable,
    UrlRefused,
    as_httpx2,
    check_options,
    check_url,
)

QUICK = settings(max_examples=examples(80), deadline=None, database=None)

# Each block by its first and its last address, and its neighbors outside where those are public.
_REFUSED = """
0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.127.255.255 100.100.100.200 127.0.0.0 127.0.0.1
127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255 192.0.0.0
192.0.0.8 192.0.0.192 192.0.0.255 192.0.2.0 192.0.2.255 192.88.99.0 192.88.99.255 192.168.0.0 192.168.255.255
198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0 203.0.113.255 224.0.0.0 239.255.255.255
240.0.0.0 255.255.255.255
:: ::1 ::8.8.8.8 ::ffff:0:0 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b:: 64:ff9b::8.8.8.8
64:ff9b:1::1 100::1 1fff:ffff:: 2001:: 2001::1 2001:1:: 2001:10:: 2001:1ff:ffff:ffff:ffff:ffff:ffff:ffff 2001:db8::
2001:db8:ffff:ffff:ffff:ffff:ffff:ffff 2002:: 2002:7f00:1:: 2002:ffff:ffff:ffff:ffff:ffff:ffff:ffff 3fff::
3fff:fff:ffff:ffff:ffff:ffff:ffff:ffff 4000:: 5f00::1 fc00:: fd00:ec2::254 fdff:: fe80::1 febf:: fec0:: feff::
ff00:: ff02::1 ffff:: fe80::1%eth0 2606:4700::1111%1
"""
_ALLOWED = """
1.0.0.0 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15
168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 191.255.255.255 192.0.1.0 192.0.1.255 192.0.3.0
192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0
203.0.112.255 203.0.114.0 223.255.255.255 ::ffff:8.8.8.8
2000:: 2001:200:: 2001:db7:ffff:: 2001:db9:: 2001:ffff:: 2003:: 2606:4700::1111 3ffe:: 3fff:1000:: 3fff:ffff::
"""
REFUSED, ALLOWED = _REFUSED.split(), _ALLOWED.split()


def test_an_address_that_is_not_of_the_public_internet_is_refused() -> None:
    assert [ip for ip in REFUSED if is_public(ip)] == []
    assert [ip for ip in REFUSED if Policy().allows(ip)] == []


def test_the_public_neighbors_of_each_refused_block_are_allowed() -> None:
    assert [ip for ip in ALLOWED if not is_public(ip)] == []
    assert [ip for ip in ALLOWED if not Policy().allows(ip)] == []


@pytest.mark.parametrize(
    "text", ["", "localhost", "2130706433", "0x7f.1", "127.1", "0177.0.0.1", "8.8.8.8/32", "8.8.8"]
)
def test_what_is_no_address_is_not_public(text: str) -> None:
    assert not is_public(text)
    assert not Policy().allows(text)


@given(st.ip_addresses(v=4))
@QUICK
def test_ipv4_in_the_clothes_of_ipv6_is_judged_as_ipv4_or_refused(ip: ipaddress.IPv4Address) -> None:
    digits = f"{int(ip):08x}"
    assert is_public(f"::ffff:{ip}") == is_public(str(ip))
    assert not is_public(f"64:ff9b::{ip}")
    assert not is_public(f"::{ip}")
    assert not is_public(f"2002:{digits[:4]}:{digits[4:]}::1")


def test_naive_is_private_lets_cloud_metadata_and_nat64_and_multicast_through() -> None:
    for ip in ("100.100.100.200", "64:ff9b::a9fe:a9fe", "168.63.129.16"):
        assert not ipaddress.ip_address(ip).is_private
        assert not is_public(ip)
    assert ipaddress.ip_address("224.0.0.1").is_global  # and this flag has another hole
    assert not is_public("224.0.0.1")


def test_naive_check_of_the_text_misses_names_that_resolve_to_loopback() -> None:
    for name in ("2130706433", "0x7f.1", "127.1", "0177.0.0.1"):
        with pytest.raises(ValueError, match="does not appear to be an IP"):
            ipaddress.ip_address(name)  # so the naive check takes it for a harmless name
        assert socket.getaddrinfo(name, 80)[0][4][0] == "127.0.0.1"


def test_naive_urlsplit_of_a_backslash_sees_another_host_than_the_client_calls() -> None:
    url = "http://evil.com\\@127.0.0.1/"
    assert httpx2.URL(url).host == "127.0.0.1"  # a browser goes to evil.com
    with pytest.raises(UrlRefused, match="backslash"):
        check_url(url, schemes=("http",))


# URLs.


def refusal(url: str, **options: object) -> str:
    with pytest.raises(UrlRefused) as caught:
        check_url(url, **options)  # type: ignore[arg-type]
    assert caught.value.reason == str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://example.com/", "the URL's scheme is not allowed"),
        ("file:///etc/passwd", "the URL's scheme is not allowed"),
        ("gopher://example.com/", "the URL's scheme is not allowed"),
        ("wss://example.com/", "the URL's scheme is not allowed"),
        ("//example.com/", "the URL's scheme is not allowed"),
        ("example.com", "the URL's scheme is not allowed"),
        ("", "the URL's scheme is not allowed"),
        ("https://user:word@example.com/", "the URL must not hold a user name or password"),
        ("https://@example.com/", "the URL must not hold a user name or password"),
        ("https://", "the URL's host is not a host name"),
        ("https:///path", "the URL's host is not a host name"),
        ("https:example.com", "the URL's host is not a host name"),
        ("https://[fe80::1%25eth0]/", "the URL's host is not a host name"),
        ("https://[fe80::1%eth0]/", "the URL's host is not a host name"),
        ("https://%31%32%37.0.0.1/", "the URL's host is not a host name"),
        (f"https://{'a' * 254}/", "the URL's host is not a host name"),
        ("https://example.com:22/", "the URL's port is not allowed"),
        ("https://example.com:0/", "the URL's port is not allowed"),
        ("https://example.com:99999/", "the URL's port is not allowed"),
        ("https://exa mple.com/", "the URL has a blank, a control character or a backslash in it"),
        ("https://example.com/\r\nHost: x", "the URL has a blank, a control character or a backslash in it"),
        ("https://example.com/\x7f", "the URL has a blank, a control character or a backslash in it"),
        ("https://example.com/\x00", "the URL has a blank, a control character or a backslash in it"),
        ("https://[::1", "this is not a URL"),
        ("https://ⓛocalhost/", "this is not a URL"),
        ("https://exa\xadmple.com/", "this is not a URL"),
        ("https://\ud800/", "this is not a URL"),
        ("https://a.test/\ud800", "this is not a URL"),
        ("https://example.com/" + "a" * 2_029, "the URL is longer than 2048 characters"),
    ],
)
def test_a_url_that_is_not_plain_is_refused_with_a_reason_that_repeats_nothing_of_it(url: str, reason: str) -> None:
    assert refusal(url) == reason


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "HTTPS://EXAMPLE.COM:443/a?b=c@d",
        "https://example.com?x@y",
        "https://example.com#x@y",
        "https://example.com:80/",
        "https://bücher.example/",
        "https://[2606:4700::1111]/",
        f"https://{'a' * 253}/",
        "https://example.com/" + "a" * 2_028,
    ],
)
def test_a_plain_url_passes(url: str) -> None:
    check_url(url)
    assert httpx2.URL(url).host  # the client's parser reads it too


def test_the_port_of_the_scheme_counts_when_the_url_names_none() -> None:
    check_url("http://example.com/", schemes=("http",), ports=(80,))
    check_url("https://example.com/", ports=(443,))
    assert refusal("http://example.com/", schemes=("http",), ports=(443,)) == "the URL's port is not allowed"
    assert refusal("https://example.com/", ports=(80,)) == "the URL's port is not allowed"
    assert refusal("ftp://example.com/", schemes=("ftp",)) == "the URL's port is not allowed"


pieces = st.lists(
    st.sampled_from(["https://", "a", "1.", "@", "[", "]", ":", "%", "..", "xn--", "\\", "/", "é", "٣", "\udcff"])
)


@given(pieces.map("".join))
@QUICK
def test_whatever_the_text_is_the_outcome_is_a_pass_or_url_refused(url: str) -> None:
    said = ""
    try:
        check_url(url)
    except UrlRefused as refused:
        said = str(refused)
    assert len(said) < 80


# Policies.


def test_the_environment_sets_ports_and_further_networks() -> None:
    assert Policy.from_env({}) == Policy.from_env() == Policy()
    assert Policy.from_env({"SSRF_ALLOWED_PORTS": ""}) == Policy()
    policy = Policy.from_env({"SSRF_ALLOWED_PORTS": "443 65535", "SSRF_EXTRA_BLOCKED": "8.8.8.0/24 2606:4700::/32"})
    assert policy.ports == (443, 65_535)
    assert not any(policy.allows(ip) for ip in ("8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111", "127.0.0.1"))
    assert policy.allows("8.8.4.4")


@pytest.mark.parametrize("ports", ["0", "65536", "-1", "443,80", "¹", "https"])
def test_a_setting_that_is_wrong_stops_the_start_and_is_named(ports: str) -> None:
    with pytest.raises(
        ValueError, match=rf"^SSRF_ALLOWED_PORTS must be numbers from 1 to 65535 between spaces, got {ports!r}$"
    ):
        Policy.from_env({"SSRF_ALLOWED_PORTS": ports})
    with pytest.raises(
        ValueError, match=r"^SSRF_EXTRA_BLOCKED must be networks such as 192.0.2.0/24, got '10.0.0.1/8'$"
    ) as caught:
        Policy.from_env({"SSRF_EXTRA_BLOCKED": "10.0.0.1/8"})
    assert caught.value.__suppress_context__


def test_a_policy_cannot_be_changed_while_it_is_used() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy().opened = ("127.0.0.1",)  # type: ignore[misc]


def test_errors_of_httpcore2_become_those_of_httpx2_and_others_stay() -> None:
    with pytest.raises(httpx2.ReadTimeout, match="slow"), as_httpx2():
        raise httpcore2.ReadTimeout("slow")
    for other in (KeyError("x"), httpcore2.ConnectionNotAvailable("x"), httpx2.ReadError("x")):
        with pytest.raises(type(other)) as caught, as_httpx2():
            raise other
        assert caught.value is other

    class ReadTimeout(Exception):  # noqa: N818 -- a name that httpx2 has too
        pass

    with pytest.raises(ReadTimeout), as_httpx2():
        raise ReadTimeout


def test_an_opened_address_is_open_alone() -> None:
    policy = Policy(opened=("127.0.0.1",))
    assert policy.allows("127.0.0.1")
    assert not any(policy.allows(ip) for ip in ("127.0.0.2", "::1", "::ffff:127.0.0.1", "10.0.0.1"))


def test_an_option_that_leads_around_the_guard_is_refused_by_name() -> None:
    check_options({"timeout": 5, "headers": {}, "auth": None, "base_url": "", "event_hooks": {}, "params": {}})
    check_options({"default_encoding": "utf-8"})
    for name in ("transport", "mounts", "proxy", "trust_env", "follow_redirects", "cookies", "http2", "cert"):
        with pytest.raises(TypeError, match=f"^a guarded client takes no {name}$"):
            check_options({name: None, "timeout": 5})


# Bodies.


def whole(data: bytes, encoding: str, limit: int, chunk: int = 7) -> bytes:
    body = Body(encoding, limit)
    for start in range(0, len(data), chunk):
        body.feed(data[start : start + chunk])
    return body.finish()


@pytest.mark.parametrize("encoding", ["", "identity", " Identity "])
def test_a_body_of_the_limit_passes_and_one_byte_more_does_not(encoding: str) -> None:
    assert whole(b"x" * 100, encoding, 100) == b"x" * 100
    assert whole(b"", encoding, 0) == b""
    with pytest.raises(TooLarge, match=r"^the answer is longer than 100 bytes$"):
        whole(b"x" * 101, encoding, 100)


@pytest.mark.parametrize("encoding", ["gzip", " GZip"])
def test_a_compressed_body_counts_as_sent_and_as_decompressed(encoding: str) -> None:
    packed = gzip.compress(b"x" * 1_000)
    assert whole(packed, encoding, 1_000) == b"x" * 1_000
    with pytest.raises(TooLarge):
        whole(packed, encoding, 999)
    with pytest.raises(TooLarge):  # the end of the gzip is not the end of what is sent
        whole(gzip.compress(b"") + b"junk" * 500, encoding, 1_000)
    noise = gzip.compress(bytes(range(100)))
    assert len(noise) > 100
    assert whole(noise, encoding, len(noise)) == bytes(range(100))
    with pytest.raises(TooLarge):
        whole(noise, encoding, len(noise) - 1)


def test_of_several_pieces_never_more_than_one_byte_over_the_limit_is_decompressed() -> None:
    packed = gzip.compress(bytes(1_000), compresslevel=0)
    body = Body("gzip", 600)
    body.feed(packed[:500])
    with pytest.raises(TooLarge):
        body.feed(packed[500:])
    assert len(body._data) <= 601


def test_a_gzip_bomb_of_one_to_a_thousand_never_takes_more_than_the_limit() -> None:
    bomb = gzip.compress(bytes(8_000_000))
    assert len(bomb) * 900 < 8_000_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            whole(bomb, "gzip", 100_000, chunk=65_536)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
        tracemalloc.reset_peak()
        assert len(gzip.decompress(bomb)) == 8_000_000  # what a client does that decodes whole chunks
        assert tracemalloc.get_traced_memory()[1] > 8_000_000
    finally:
        tracemalloc.stop()


def test_a_body_that_lies_about_its_encoding_is_no_answer() -> None:
    cases = [
        (b"plain text", "gzip"),
        (gzip.compress(b"x")[:-1], "gzip"),
        (b"", "gzip"),
        (b"x", "br"),
        (b"x", "gzip, gzip"),
    ]
    reasons = []
    for data, encoding in cases:
        with pytest.raises(Unreachable, match=r"^the URL cannot be fetched$") as caught:
            whole(data, encoding, 100)
        reasons.append(caught.value.reason)
    assert reasons == [
        "the answer is not the gzip that it says it is",
        "the answer's gzip ends too early",
        "the answer's gzip ends too early",
        "the answer has a Content-Encoding that was not asked for",
        "the answer has a Content-Encoding that was not asked for",
    ]


def test_every_refusal_is_caught_as_an_error_of_httpx2_too() -> None:
    for kind in (FetchError, UrlRefused, AddressRefused, TooLarge, Unreachable):
        assert issubclass(kind, httpx2.TransportError)
    assert AddressRefused("db.internal").host == "db.internal"
    assert "db.internal" not in str(AddressRefused("db.internal"))
    assert AddressRefused("db.internal").reason == "the host has an address that is not allowed"
