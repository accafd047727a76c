"""Password hashes from the standard library: scrypt (RFC 7914), salted, its cost stored too."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass


@dataclass(frozen=True)
class Scrypt:
    """How dear a guess is. The default takes 16 MiB and is one of those that OWASP recommends.

    Attributes:
        n: Work and memory, a power of two; memory is 128 * n * r bytes.
        r: Block size.
        p: Repetitions, one after the other.

    Raises:
        ValueError: `n` is no power of two over 1, or another number is not at least 1.

    """

    n: int = 2**14
    r: int = 8
    p: int = 5

    def __post_init__(self) -> None:
        for name in ("n", "r", "p"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.n < 2 or self.n & (self.n - 1):
            raise ValueError(f"n must be a power of two over 1, got {self.n!r}")

    def hash(self, password: str) -> str:
        """Return `scrypt$n$r$p$salt$key`, another text each time. Slow: not for the event loop."""
        salt = secrets.token_bytes(16)
        key = _key(password, salt, self.n, self.r, self.p)
        return f"scrypt${self.n}${self.r}${self.p}${salt.hex()}${key.hex()}"

    @staticmethod
    def verify(password: str, stored: str) -> bool:
        """Tell whether `stored` was made from `password`, at the cost it was made with. As slow."""
        _, n, r, p, salt, key = stored.split("$")
        found = _key(password, bytes.fromhex(salt), int(n), int(r), int(p))
        return hmac.compare_digest(found, bytes.fromhex(key))


def _key(password: str, salt: bytes, n: int, r: int, p: int) -> bytes:
    room = 256 * r * (n + p)  # in bytes: OpenSSL refuses to take more than 32 MiB unless told to
    return hashlib.scrypt(password.encode(), salt=salt, n=n, r=r, p=p, maxmem=room, dklen=32)
