"""Checks a second: parse and check of a random key against itsdangerous' unsign of a signed token."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from itsdangerous import BadSignature, TimestampSigner

from api_keys import InvalidApiKey, check, issue, parse
from bench.kit import Table, compare, version


def _subjects(*, forged: bool) -> dict[str, Callable[[], object]]:
    issued = issue("ada", {"read"}, brand="acme", expires_at=time.time() + 3_600)
    other = issue("ada", {"read"}, brand="acme").plaintext
    signer = TimestampSigner(os.urandom(32))
    signed = signer.sign("ada:read").decode()
    text, token = issued.plaintext, signed
    if forged:
        text, token = other, TimestampSigner(os.urandom(32)).sign("ada:read").decode()

    def ours() -> bool:
        try:
            parse(text)
            check(issued.record, text, time.time())
        except InvalidApiKey:
            return False
        return True

    def theirs() -> bool:
        try:
            signer.unsign(token, max_age=3_600)
        except BadSignature:
            return False
        return True

    if (ours(), theirs()) != (not forged, not forged):
        raise RuntimeError("the two do not agree")
    return {"this module, without the look-up": ours, version("itsdangerous") + ", TimestampSigner": theirs}


def tables() -> list[Table]:
    """Measure good tokens, and forged ones that are well formed."""
    measured = [compare(_subjects(forged=forged), calls=4_000, rounds=9) for forged in (False, True)]
    base = next(iter(measured[0]))
    rows = [
        [name, *(f"{1 / seconds[name]:,.0f} /s ({seconds[base] / seconds[name]:.2f} ×)" for seconds in measured)]
        for name in measured[0]
    ]
    return [
        Table(
            name="check",
            columns=("", "good", "forged"),
            rows=rows,
            note="Checks a second on one core; in brackets, as a multiple of this module's. Ours parses, computes the "
            "CRC-32 and compares a SHA-256; the record is at hand. The signer verifies an HMAC-SHA1 and the age, and "
            "needs no record.",
        )
    ]
