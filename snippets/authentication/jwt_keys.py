"""Keys that sign and verify JWTs: Ed25519, RSA or HMAC, read from a JSON key set (RFC 7517)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

MIN_HMAC_BYTES = 32  # RFC 7518 section 3.2: as long as the hash's output
MIN_RSA_BITS = 2_048
_KEYS: dict[str, tuple[Any, Any]] = {
    "EdDSA": (ed25519.Ed25519PrivateKey, ed25519.Ed25519PublicKey),
    "RS256": (rsa.RSAPrivateKey, rsa.RSAPublicKey),
}
_KID = re.compile(r"[!-~]{1,100}")


@dataclass(frozen=True, slots=True)
class SigningKey:
    """One key by its id: `EdDSA` (Ed25519), `RS256`, or `HS256` with at least 32 bytes.

    `private` signs, `public` verifies. A key that only verifies has no private half; an HMAC key
    has no public one.
    """

    kid: str
    algorithm: str
    private: Any = field(repr=False, default=None)
    public: Any = field(repr=False, default=None)

    def __post_init__(self) -> None:
        if not isinstance(self.kid, str) or not _KID.fullmatch(self.kid):
            raise ValueError("a key's id must be 1 to 100 visible ASCII characters")
        if self.algorithm == "HS256":
            short = not isinstance(self.private, bytes) or len(self.private) < MIN_HMAC_BYTES
            if short or self.public is not None:
                raise ValueError(f"an HS256 key must be at least {MIN_HMAC_BYTES} bytes")
            return
        if self.algorithm not in _KEYS:
            raise ValueError("the algorithm must be EdDSA, RS256 or HS256")
        private, public = _KEYS[self.algorithm]
        if self.private is not None and not isinstance(self.private, private):
            raise ValueError(f"the private half is no {self.algorithm} key")
        if not isinstance(self.public, public):
            raise ValueError(f"the public half is no {self.algorithm} key")
        if self.private is not None and self.private.public_key() != self.public:
            raise ValueError("the two halves do not belong together")
        if isinstance(self.public, rsa.RSAPublicKey) and self.public.key_size < MIN_RSA_BITS:
            raise ValueError(f"an RS256 key must have at least {MIN_RSA_BITS} bits")

    @classmethod
    def generate(cls, kid: str) -> SigningKey:
        """Make an Ed25519 key."""
        private = ed25519.Ed25519PrivateKey.generate()
        return cls(kid, "EdDSA", private, private.public_key())

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> SigningKey:
        """Read a key with `kid` and `alg` from its JSON form, RFC 7517.

        Raises:
            ValueError: It is incomplete, weak, or of another kind.
        """
        try:
            kid, algorithm = jwk["kid"], jwk["alg"]
            key = jwt.PyJWK(dict(jwk), algorithm).key
        except (jwt.PyJWTError, KeyError, ValueError):  # and "from None": it may show the key
            raise ValueError("not a JSON Web Key with kid and alg") from None
        private = None if hasattr(key, "public_bytes") else key
        public = key.public_key() if hasattr(key, "public_key") else None
        return cls(kid, algorithm, private, key if private is None else public)


class KeyRing:
    """The keys that are believed, all of one algorithm, and which of them signs."""

    def __init__(self, active: str | None, keys: Sequence[SigningKey]) -> None:
        self._keys = {key.kid: key for key in keys}
        if not keys or len(self._keys) != len(keys):
            raise ValueError("a key ring needs at least one key, and each id once")
        if len({key.algorithm for key in keys}) != 1:
            raise ValueError("a key ring holds keys of one algorithm")
        if active is not None and (active not in self._keys or not self._keys[active].private):
            raise ValueError("the active key is not in the ring, or cannot sign")
        self.active = None if active is None else self._keys[active]

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> KeyRing:
        """Read the JSON key set in JWT_KEYS_FILE. JWT_ACTIVE_KID names the key that signs.

        Raises:
            RuntimeError: A variable is not set.
            ValueError: The file cannot be read, or is no usable key set.
        """
        names = ("JWT_KEYS_FILE", "JWT_ACTIVE_KID")
        for name in names:
            if not environ.get(name, "").strip():
                raise RuntimeError(f"{name} is not set, or is empty")
        file, active = (environ[name].strip() for name in names)
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))["keys"]
            return cls(active, [SigningKey.from_jwk(key) for key in found])
        except OSError as error:
            raise ValueError(f"JWT_KEYS_FILE cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError) as error:
            problem = error if type(error) is ValueError else "it is no JSON key set"
            raise ValueError(f"JWT_KEYS_FILE or JWT_ACTIVE_KID: {problem}") from None

    def get(self, kid: object) -> SigningKey | None:
        """Return the key of that id. It is looked up in memory, never fetched."""
        return self._keys.get(kid) if isinstance(kid, str) else None

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return what may be published (RFC 7517): public halves, and of HMAC keys nothing."""
        kinds: dict[str, Any] = {
            "EdDSA": jwt.algorithms.OKPAlgorithm,
            "RS256": jwt.algorithms.RSAAlgorithm,
        }
        return {
            "keys": [
                kinds[key.algorithm].to_jwk(key.public, as_dict=True)
                | {"kid": key.kid, "alg": key.algorithm, "use": "sig"}
                for key in self._keys.values()
                if key.algorithm in kinds
            ]
        }
