"""Encrypt single values (AES-256-GCM, NIST SP 800-38D) so that a stolen database is unreadable.

A token is `v1.<kid>.<base64url of nonce, ciphertext and tag>`. It opens only in the context that it
was made for: another row or column is refused like a forgery.
"""

from __future__ import annotations

import base64
import hmac
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES, NONCE_BYTES = 32, 12
# With random nonces of 96 bits, a key is for 2**32 encryptions (SP 800-38D, 8.3).
MOST_ENCRYPTIONS = 2**32
_KID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_TOKEN = re.compile(r"v1\.([A-Za-z0-9_-]{1,32})\.([A-Za-z0-9_-]+)")
log = logging.getLogger("field_encryption")


class KeyringError(ValueError):
    """The keys are unusable: do not start. The message holds no key."""


class DecryptError(Exception):
    """The token cannot be opened here: changed, moved, or of an unknown key. It says not which."""

    def __init__(self) -> None:
        super().__init__("the value cannot be decrypted")


class Keyring:
    """The keys by their ids. The active one encrypts, all of them decrypt.

    Args:
        active: Id of the key to encrypt with.
        keys: Ids (letters, digits, `-` and `_`, at most 32) to keys of 32 random bytes.

    Raises:
        KeyringError: An id or a key is unusable, or the active one is not there.
    """

    def __init__(self, active: str, keys: Mapping[str, bytes]) -> None:
        for kid, key in keys.items():
            if not _KID.fullmatch(kid):
                raise KeyringError("a key id has other characters than letters, digits, - and _")
            check_key(key, f"key {kid}")
        if active not in keys:
            raise KeyringError(f"the active key {active!r} is not among the keys")
        if len(set(keys.values())) < len(keys):
            raise KeyringError("two ids have the same key")
        self.active = active
        self._keys = dict(keys)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> Keyring:
        """Read the file FIELD_KEYS_FILE (lines of `kid base64`) and FIELD_ACTIVE_KID.

        Raises:
            RuntimeError: A variable is not set, or is empty.
            KeyringError: The file is unusable.
        """
        for name in ("FIELD_KEYS_FILE", "FIELD_ACTIVE_KID"):
            if not environ.get(name):
                raise RuntimeError(f"{name} is not set, or is empty")
        try:
            lines = Path(environ["FIELD_KEYS_FILE"]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            raise KeyringError("FIELD_KEYS_FILE cannot be read as text") from None
        keys: dict[str, bytes] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            kid, _, text = line.strip().partition(" ")
            try:
                key = base64.b64decode(text.strip(), validate=True)
            except ValueError:  # and "from None", because the cause holds the line
                raise KeyringError(f"FIELD_KEYS_FILE: line {number} is not base64") from None
            if kid in keys:
                raise KeyringError(f"FIELD_KEYS_FILE: line {number} repeats a key id")
            keys[kid] = key
        return cls(environ["FIELD_ACTIVE_KID"], keys)

    def ciphers(self) -> dict[str, AESGCM]:
        """Return an AES-GCM object for each key."""
        return {kid: AESGCM(key) for kid, key in self._keys.items()}

    def __repr__(self) -> str:
        return f"Keyring(active={self.active!r}, {len(self._keys)} keys)"

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Refuse to be pickled: that would write the keys out."""
        raise TypeError("a keyring is not pickled: load it again where it is needed")


class FieldCipher:
    """Encrypts and decrypts values. For any number of threads; one a process.

    `active` is the id of the key that encrypts.

    Args:
        keyring: The keys.
        random: Makes random bytes.
        warn_after: Encryptions with one key in this process, after which a warning is logged.

    Raises:
        ValueError: `warn_after` is no whole number over 0.
    """

    def __init__(
        self,
        keyring: Keyring,
        *,
        random: Callable[[int], bytes] = os.urandom,
        warn_after: int = MOST_ENCRYPTIONS,
    ) -> None:
        if not isinstance(warn_after, int) or isinstance(warn_after, bool) or warn_after < 1:
            raise ValueError(f"warn_after must be a whole number over 0, got {warn_after!r}")
        self.active = keyring.active
        self._ciphers = keyring.ciphers()
        self._random = random
        self._warn_after = warn_after
        self._made = 0

    def encrypt(self, plain: bytes, *, context: str) -> str:
        """Return a token for `plain`, another one each time.

        Args:
            plain: Any bytes, also none.
            context: Where the token will stand, from `row_context`. It is authenticated and not
                stored: whoever decrypts has to know it.
        """
        self._made += 1
        if self._made == self._warn_after:
            log.warning("key %s: %d encryptions here; rotate it", self.active, self._made)
        nonce = self._random(NONCE_BYTES)
        sealed = self._ciphers[self.active].encrypt(nonce, plain, _bound_data(self.active, context))
        return f"v1.{self.active}.{_base64url(nonce + sealed)}"

    def decrypt(self, token: str, *, context: str) -> bytes:
        """Return what was encrypted for this context.

        Raises:
            DecryptError: For whatever reason.
        """
        kid, text = _parts_of(token)
        try:
            data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            if _base64url(data) != text:  # the last character can carry bits that mean nothing
                raise DecryptError
            bound = _bound_data(kid, context)
            return self._ciphers[kid].decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], bound)
        except (KeyError, ValueError, InvalidTag):
            pass
        raise DecryptError  # without a cause: it would tell the reasons apart

    def needs_rotation(self, token: str) -> bool:
        """Tell whether the token is of another key than the active one. Opens nothing.

        Raises:
            DecryptError: This is no token.
        """
        return _parts_of(token)[0] != self.active

    def rotate(self, token: str, *, context: str) -> str:
        """Return the value under the active key; the token itself if it is of that key.

        Write it back with compare-and-set (`... SET c = new WHERE id = ? AND c = old`), or a
        value that somebody else has written meanwhile is lost.

        Raises:
            DecryptError: As `decrypt`.
        """
        if not self.needs_rotation(token):
            return token
        return self.encrypt(self.decrypt(token, context=context), context=context)

    def __repr__(self) -> str:
        return f"FieldCipher(active={self.active!r}, {len(self._ciphers)} keys)"


def row_context(table: str, column: str, row: object) -> str:
    """Name a place in the database, so that no two places share a name."""
    return json.dumps([table, column, str(row)], ensure_ascii=False)


def blind_index(value: str, key: bytes, bits: int = 64) -> str:
    """Return a keyed hash to look a value up by: HMAC-SHA-256, truncated, in hex.

    It shows which rows are equal, and how often, to whoever reads the database. Fewer bits show
    less and find false matches, which you sort out after decryption.

    Args:
        value: Normalized by you: for addresses `value.strip().casefold()`.
        key: 32 random bytes, another key than any that encrypts, one for each column.
        bits: 16 to 256, a multiple of 8.

    Raises:
        KeyringError: The key is unusable.
    """
    check_key(key, "the index key")
    if not isinstance(bits, int) or bits not in range(16, 257, 8):
        raise ValueError(f"bits must be a multiple of 8 from 16 to 256, got {bits!r}")
    return hmac.digest(key, value.encode(), "sha256")[: bits // 8].hex()


def check_key(key: bytes, name: str) -> None:
    """Raise KeyringError unless `key` is 32 bytes that may be random."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise KeyringError(f"{name} is not {KEY_BYTES} bytes")
    # Of random keys, one in 10**13 is all printable, and none has so few different bytes.
    if len(set(key)) < 16 or all(32 <= byte < 127 for byte in key):
        raise KeyringError(f"{name} is not random: make it with os.urandom(32)")


def _bound_data(kid: str, context: str) -> bytes:
    if not context:
        raise ValueError("a context names where the value stands: it cannot be empty")
    return f"v1.{kid}.".encode() + context.encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _parts_of(token: str) -> tuple[str, str]:
    found = _TOKEN.fullmatch(token) if isinstance(token, str) else None
    if not found:
        raise DecryptError
    return found[1], found[2]
