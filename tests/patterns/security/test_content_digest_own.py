"""Proves docs/patterns/security/content-digest.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations


def test_my_upload_is_refused_when_a_byte_is_lost() -> None:
    from content_digest import digest_bytes, verify

    sent = b"the file as the browser read it"
    named = digest_bytes(sent).hex  # what crypto.subtle.digest("SHA-256", ...) gave
    assert verify(named, digest_bytes(sent))
    assert not verify(named, digest_bytes(sent[:-1]))


# --8<-- [end:own]
