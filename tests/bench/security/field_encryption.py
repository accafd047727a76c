"""Encrypt and decrypt: this module against Fernet, at 100 bytes and 10 KB."""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.fernet import Fernet, MultiFernet

from bench.kit import Table, compare
from field_encryption import FieldCipher, Keyring, row_context


def _subjects(size: int) -> dict[str, Callable[[], object]]:
    plain, place = os.urandom(size), row_context("users", "token", 7)
    cipher = FieldCipher(Keyring("k1", {"k1": os.urandom(32)}))
    fernet = Fernet(Fernet.generate_key())
    multi = MultiFernet([Fernet(Fernet.generate_key()), fernet])
    old = fernet.encrypt(plain)
    return {
        "this module": lambda: cipher.decrypt(cipher.encrypt(plain, context=place), context=place),
        "Fernet": lambda: fernet.decrypt(fernet.encrypt(plain)),
        "MultiFernet, a token of the second key": lambda: (multi.encrypt(plain), multi.decrypt(old)),
    }


def tables() -> list[Table]:
    """Time one value there and back."""
    measured = [compare(_subjects(size), calls=1_000, rounds=9) for size in (100, 10_240)]
    rows = [
        [name, *(f"{1 / s[name]:,.0f} /s ({s['this module'] / s[name]:.2f} ×)" for s in measured)]
        for name in measured[0]
    ]
    return [
        Table(
            "fernet",
            ("", "100 bytes", "10 KB"),
            rows,
            note="Values encrypted and decrypted in a second on one core; in brackets, as a multiple of this module's.",
        )
    ]
