"""Proves docs/patterns/security/content-digest.md: the same bytes give the same digest as in a browser, or an error."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import hmac
import io
import itertools
import secrets
import struct
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from content_digest import (
    Digest,
    TooLarge,
    UnsupportedAlgorithm,
    adigest_stream,
    digest_bytes,
    digest_stream,
    digest_text,
    hmac_bytes,
    keyed,
    verify,
)
from harness.depth import examples
from patterns.security.content_digest_kit import go_on, node, padding

HELLO = "a53c56966616f0ec3ed9db7ea07a6034430149528bbaba8966c284f9373669c2"
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ALGORITHMS = ("SHA-256", "SHA-384", "SHA-512")


class Parts(io.RawIOBase):
    """A raw stream that gives these parts, one a call; None is "nothing yet", an exception is raised."""

    def __init__(self, *parts: bytes | Exception | None) -> None:
        self._parts = iter((*parts, b""))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int | None:  # type: ignore[override]
        part = next(self._parts)
        if isinstance(part, Exception):
            raise part
        if part is None:
            return None
        buffer[: len(part)] = part
        return len(part)


async def _each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def _of_stream(parts: list[bytes], algorithm: str = "SHA-256", limit: int | None = None) -> Digest:
    return digest_stream(Parts(*(part for part in parts if part)), algorithm, limit=limit)


def _of_chunks(parts: list[bytes], algorithm: str = "SHA-256", limit: int | None = None) -> Digest:
    return asyncio.run(adigest_stream(_each(parts), algorithm, limit=limit))


both = pytest.mark.parametrize("stream", [_of_stream, _of_chunks], ids=["sync", "async"])
Stream = Callable[..., Digest]


# The same digests as in a browser.


def test_text_with_accents_and_emoji_has_the_digest_that_a_browser_computes() -> None:
    assert digest_text("héllo 😀").hex == HELLO
    assert digest_text("").hex == digest_bytes(b"").hex == EMPTY


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\ud800b", "05087813392efc16fe8ff448920c6328e53af865df39419436659d9ffda90f7b"),
        ("\ud83d\ude00", hashlib.sha256("😀".encode()).hexdigest()),  # two halves meet, as in JavaScript
        ("\ude00\ud83d", hashlib.sha256("\ufffd\ufffd".encode()).hexdigest()),
    ],
)
def test_a_lone_surrogate_is_hashed_as_the_replacement_character(text: str, expected: str) -> None:
    assert digest_text(text).hex == expected


def test_naive_encoding_of_a_lone_surrogate_raises_or_writes_a_question_mark() -> None:
    with pytest.raises(UnicodeEncodeError):
        "a\ud800b".encode()
    assert "a\ud800b".encode(errors="replace") == b"a?b"
    assert digest_text("a\ud800b") == digest_text("a\ufffdb") != digest_bytes(b"a?b")


def test_node_agrees_on_texts_macs_typed_arrays_and_on_what_is_refused() -> None:
    texts = ["héllo 😀", "", "a\ud800b", "\udc00", "\ud83d\ude00", "\ue000\U0001f600\x00\x7f", "é" * 999]
    units = [
        list(struct.unpack(f"<{len(raw) // 2}H", raw))
        for raw in (t.encode("utf-16-le", "surrogatepass") for t in texts)
    ]
    asked = [(algorithm, unit) for algorithm in ("SHA-1", *ALGORITHMS) for unit in units]
    macs = [(a, secrets.token_bytes(n), secrets.token_bytes(n * 7)) for a in ALGORITHMS for n in (1, 32, 64, 200)]
    refused = ["MD5", "SHA-224", "SHA3-256", "sha256"]
    answers = node(
        texts=asked,
        macs=[(algorithm, key.hex(), data.hex()) for algorithm, key, data in macs],
        refused=[*refused, "sha-256"],
        emptyKey=None,
        typed=[1, 258, 65535],
    )
    ours = [digest_text(text, a, allow_sha1=True).hex for a in ("SHA-1", *ALGORITHMS) for text in texts]
    assert answers["texts"] == ours
    assert answers["macs"] == [hmac_bytes(key, data, algorithm).hex for algorithm, key, data in macs]
    assert answers["refused"] == ["NotSupportedError"] * len(refused) + ["taken"]
    for name in refused:
        with pytest.raises(UnsupportedAlgorithm):
            digest_bytes(b"", name)
    assert answers["emptyKey"] == "DataError"
    assert answers["typed"] == digest_bytes(struct.pack("<3H", 1, 258, 65535)).hex


def test_node_shows_that_create_hash_ignores_its_second_argument() -> None:
    assert node(createHash="héllo 😀")["createHash"] == EMPTY != HELLO


def test_naive_bytes_of_a_typed_arrays_numbers_are_others() -> None:
    numbers = [1, 258]  # new Uint16Array([1, 258])
    with pytest.raises(ValueError, match="range"):
        bytes(numbers)
    joined = ",".join(map(str, numbers)).encode()
    right = digest_bytes(struct.pack("<2H", *numbers))
    assert right.value == hashlib.sha256(b"\x01\x00\x02\x01").digest()
    assert right not in (digest_bytes(joined), digest_bytes(struct.pack(">2H", *numbers)))


@pytest.mark.parametrize("name", ["SHA-256", "sha-384", "Sha-512"])
def test_names_are_those_of_web_crypto_in_any_case(name: str) -> None:
    made = digest_bytes(b"abc", name)
    assert made.algorithm == name.upper()
    assert made.value == hashlib.new(name.replace("-", "").lower(), b"abc").digest()
    assert (made.hex, made.base64) == (made.value.hex(), base64.b64encode(made.value).decode())


def test_sha1_is_taken_only_where_the_caller_says_so() -> None:
    attempts: list[Callable[[], Digest]] = [
        lambda: digest_bytes(b"abc", "sha-1"),
        lambda: digest_text("abc", "sha-1"),
        lambda: digest_stream(io.BytesIO(b"abc"), "sha-1"),
        lambda: asyncio.run(adigest_stream(_each([b"abc"]), "sha-1")),
        lambda: hmac_bytes(b"key", b"abc", "sha-1"),
    ]
    for attempt in attempts:
        with pytest.raises(UnsupportedAlgorithm, match="SHA-1 is broken"):
            attempt()
    old = "a9993e364706816aba3e25717850c26c9cd0d89d"  # FIPS 180-4's example "abc"
    assert verify(old, digest_bytes(b"abc", "SHA-1", allow_sha1=True))
    assert verify(old, digest_text("abc", "SHA-1", allow_sha1=True))
    assert verify(old, digest_stream(io.BytesIO(b"abc"), "SHA-1", allow_sha1=True))
    assert verify(old, asyncio.run(adigest_stream(_each([b"abc"]), "SHA-1", allow_sha1=True)))


@pytest.mark.parametrize("name", ["MD5", "md5", "SHA-224", "SHA3-256", "SHA256", "", "BLAKE2b", "ſha-256"])
def test_an_algorithm_that_no_browser_knows_is_refused_before_anything_is_read(name: str) -> None:
    untouched = io.BytesIO(b"abc")
    attempts: list[Callable[[], Digest]] = [
        lambda: digest_bytes(b"", name),
        lambda: digest_text("", name),
        lambda: hmac_bytes(b"key", b"", name),
        lambda: digest_stream(untouched, name),
        lambda: asyncio.run(adigest_stream(_each([]), name)),
    ]
    for attempt in attempts:
        with pytest.raises(UnsupportedAlgorithm):
            attempt()
    assert untouched.tell() == 0


def test_naive_md5_names_two_contents_alike() -> None:
    # The pair that Wang and Yu published in 2005; they differ in six bits.
    one = bytearray.fromhex(
        "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a"
        "085125e8f7cdc99fd91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0"
        "e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70"
    )
    two = bytes(byte ^ (0x80 if at in {19, 45, 59, 83, 109, 123} else 0) for at, byte in enumerate(one))
    assert bytes(one) != two
    assert hashlib.md5(one, usedforsecurity=False).digest() == hashlib.md5(two, usedforsecurity=False).digest()
    assert digest_bytes(bytes(one)) != digest_bytes(two)


# Keys.


@pytest.mark.parametrize(
    ("key", "data", "algorithm", "expected"),
    [
        (b"key", b"msg", "SHA-256", "2d93cbc1be167bcb1637a4a23cbff01a7878f0c50ee833954ea5221bb1b8c628"),
        (  # RFC 4231, test case 2
            b"Jefe",
            b"what do ya want for nothing?",
            "SHA-256",
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (  # test case 1
            b"\x0b" * 20,
            b"Hi There",
            "SHA-384",
            "afd03944d84895626b0825f4ab46907f15f9dadbe4101ec682aa034c7cebc59cfaea9ea9076ede7f4af152e8b2fa9cb6",
        ),
        (  # test case 6: a key longer than the block is hashed first
            b"\xaa" * 131,
            b"Test Using Larger Than Block-Size Key - Hash Key First",
            "SHA-512",
            (
                "80b24263c7c1a3ebb71493c1dd7be8b49b46d1f41b4aeec1121b013783f8f3526b56d037e05f2598bd0fd2215d6a1e52"
                "95e64f73f63f0aec8b915a985d786598"
            ),
        ),
    ],
)
def test_hmac_gives_the_published_vectors(key: bytes, data: bytes, algorithm: str, expected: str) -> None:
    assert hmac_bytes(key, data, algorithm).hex == expected


def test_naive_hmac_takes_an_empty_key_that_everybody_has() -> None:
    assert len(hmac.new(b"", b"msg", hashlib.sha256).digest()) == 32
    with pytest.raises(ValueError, match="empty"):
        hmac_bytes(b"", b"msg")


def test_naive_hash_of_secret_and_message_is_forged_without_the_secret() -> None:
    secret, order = secrets.token_bytes(32), b"amount=10"
    tag = hashlib.sha256(secret + order).digest()  # naive: the server's tag

    glue = padding(len(secret) + len(order))  # the attacker knows order and tag, and guesses the secret's length
    longer = order + glue + b"&amount=9999"
    forged = go_on(tag, len(secret) + len(order) + len(glue), b"&amount=9999")

    assert forged == hashlib.sha256(secret + longer).digest()  # believed

    mac = hmac_bytes(secret, order)  # its inner hash has seen one block more
    glue = padding(64 + len(order))
    assert not verify(
        go_on(mac.value, 64 + len(order) + len(glue), b"&amount=9999"),
        hmac_bytes(secret, order + glue + b"&amount=9999"),
    )


def test_keyed_blake2b_is_no_cut_of_a_longer_one_and_depends_on_the_key() -> None:
    data, key = b"content", secrets.token_bytes(32)
    assert len(keyed(data, key).value) == 32
    assert keyed(data, key).value != keyed(data, key, size=64).value[:32]
    assert keyed(data, key) == keyed(data, key) != keyed(data, secrets.token_bytes(32))
    assert keyed(data, key).algorithm == "BLAKE2b-256"
    # RFC 7693's implementation guide and Python's documentation agree on this construction:
    assert keyed(data, key, 20).value == hashlib.blake2b(data, key=key, digest_size=20).digest()
    for size in (1, 64):
        assert len(keyed(data, b"k", size).value) == size


@pytest.mark.parametrize(
    ("key", "size"), [(b"", 32), (b"k" * 65, 32), (b"k", 0), (b"k", 65), (b"k", True), (b"k", 32.0)]
)
def test_keyed_refuses_a_key_or_size_out_of_range(key: bytes, size: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        keyed(b"", key, size)
    assert keyed(b"", b"k" * 64, 32).value


# Comparing.


def test_verify_takes_hex_of_either_case_raw_bytes_and_digests() -> None:
    actual = digest_bytes(b"abc")
    for expected in (actual.hex, actual.hex.upper(), actual.value, actual):
        assert verify(expected, actual)
    assert not verify(digest_bytes(b"abd"), actual)


@pytest.mark.parametrize(
    "expected",
    ["", "ab", "ab" * 33, "zz" * 32, HELLO[:-1], f" {HELLO}", f"{HELLO}\n", "é" * 64, "٣" * 64, b"", b"\0", HELLO[:-2]],
)
def test_verify_is_false_for_whatever_else_and_never_raises(expected: str | bytes) -> None:
    assert verify(expected, digest_text("héllo 😀")) is False


def test_verify_does_not_take_one_algorithm_for_another() -> None:
    actual = digest_bytes(b"abc", "SHA-256")
    for other in ("BLAKE2b-256", "SHA-512"):  # names before and after it in the alphabet
        assert not verify(Digest(other, actual.value), actual)
    with pytest.raises(dataclasses.FrozenInstanceError):
        actual.algorithm = "SHA-512"  # type: ignore[misc]


def test_verify_compares_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bytes, bytes]] = []

    def spy(a: bytes, b: bytes) -> bool:
        seen.append((a, b))
        return False

    monkeypatch.setattr(hmac, "compare_digest", spy)
    actual = digest_bytes(b"abc")
    assert not verify(actual.hex, actual)
    assert seen == [(actual.value, actual.value)]


def test_naive_comparison_of_hex_refuses_the_other_case() -> None:
    actual = digest_bytes(b"abc")
    assert actual.hex != actual.hex.upper()  # naive: `==` on text
    assert verify(actual.hex.upper(), actual)


# Streams.


@both
@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=6))
@settings(max_examples=examples(50), deadline=None)
def test_any_chunking_of_a_stream_gives_the_same_digest(stream: Stream, data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(edges)]
    assert stream(parts) == digest_bytes(data)
    assert stream(parts, "sha-512") == digest_bytes(data, "SHA-512")


@both
def test_a_stream_may_be_as_long_as_the_limit_and_not_a_byte_longer(stream: Stream) -> None:
    assert stream([b"x" * 60, b"y" * 40], limit=100) == digest_bytes(b"x" * 60 + b"y" * 40)
    with pytest.raises(TooLarge, match="100 bytes"):
        stream([b"x" * 60, b"y" * 41], limit=100)
    with pytest.raises(TooLarge):
        stream([b"x"], limit=0)
    assert stream([], limit=0).hex == EMPTY
    for wrong in (-1, 1.5, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=rf"^limit must be a whole number, 0 or more, or None, got {wrong!r}$"):
            stream([b"x"], limit=wrong)


@both
def test_a_stream_that_breaks_in_the_middle_gives_no_digest(stream: Stream) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"abc"
        raise ConnectionResetError

    def attempt() -> Digest:
        if stream is _of_stream:
            return digest_stream(Parts(b"abc", ConnectionResetError()))
        return asyncio.run(adigest_stream(broken()))

    with pytest.raises(ConnectionResetError):
        attempt()


def test_a_file_is_read_in_pieces_whatever_its_size() -> None:
    class Endless:
        """64 MiB of one piece, without ever holding them; it counts what it is asked for."""

        left, most = 64 * 1_048_576, 0

        def read(self, size: int) -> bytes:
            self.most = max(self.most, size)
            size = min(size, self.left)
            self.left -= size
            return bytes(size)

    reader = Endless()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        made = digest_stream(reader)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert made.hex == "3b6a07d0d404fab4e23b6d34bc6696a6a312dd92821332385e5af7c01c421351"
    assert reader.most <= 262_144
    assert peak - before < 1_048_576


def test_a_file_that_grows_while_it_is_read_ends_at_the_limit() -> None:
    class Growing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            at = self.tell()
            self.seek(0, io.SEEK_END)
            self.write(b"x" * 1_000)  # somebody appends faster than we read
            self.seek(at)
            return super().read(min(size or 0, 1_000))

    with pytest.raises(TooLarge):
        digest_stream(Growing(b"x"), limit=10_000)


def test_naive_text_mode_changes_line_ends_and_the_module_refuses_it(tmp_path: Path) -> None:
    path = tmp_path / "windows.csv"
    path.write_bytes(b"a,b\r\n1,2\r\n")
    with path.open(encoding="utf-8") as file:
        assert digest_text(file.read()) != digest_bytes(path.read_bytes())
    with path.open(encoding="utf-8") as file, pytest.raises(TypeError, match="binary mode"):
        digest_stream(file)
    with path.open("rb") as file:
        assert digest_stream(file) == digest_bytes(path.read_bytes())


def test_naive_file_digest_hashes_an_old_buffer_when_nothing_is_there_yet() -> None:
    whole = hashlib.sha256(b"abcde").hexdigest()
    try:
        naive = hashlib.file_digest(Parts(b"abc", None, b"de"), "sha256").hexdigest()  # type: ignore[arg-type]
    except BlockingIOError:
        assert sys.version_info >= (3, 13), "repaired only in later releases"
    else:
        assert naive != whole  # a digest of nothing that was ever sent, and no error
    with pytest.raises(BlockingIOError, match="nothing to read yet"):
        digest_stream(Parts(b"abc", None, b"de"))
