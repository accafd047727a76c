"""Proves docs/patterns/security/field-encryption.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import os

import pytest

from field_encryption import DecryptError, FieldCipher, Keyring, row_context


def test_my_values_open_in_their_own_row_only() -> None:
    cipher = FieldCipher(Keyring("test", {"test": os.urandom(32)}))
    ann, bob = (row_context("users", "token", row) for row in (1, 2))
    stored = cipher.encrypt(b"ann's token", context=ann)
    assert b"ann" not in stored.encode()
    assert cipher.decrypt(stored, context=ann) == b"ann's token"
    with pytest.raises(DecryptError):
        cipher.decrypt(stored, context=bob)


# --8<-- [end:own]
