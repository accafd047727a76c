"""Verify and make webhook signatures: Standard Webhooks 1.0.0, and the hex form of GitHub.

A signature covers the raw bytes of the body: verify those first, parse them afterwards.
"""

from __future__ import annotations

import base64
import hmac
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_KEY_BYTES = 24  # Standard Webhooks asks for it; an empty key would still make a valid HMAC
MAX_ENTRIES = 10  # read of one signature header: a stranger must not decide how much we work

# Without a dot in the id, "id.timestamp.body" can be cut in one place only. Visible ASCII,
# because the id becomes a header, a log field and a database key.
_ID = re.compile(r"[!-\-/-~]{1,255}")
# int() and float() would also read "+1", " 1 ", "1e0", "nan" and Arabic digits. Thirteen digits
# would be milliseconds.
_SECONDS = re.compile(r"[0-9]{1,12}")
_NO_KEYS = "no usable secret: make them with secrets_from_env()"


class SecretError(ValueError):
    """A signing secret is unusable. The message never holds the secret."""


class BadSignature(Exception):
    """The delivery cannot be believed: answer 401, and do nothing else with it.

    `reason` is for your log, not for the answer. It repeats nothing that the sender wrote.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Verified:
    """What the signature vouches for besides the body.

    `id` is the same each time the event is sent: store it, to drop what you already have.
    `timestamp` is when this attempt was sent, in seconds since 1970.
    """

    id: str
    timestamp: int


def secrets_from_env(
    name: str = "WEBHOOK_SECRETS", *, raw: bool = False, environ: Mapping[str, str] = os.environ
) -> tuple[bytes, ...]:
    """Read the keys from a setting. Call it once, at start-up.

    Args:
        name: Of the setting: secrets separated by white space, the newest first, each `whsec_`
            followed by base64.
        raw: True if the provider uses the secret's characters as the key (GitHub, BTCPay).
        environ: Where the setting is.

    Raises:
        RuntimeError: It is not set, or is empty.
        SecretError: A secret is not base64 or has fewer than 24 bytes.
    """
    keys = []
    for number, entry in enumerate(environ.get(name, "").split(), 1):
        try:
            key = entry.encode() if raw else _decode_secret(entry)
        except ValueError:  # and "from None", because the cause holds the secret
            form = "UTF-8 text" if raw else "whsec_ followed by base64"
            raise SecretError(f"{name}: secret {number} is not {form}") from None
        if len(key) < MIN_KEY_BYTES:
            raise SecretError(f"{name}: secret {number} has fewer than {MIN_KEY_BYTES} bytes")
        keys.append(key)
    if not keys:
        raise RuntimeError(f"{name} is not set, or is empty")
    return tuple(keys)


def sign(body: bytes, secrets: Sequence[bytes], *, msg_id: str, timestamp: int) -> dict[str, str]:
    """Make the headers of Standard Webhooks 1.0.0. Send exactly these body bytes with them.

    Args:
        body: The bytes that go on the wire.
        secrets: One signature is made with each: with the new and the old one while you rotate.
        msg_id: Names the event, the same in every attempt: visible ASCII without a dot.
        timestamp: When this attempt is sent, in whole seconds since 1970: new in every attempt.

    Raises:
        SecretError: There is no secret, or one has fewer than 24 bytes.
        ValueError: `msg_id` or `timestamp` has another form.
    """
    keys = _usable_keys(secrets)
    if not keys:
        raise SecretError(_NO_KEYS)
    stamp = str(timestamp)
    if not _ID.fullmatch(msg_id):
        raise ValueError("msg_id must be 1 to 255 visible ASCII characters without a dot")
    if not _SECONDS.fullmatch(stamp):
        raise ValueError(f"timestamp must be whole seconds since 1970, got {timestamp!r}")
    content = b".".join((msg_id.encode(), stamp.encode(), body))
    return {
        "webhook-id": msg_id,
        "webhook-timestamp": stamp,
        "webhook-signature": b" ".join(_v1(key, content) for key in keys).decode(),
    }


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secrets: Sequence[bytes],
    *,
    tolerance: float = 300,
    now: float,
    header_prefix: str = "webhook-",
) -> Verified:
    """Check the headers of Standard Webhooks 1.0.0 against the raw body.

    Args:
        body: The bytes as they arrived, before any parsing.
        headers: The request's; their names are compared without case.
        secrets: From `secrets_from_env`. Any one that matches is enough.
        tolerance: How many seconds the timestamp may be before or after `now`.
        now: Seconds since 1970, `time.time()`.
        header_prefix: `"svix-"` for senders whose headers are named svix-id and so on.

    Raises:
        BadSignature: Something is missing, malformed, too old, too new or forged.
        ValueError: The tolerance is no number of seconds from 0.
    """
    if not (_is_number(tolerance) and tolerance >= 0):
        raise ValueError(f"tolerance must be a number of seconds, 0 or more, got {tolerance!r}")
    keys = _usable_keys(secrets)
    if not keys:
        raise BadSignature(_NO_KEYS)
    msg_id, stamp, signatures = _three_headers(headers, header_prefix.lower())
    if not _ID.fullmatch(msg_id):
        raise BadSignature("the id is empty, too long, or has a dot or a space in it")
    if not _SECONDS.fullmatch(stamp):
        raise BadSignature("the timestamp is not whole seconds in ASCII digits")
    if not abs(now - int(stamp)) <= tolerance:  # written so that a NaN is refused too
        raise BadSignature(f"the timestamp is more than {tolerance} s away from our clock")
    entries = signatures.split(" ", MAX_ENTRIES)[:MAX_ENTRIES]
    sent = [entry.encode() for entry in entries if entry.startswith("v1,")]
    if not sent:
        raise BadSignature(f"no v1 signature among the first {MAX_ENTRIES} entries")
    content = b".".join((msg_id.encode(), stamp.encode(), body))
    for key in keys:
        # Ours is encoded, theirs is never decoded: bytes of any length compare without an error.
        ours = _v1(key, content)
        if any(hmac.compare_digest(ours, theirs) for theirs in sent):
            return Verified(msg_id, int(stamp))
    raise BadSignature("no signature matches")


def verify_hex(
    body: bytes, header: str | None, secrets: Sequence[bytes], *, prefix: str = "sha256="
) -> None:
    """Check a hex HMAC-SHA256 of the body alone: GitHub's X-Hub-Signature-256, BTCPay-Sig.

    It signs no time and no id: a copy stays valid forever, under any delivery id. Drop what you
    already have by something inside the body.

    Args:
        body: The bytes as they arrived, before any parsing.
        header: The signature header's value, None if there is none.
        secrets: From `secrets_from_env(..., raw=True)`. Any one that matches is enough.
        prefix: What stands before the hex digits, `""` if nothing does.

    Raises:
        BadSignature: The header is missing, malformed or forged.
    """
    keys = _usable_keys(secrets)
    if not keys:
        raise BadSignature(_NO_KEYS)
    if not isinstance(header, str) or not header.isascii():
        raise BadSignature("the signature header is missing or not ASCII")
    if not header.startswith(prefix):
        raise BadSignature(f"the signature does not start with {prefix!r}")
    sent = header[len(prefix) :].lower().encode()
    ours = (hmac.digest(key, body, "sha256").hex().encode() for key in keys)
    if not any(hmac.compare_digest(digest, sent) for digest in ours):
        raise BadSignature("no signature matches")


def _usable_keys(secrets: Sequence[bytes]) -> list[bytes]:
    # One short key spoils them all: whoever guesses it can sign.
    keys = list(secrets or ())
    enough = all(isinstance(key, bytes) and len(key) >= MIN_KEY_BYTES for key in keys)
    return keys if enough else []


def _decode_secret(entry: str) -> bytes:
    # Nothing is guessed: 64 hex digits are base64 too, and would quietly become another key.
    if not entry.startswith("whsec_"):
        raise ValueError
    digits = entry.removeprefix("whsec_")
    return base64.b64decode(digits + "=" * (-len(digits) % 4), validate=True)


def _three_headers(headers: Mapping[str, str], prefix: str) -> list[str]:
    found: dict[str, list[str]] = {prefix + part: [] for part in ("id", "timestamp", "signature")}
    for key, value in headers.items():
        if (name := key.lower()) in found:
            found[name].append(value)
    for name, values in found.items():
        # Of two, we and the next reader of the headers might each take another one.
        if len(values) != 1 or not isinstance(values[0], str) or not values[0].isascii():
            raise BadSignature(f"{name} is missing, repeated or not ASCII")
    return [value for (value,) in found.values()]


def _v1(key: bytes, content: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.digest(key, content, "sha256"))


def _is_number(value: object) -> bool:
    """Tell whether this is a finite number that fits into a float; a bool is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300
