"""Issue and check API keys. Nothing here does I/O: where the records are kept is yours to say.

A key reads `acme_live_ab12cd34_` and 49 more characters. It names its issuer and its own record,
a double-click selects all of it, and a secret scanner knows it by its form.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID_CHARACTERS, _SECRET_CHARACTERS, _CRC_CHARACTERS = 8, 43, 6  # 62 ** 43 is more than 2 ** 256
_BRAND, _ENV = re.compile(r"[a-z][a-z0-9]{1,15}"), re.compile(r"[a-z]{2,8}")
_KEY = re.compile(
    rf"(({_BRAND.pattern})_({_ENV.pattern})_([0-9A-Za-z]{{{_ID_CHARACTERS}}}))"
    rf"_[0-9A-Za-z]{{{_SECRET_CHARACTERS}}}([0-9A-Za-z]{{{_CRC_CHARACTERS}}})"
)


class InvalidApiKey(Exception):
    """The key cannot be believed: answer 401, the same for every reason.

    `reason` is for your log. It repeats nothing that the caller sent.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What you store of a key. Times are seconds since 1970, and of the secret there is a digest.

    `last_used_at` may be behind by a minute. `revoked_at` ends the key as soon as it is set.
    """

    key_id: str
    owner: str
    scopes: frozenset[str]
    digest: bytes = field(repr=False)
    created_at: float
    expires_at: float | None = None
    revoked_at: float | None = None
    last_used_at: float | None = None


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. Show `plaintext` to its owner, once, and store `record`."""

    plaintext: str = field(repr=False)
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """The public part of a well-formed key. As text it is `acme_live_ab12cd34…`, fit for a log."""

    prefix: str
    brand: str
    env: str
    key_id: str

    def __str__(self) -> str:
        return f"{self.prefix}…"


def load_pepper(text: str | None) -> bytes | None:
    """Turn an optional setting into the key of an HMAC. Call it once, at start-up.

    Raises:
        ValueError: It is set, and has fewer than 32 characters. The message does not show it.
    """
    if text is None:
        return None
    if len(text) < 32:
        raise ValueError("API_KEY_PEPPER has fewer than 32 characters; unset it, or make it longer")
    return text.encode()


def issue(
    owner: str,
    scopes: Iterable[str],
    *,
    brand: str,
    env: str = "live",
    expires_at: float | None = None,
    pepper: bytes | None = None,
    clock: Callable[[], float] = time.time,
) -> IssuedKey:
    """Make a key of 256 random bits, and the record to store.

    Args:
        owner: Whose key it is, in your terms.
        scopes: What it may do: a set or a list of names.
        brand: Your name in the key: 2 to 16 lower-case letters and digits, a letter first.
        env: Where the key holds, such as `live` or `test`: 2 to 8 lower-case letters.
        expires_at: Seconds since 1970 from which on it is refused; None for never.
        pepper: From `load_pepper`. A stolen table alone then tests no guess.
        clock: Seconds since 1970.

    Raises:
        ValueError: `brand`, `env` or `scopes` has another form, or `expires_at` is no number.
    """
    if not _BRAND.fullmatch(brand) or not _ENV.fullmatch(env):
        raise ValueError("brand is 2 to 16 of a-z and 0-9, a letter first; env is 2 to 8 of a-z")
    if isinstance(scopes, str):  # which would be a set of letters
        raise ValueError("scopes is a set or a list of names, not one text")
    if expires_at is not None and not _is_number(expires_at):
        raise ValueError(f"expires_at must be a number of seconds or None, got {expires_at!r}")
    key_id = _random_text(_ID_CHARACTERS)
    body = f"{brand}_{env}_{key_id}_{_random_text(_SECRET_CHARACTERS)}"
    text = body + _crc_text(body)
    record = KeyRecord(key_id, owner, frozenset(scopes), _digest(text, pepper), clock(), expires_at)
    return IssuedKey(text, record)


def parse(text: str) -> ParsedKey:
    """Read a key's public part. Typing errors and scanners' guesses end here, without a look-up.

    Raises:
        InvalidApiKey: It has another form, or its last six characters are not its CRC-32.
    """
    found = _KEY.fullmatch(text)
    if found is None:
        raise InvalidApiKey("not the form of a key")
    # A checksum is no secret: whoever wants to can compute it.
    if _crc_text(text[:-_CRC_CHARACTERS]) != found[5]:
        raise InvalidApiKey("wrong checksum")
    return ParsedKey(found[1], found[2], found[3], found[4])


def check(record: KeyRecord, text: str, now: float, *, pepper: bytes | None = None) -> None:
    """Compare a whole key with the record that its id names. `now` is seconds since 1970.

    Raises:
        InvalidApiKey: The secret is another, or the key was revoked or has expired.
    """
    # Bytes: two texts raise a TypeError when one is not ASCII. And the secret goes first, so that
    # nobody without it learns what became of the key.
    if not hmac.compare_digest(record.digest, _digest(text, pepper)):
        raise InvalidApiKey("wrong secret")
    if record.revoked_at is not None:
        raise InvalidApiKey("revoked")
    if record.expires_at is not None and not now < record.expires_at:
        raise InvalidApiKey("expired")


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _random_text(length: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _crc_text(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CRC_CHARACTERS):
        number, rest = divmod(number, len(_ALPHABET))
        digits = _ALPHABET[rest] + digits
    return digits


def _digest(text: str, pepper: bytes | None) -> bytes:
    # One fast hash is enough: the key is 256 random bits, so there is nothing to guess. A slow
    # password hash would cost each request tens of milliseconds, and a stranger could order them.
    data = text.encode(errors="replace")
    return hashlib.sha256(data).digest() if pepper is None else hmac.digest(pepper, data, "sha256")
