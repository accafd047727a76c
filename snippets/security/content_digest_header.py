"""The `Content-Digest` header of RFC 9530: make it, read it, and check a body against it."""

from __future__ import annotations

import base64
import re

from content_digest import Digest, DigestError, UnsupportedAlgorithm, digest_bytes, verify

_SIZES = {"SHA-512": 64, "SHA-256": 32}  # those that RFC 9530 has as active, strongest first

# One member of a dictionary of RFC 9651 whose value is a byte sequence, parameters ignored.
_MEMBER = re.compile(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):(?:;[^,]*)?")


class DigestMismatch(DigestError):
    """The content is not what the digest was made of."""


class BadHeader(DigestError):
    """A `Content-Digest` header is malformed, or says nothing that can be checked."""


def make_header(*digests: Digest) -> str:
    """Return the value of a `Content-Digest` header.

    Raises:
        UnsupportedAlgorithm: A digest is neither SHA-256 nor SHA-512.
    """
    if any(digest.algorithm not in _SIZES for digest in digests):
        raise UnsupportedAlgorithm("Content-Digest takes SHA-256 and SHA-512")
    return ", ".join(f"{digest.algorithm.lower()}=:{digest.base64}:" for digest in digests)


def strongest(header: str | None) -> Digest | None:
    """Return the strongest digest in a `Content-Digest` header, None where there is none to check.

    Unknown algorithms are ignored, as RFC 9530 asks, among them MD5 and SHA-1.

    Raises:
        BadHeader: It is malformed, or names an algorithm twice.
    """
    found: dict[str, bytes] = {}
    for member in header.split(",") if header else ():
        match = _MEMBER.fullmatch(member.strip(" \t"))
        if match is None or match[1] in found:
            raise BadHeader("Content-Digest is no list of name=:base64:, each name once")
        try:
            found[match[1]] = base64.b64decode(match[2], validate=True)
        except ValueError:
            raise BadHeader("a value in Content-Digest is not base64") from None
    for name, size in _SIZES.items():
        value = found.get(name.lower())
        if value is None:
            continue
        if len(value) != size:
            raise BadHeader(f"the {name} value in Content-Digest has another length")
        return Digest(name, value)
    return None


def check(header: str | None, body: bytes, *, required: bool = True) -> None:
    """Check a body against its `Content-Digest` header.

    Args:
        header: The header's value, None where there is none.
        body: The bytes as they came, before any decoding.
        required: Whether a header without a known digest is refused, and a missing one.

    Raises:
        BadHeader: As in `strongest`; or there is nothing to check, and it is required.
        DigestMismatch: The body is another one.
    """
    wanted = strongest(header)
    if wanted is None:
        if required:
            raise BadHeader("Content-Digest has no SHA-512 or SHA-256 digest, or is missing")
    elif not verify(wanted, digest_bytes(body, wanted.algorithm)):
        raise DigestMismatch(
            f"the body has another {wanted.algorithm} digest than Content-Digest says"
        )
