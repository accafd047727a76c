"""Codes of an authenticator app: TOTP as in RFC 6238, with SHA-1, six digits and 30 seconds.

Those three are what the apps take: most ignore other settings in the address, and show wrong codes.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
import struct
from urllib.parse import quote

PERIOD = 30  # seconds that a code is shown
MIN_KEY_BYTES = 16  # RFC 4226, 4: R6

# \d would take Arabic digits too.
_CODE = re.compile(r"[0-9]{6}")


def new_secret() -> str:
    """Return a new shared secret: 160 random bits, as 32 characters of base32 (RFC 4226, 4)."""
    return base64.b32encode(secrets.token_bytes(20)).decode()


def code_at(secret: str, step: int, digits: int = 6) -> str:
    """Return the code of one time step: `step` is seconds since 1970, divided by 30 and cut.

    Raises:
        ValueError: The secret is no base32 of 128 bits or more, or `digits` is not 6, 7 or 8. The
            message does not hold the secret.
    """
    if not _is_one_of(digits, 6, 7, 8):
        raise ValueError(f"digits must be 6, 7 or 8, got {digits!r}")
    digest = hmac.digest(_key_bytes(secret), struct.pack(">Q", step), "sha1")
    offset = digest[-1] & 0xF
    number = struct.unpack_from(">I", digest, offset)[0] & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def match_step(secret: str, code: str, now: float, window: int = 1) -> int | None:
    """Return the time step that a code belongs to, None if it is of none that is allowed.

    Accept each step once: store the one you accepted, and refuse it and all before it afterwards
    (RFC 6238, 5.2). `SecondFactor` does.

    Args:
        secret: What `new_secret` gave.
        code: As the user typed it: six ASCII digits, spaces allowed between them.
        now: Seconds since 1970.
        window: How many steps a clock may be off, in either direction: 0, 1 or 2.

    Raises:
        ValueError: As for `code_at`, or the window is another.
    """
    if not _is_one_of(window, 0, 1, 2):  # each more is another code to guess
        raise ValueError(f"window must be 0, 1 or 2 steps, got {window!r}")
    typed = code.replace(" ", "") if isinstance(code, str) else ""
    given = typed if _CODE.fullmatch(typed) else ""
    step = int(now // PERIOD)
    found = None
    for candidate in range(max(0, step - window), step + window + 1):  # all, whichever matches
        if hmac.compare_digest(code_at(secret, candidate), given):
            found = candidate
    return found


def provisioning_uri(secret: str, account: str, issuer: str) -> str:
    """Return the `otpauth://` address that an app reads from a QR code. It holds the secret.

    Args:
        secret: What `new_secret` gave.
        account: Whom the code is for, as the app shows it: a name or e-mail address.
        issuer: What it is for: your product's name.

    Raises:
        ValueError: As for `code_at`; or account or issuer is empty, or has a colon or control
            character.
    """
    for name, text in (("account", account), ("issuer", issuer)):
        if not text.strip() or ":" in text or not text.isprintable():
            raise ValueError(f"{name} must be printable text without a colon")
    _key_bytes(secret)
    label, of = quote(account, safe=""), quote(issuer, safe="")
    parameters = f"secret={secret}&issuer={of}&algorithm=SHA1&digits=6&period={PERIOD}"
    return f"otpauth://totp/{of}:{label}?{parameters}"


def _is_one_of(value: object, *allowed: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in allowed


def _key_bytes(secret: str) -> bytes:
    try:
        key = base64.b32decode(secret)
    except (ValueError, TypeError):  # and "from None": the cause may hold the secret
        key = b""
    if len(key) < MIN_KEY_BYTES:
        raise ValueError("the TOTP secret is not base32 of 128 bits or more")
    return key
