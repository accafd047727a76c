"""Digests of bytes, text and streams that equal what a browser's Web Crypto computes.

SHA-2 as in FIPS 180-4, HMAC as in RFC 2104, BLAKE2b as in RFC 7693. A digest says that content is
unchanged. Only one with a key says who made it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Protocol

# The names and no others: what Web Crypto refuses, a browser cannot check.
_ALGORITHMS = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}
_CHUNK = 262_144

_HEX = re.compile(r"(?:[0-9a-fA-F]{2})*")


class DigestError(ValueError):
    """Base of the errors here. No message repeats what was digested, or a key."""


class UnsupportedAlgorithm(DigestError):
    """The algorithm is not one of those that Web Crypto knows, or not allowed for this use."""


class TooLarge(DigestError):
    """The stream is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Digest:
    """A digest: the algorithm's Web Crypto name, and its bytes."""

    algorithm: str
    value: bytes

    @property
    def hex(self) -> str:
        """The bytes as lower-case hexadecimal digits."""
        return self.value.hex()

    @property
    def base64(self) -> str:
        """The bytes as padded base64 of the standard alphabet."""
        return base64.b64encode(self.value).decode()


class Reader(Protocol):
    """A binary file, or anything else whose `read(n)` gives at most n bytes."""

    def read(self, size: int, /) -> bytes | str | None:
        """Return up to `size` bytes."""
        ...


def digest_bytes(data: bytes, algorithm: str = "SHA-256", *, allow_sha1: bool = False) -> Digest:
    """Digest bytes, as `crypto.subtle.digest(algorithm, data)` does.

    Args:
        data: Bytes. A typed array is its little-endian bytes: `struct.pack("<2H", 1, 258)`.
        algorithm: "SHA-256", "SHA-384" or "SHA-512", in any case.
        allow_sha1: Take "SHA-1" too: to check an old digest, never to make a new one.

    Raises:
        UnsupportedAlgorithm: Another algorithm.
    """
    name, function = _algorithm_of(algorithm, allow_sha1)
    return Digest(name, hashlib.new(function, data).digest())


def digest_text(text: str, algorithm: str = "SHA-256", *, allow_sha1: bool = False) -> Digest:
    """Digest text, as `crypto.subtle.digest` does with what `TextEncoder` made of it.

    That is UTF-8, with U+FFFD in place of a lone surrogate (WHATWG Encoding).

    Raises:
        UnsupportedAlgorithm: As in `digest_bytes`.
    """
    return digest_bytes(_to_utf8(text), algorithm, allow_sha1=allow_sha1)


def digest_stream(
    reader: Reader,
    algorithm: str = "SHA-256",
    *,
    limit: int | None = None,
    allow_sha1: bool = False,
) -> Digest:
    """Digest a binary file or stream to its end, holding 256 KiB of it at a time.

    Args:
        reader: Opened in binary mode, and blocking.
        algorithm: As in `digest_bytes`.
        limit: How many bytes there may be; None for any number.
        allow_sha1: As in `digest_bytes`.

    Raises:
        UnsupportedAlgorithm: As in `digest_bytes`, before anything is read.
        TooLarge: The stream goes on after `limit` bytes.
        ValueError: The limit is no whole number from 0.
        TypeError: The reader gives text: its line ends may have been changed.
        BlockingIOError: The reader has nothing yet. A digest of what has arrived would be wrong.
    """
    _check_limit(limit)
    name, function = _algorithm_of(algorithm, allow_sha1)
    state, seen = hashlib.new(function), 0
    while chunk := reader.read(_CHUNK):
        if isinstance(chunk, str):
            raise TypeError("open the file in binary mode: text may have other line ends")
        seen = _count_bytes(seen, chunk, limit)
        state.update(chunk)
    if chunk is None:
        raise BlockingIOError("the stream has nothing to read yet: a digest needs all of it")
    return Digest(name, state.digest())


async def adigest_stream(
    chunks: AsyncIterable[bytes],
    algorithm: str = "SHA-256",
    *,
    limit: int | None = None,
    allow_sha1: bool = False,
) -> Digest:
    """Digest chunks as they arrive, such as a request's body. Otherwise as `digest_stream`."""
    _check_limit(limit)
    name, function = _algorithm_of(algorithm, allow_sha1)
    state, seen = hashlib.new(function), 0
    async for chunk in chunks:
        seen = _count_bytes(seen, chunk, limit)
        state.update(chunk)
    return Digest(name, state.digest())


def hmac_bytes(key: bytes, data: bytes, algorithm: str = "SHA-256") -> Digest:
    """Authenticate bytes, as `crypto.subtle.sign("HMAC", key, data)` does (RFC 2104).

    Args:
        key: At best as many random bytes as the digest has.
        data: What is authenticated.
        algorithm: The hash: "SHA-256", "SHA-384" or "SHA-512", in any case.

    Raises:
        UnsupportedAlgorithm: Another algorithm.
        ValueError: The key is empty. Python would take it; Web Crypto refuses it.
    """
    name, function = _algorithm_of(algorithm, allow_sha1=False)
    if not key:
        raise ValueError("the HMAC key is empty: anybody could make this tag")
    return Digest(name, hmac.digest(key, data, function))


def keyed(data: bytes, key: bytes, size: int = 32) -> Digest:
    """Authenticate bytes with keyed BLAKE2b (RFC 7693), for Python on both sides.

    Args:
        data: What is authenticated.
        key: 1 to 64 bytes.
        size: Bytes of the digest, 1 to 64. Another size is another digest, not a shorter one.

    Raises:
        ValueError: Key or size is out of its range.
    """
    if not 1 <= len(key) <= 64:
        raise ValueError("BLAKE2b takes a key of 1 to 64 bytes")
    if not isinstance(size, int) or isinstance(size, bool) or not 1 <= size <= 64:
        raise ValueError(f"size must be a whole number from 1 to 64, got {size!r}")
    return Digest(f"BLAKE2b-{size * 8}", hashlib.blake2b(data, key=key, digest_size=size).digest())


def verify(expected: str | bytes | Digest, actual: Digest) -> bool:
    """Compare in constant time.

    `expected` is hexadecimal in either case, the raw bytes, or a `Digest`. Whatever else it holds,
    such as another length or other characters, is False and no exception.
    """
    if isinstance(expected, Digest):
        if expected.algorithm != actual.algorithm:
            return False
        expected = expected.value
    if isinstance(expected, str):
        expected = bytes.fromhex(expected) if _HEX.fullmatch(expected) else b""
    return hmac.compare_digest(expected, actual.value)


def _algorithm_of(algorithm: str, allow_sha1: bool) -> tuple[str, str]:
    name = algorithm.upper() if algorithm.isascii() else ""  # upper() makes an S of more than s
    if name == "SHA-1" and not allow_sha1:
        raise UnsupportedAlgorithm("SHA-1 is broken: allow_sha1=True only to check an old digest")
    if name not in _ALGORITHMS:
        raise UnsupportedAlgorithm("the algorithm is not SHA-256, SHA-384 or SHA-512")
    return name, _ALGORITHMS[name]


def _check_limit(limit: int | None) -> None:
    if limit is None:
        return
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ValueError(f"limit must be a whole number, 0 or more, or None, got {limit!r}")


def _count_bytes(seen: int, chunk: bytes, limit: int | None) -> int:
    seen += len(chunk)
    if limit is not None and seen > limit:
        raise TooLarge(f"the stream has more than {limit} bytes")
    return seen


def _to_utf8(text: str) -> bytes:
    # JavaScript's strings are UTF-16. There two halves of a pair meet, and one alone is an error.
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
