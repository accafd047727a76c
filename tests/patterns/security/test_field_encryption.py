"""Proves docs/patterns/security/field-encryption.md: what is encrypted opens in its place and nowhere else."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import math
import os
import pickle
import re
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from field_encryption import (
    MOST_ENCRYPTIONS,
    DecryptError,
    FieldCipher,
    Keyring,
    KeyringError,
    blind_index,
    row_context,
)
from harness.depth import examples

OLD, NEW, INDEX = (os.urandom(32) for _ in range(3))
HERE = row_context("users", "token", 7)
CANARY = "canary-" + "pl41n" * 3
CIPHER = FieldCipher(Keyring("k1", {"k1": OLD}))
QUICK = settings(max_examples=examples(80), deadline=None, database=None)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def fails(token: Any, context: str = HERE, cipher: FieldCipher = CIPHER) -> None:
    with pytest.raises(DecryptError, match=r"^the value cannot be decrypted$") as caught:
        cipher.decrypt(token, context=context)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# Tokens.


@given(st.binary(max_size=200), st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
@QUICK
def test_what_was_encrypted_comes_back_in_its_context(plain: bytes, context: str) -> None:
    token = CIPHER.encrypt(plain, context=context)
    assert CIPHER.decrypt(token, context=context) == plain
    fails(token, context + "x")


def test_a_token_has_the_documented_form_and_is_plain_aes_gcm() -> None:
    nonce = bytes(range(12))
    token = FieldCipher(Keyring("k-1_a", {"k-1_a": OLD}), random=lambda size: nonce[:size]).encrypt(b"abc", context="c")
    found = re.fullmatch(r"v1\.k-1_a\.([A-Za-z0-9_-]{42})", token)
    assert found
    data = base64.urlsafe_b64decode(found[1] + "==")
    assert data[:12] == nonce
    assert AESGCM(OLD).decrypt(nonce, data[12:], b"v1.k-1_a.c") == b"abc"


def test_empty_and_large_values_come_back() -> None:
    for plain in (b"", os.urandom(1_048_576)):
        assert CIPHER.decrypt(CIPHER.encrypt(plain, context=HERE), context=HERE) == plain


def test_a_hundred_thousand_encryptions_repeat_no_nonce() -> None:
    nonces = {CIPHER.encrypt(b"", context="c")[6:22] for _ in range(100_000)}
    assert len(nonces) == 100_000


def test_every_changed_character_and_every_cut_is_refused() -> None:
    token = CIPHER.encrypt(b"pay 10", context=HERE)
    for place, old in enumerate(token):
        for new in ("A", "B", "_", "=", ".", "é"):
            if new != old:
                fails(token[:place] + new + token[place + 1 :])
    for length in range(len(token)):
        fails(token[:length])
        fails(token[length + 1 :])
    for changed in (token + "A", token + "=", token + "\n", " " + token, token.upper(), token * 2):
        fails(changed)


def test_every_flipped_bit_is_refused() -> None:
    head, _, text = CIPHER.encrypt(b"pay 10", context=HERE).rpartition(".")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    for bit in range(len(data) * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        fails(f"{head}.{base64.urlsafe_b64encode(flipped).decode().rstrip('=')}")


def test_bits_of_the_last_character_that_mean_nothing_are_refused_too() -> None:
    token = CIPHER.encrypt(b"ab", context=HERE)  # 30 bytes: no spare bits
    spare = CIPHER.encrypt(b"abc", context=HERE)  # 31 bytes: four spare bits
    assert CIPHER.decrypt(token, context=HERE) == b"ab"
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    twin = spare[:-1] + alphabet[alphabet.index(spare[-1]) + 1]
    padded = [base64.urlsafe_b64decode(t.rpartition(".")[2] + "==") for t in (spare, twin)]
    assert padded[0] == padded[1]  # a lenient reader sees no difference
    fails(twin)


@pytest.mark.parametrize(
    "token", [None, 7, b"v1.k1.AAAA", "", "v1", "v1..", "v1.k1.", "v2.k1.AAAA", "v1.k1.AAAA", "v1.k 1.AA"]
)
def test_what_is_no_token_is_refused(token: Any) -> None:
    fails(token)
    if not isinstance(token, str) or not re.fullmatch(r"v1\.k1\.A+", token):
        with pytest.raises(DecryptError):
            CIPHER.needs_rotation(token)


@given(st.text(max_size=40).map(lambda t: f"v1.k1.{t}") | st.text(max_size=40))
@QUICK
def test_whatever_stands_in_the_column_the_outcome_is_a_decrypt_error(token: str) -> None:
    fails(token)


def test_another_or_an_unknown_key_is_refused_in_the_same_words() -> None:
    token = CIPHER.encrypt(b"x", context=HERE)
    fails(token, cipher=FieldCipher(Keyring("k1", {"k1": NEW})))
    fails(token, cipher=FieldCipher(Keyring("k2", {"k2": NEW})))
    both = FieldCipher(Keyring("k2", {"k2": NEW, "k1": OLD}))
    fails(token.replace("v1.k1.", "v1.k2."), cipher=both)
    assert both.decrypt(token, context=HERE) == b"x"
    # The id is authenticated too: the same key under another name opens nothing.
    fails(token.replace("v1.k1.", "v1.kx."), cipher=FieldCipher(Keyring("kx", {"kx": OLD})))


# Contexts.


def test_a_value_that_is_moved_to_another_row_or_column_is_refused() -> None:
    token = CIPHER.encrypt(b"x", context=HERE)
    for table, column, row in (("users", "token", 8), ("users", "note", 7), ("orders", "token", 7)):
        fails(token, row_context(table, column, row))


def test_no_two_places_share_a_context() -> None:
    assert row_context("users", "token", 7) == '["users", "token", "7"]' == HERE
    assert row_context("a", "b,c", "d") != row_context("a,b", "c", "d")
    assert row_context('a", "b', "c", 1) != row_context("a", 'b", "c', 1)
    with pytest.raises(ValueError, match=r"^a context names where the value stands"):
        CIPHER.encrypt(b"x", context="")
    fails(CIPHER.encrypt(b"x", context=HERE), "")
    fails(CIPHER.encrypt(b"x", context=HERE), "\ud800")


def test_naive_fernet_and_gcm_without_context_decrypt_swapped_rows() -> None:
    fernet, gcm = Fernet(b64(OLD).encode()), AESGCM(OLD)
    rows = {"ann": fernet.encrypt(b"ann's card"), "bob": fernet.encrypt(b"bob's card")}
    rows["ann"], rows["bob"] = rows["bob"], rows["ann"]
    assert fernet.decrypt(rows["ann"]) == b"bob's card"  # Ann pays with Bob's card
    nonce = os.urandom(12)
    assert gcm.decrypt(nonce, gcm.encrypt(nonce, b"bob's card", None), None) == b"bob's card"
    places = {name: row_context("users", "card", name) for name in rows}
    tokens = {name: CIPHER.encrypt(b"card", context=place) for name, place in places.items()}
    fails(tokens["bob"], places["ann"])


# Keys.


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (bytes(range(31)), "is not 32 bytes"),
        (bytes(range(33)), "is not 32 bytes"),
        (b"", "is not 32 bytes"),
        ("k" * 32, "is not 32 bytes"),
        (bytes(32), "is not random"),
        (b"\xff" * 32, "is not random"),
        (b"\x01\xfe" * 16, "is not random"),
        (bytes(range(15)) * 2 + b"\x00\x01", "is not random"),
        (b"correct horse battery staple 123", "is not random"),
        (b64(bytes(range(24))).encode(), "is not random"),
        (b"password".ljust(32), "is not random"),
        (bytes(range(32, 64)), "is not random"),
        (bytes(range(95, 127)), "is not random"),
    ],
)
def test_a_key_that_is_not_32_random_bytes_is_refused_without_being_shown(key: Any, why: str) -> None:
    for keys in ({"k1": key}, {"k1": OLD, "k0": key}):
        with pytest.raises(KeyringError, match=rf"^key k[01] {why}") as caught:
            Keyring("k1", keys)
        assert repr(key)[2:-1] == "" or repr(key)[2:-1] not in str(caught.value)
    with pytest.raises(KeyringError, match=rf"^the index key {why}"):
        blind_index("x", key)


def test_keys_that_are_random_are_accepted() -> None:
    for _ in range(1_000):
        Keyring("k", {"k": os.urandom(32)})
    for key in (bytes(range(31, 63)), bytes(range(96, 128)), bytes(range(16)) * 2):
        assert repr(Keyring("k", {"k": key})) == "Keyring(active='k', 1 keys)"


def test_naive_key_of_a_padded_password_is_guessed_from_a_list() -> None:
    token = AESGCM(b"hunter2".ljust(32)).encrypt(bytes(12), b"secret", None)
    opened = []
    for guess in ("123456", "password", "hunter2"):
        with contextlib.suppress(InvalidTag):
            opened.append(AESGCM(guess.encode().ljust(32)).decrypt(bytes(12), token, None))
    assert opened == [b"secret"]
    with pytest.raises(KeyringError, match="is not random"):
        Keyring("k1", {"k1": b"hunter2".ljust(32)})


@pytest.mark.parametrize("kid", ["", "a b", "a.b", "é", "a\n", "k" * 33])
def test_ids_are_plain_and_keys_are_there_once(kid: str) -> None:
    with pytest.raises(KeyringError, match=r"^a key id has other characters"):
        Keyring("k1", {"k1": OLD, kid: NEW})
    with pytest.raises(KeyringError, match=r"^the active key 'k2' is not among the keys$"):
        Keyring("k2", {"k1": OLD})
    with pytest.raises(KeyringError, match=r"^two ids have the same key$"):
        Keyring("k1", {"k1": OLD, "k2": OLD})
    assert Keyring("k" * 32, {"k" * 32: OLD}).active == "k" * 32


def keyring_file(tmp_path: Path, text: str | bytes) -> dict[str, str]:
    path = tmp_path / "keys"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return {"FIELD_KEYS_FILE": str(path), "FIELD_ACTIVE_KID": "k2"}


def test_the_keys_are_read_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env = keyring_file(tmp_path, f"# newest last\nk1 {b64(OLD)}\n\n  k2   {b64(NEW)}  \n")
    ring = Keyring.from_env(env)
    token = CIPHER.encrypt(b"x", context=HERE)
    assert FieldCipher(ring).decrypt(token, context=HERE) == b"x"
    assert FieldCipher(ring).encrypt(b"x", context=HERE).startswith("v1.k2.")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert Keyring.from_env().active == "k2"


def test_a_file_that_is_wrong_stops_the_start_and_shows_no_key(tmp_path: Path) -> None:
    bad = b64(OLD)[:-4] + "*" * 4
    cases: list[tuple[str | bytes, str]] = [
        (f"k1 {b64(OLD)}\nk2 {bad}", "FIELD_KEYS_FILE: line 2 is not base64"),
        (f"k1 {b64(OLD)}\nk2 {b64(OLD)[:-1]}", "FIELD_KEYS_FILE: line 2 is not base64"),
        (f"k2 {b64(OLD)}\nk2 {b64(NEW)}", "FIELD_KEYS_FILE: line 2 repeats a key id"),
        (f"k2 {b64(OLD)}\nk1 {b64(OLD)}", "two ids have the same key"),
        (f"k1 {b64(OLD)}", "the active key 'k2' is not among the keys"),
        (f"{b64(OLD)}", "a key id has other characters than letters, digits, - and _"),
        ("k2", "key k2 is not 32 bytes"),
        ("", "the active key 'k2' is not among the keys"),
        (b"\xff", "FIELD_KEYS_FILE cannot be read as text"),
    ]
    for text, message in cases:
        with pytest.raises(KeyringError) as caught:
            Keyring.from_env(keyring_file(tmp_path, text))
        assert str(caught.value) == message
        shown = "".join(traceback.format_exception(caught.value))
        assert b64(OLD)[:20] not in shown
    env = keyring_file(tmp_path, f"k2 {b64(NEW)}")
    for name in env:
        for value in ({}, {name: ""}):
            without = {n: v for n, v in env.items() if n != name} | value
            with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
                Keyring.from_env(without)
    with pytest.raises(KeyringError, match=r"^FIELD_KEYS_FILE cannot be read as text$"):
        Keyring.from_env(env | {"FIELD_KEYS_FILE": str(tmp_path / "nowhere")})


def test_neither_key_nor_plain_text_is_shown_by_any_object_or_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    key = os.urandom(32)
    ring = Keyring("k1", {"k1": key})
    cipher = FieldCipher(ring, warn_after=1)
    token = cipher.encrypt(CANARY.encode(), context=HERE)
    said = [repr(ring), str(ring), repr(cipher), str(cipher), token, repr(cipher.__dict__), repr(ring.ciphers())]
    for wrong in (token[:-1], token + "AA", "v1.k9.AAAA", "x"):
        with pytest.raises(DecryptError) as caught:
            cipher.decrypt(wrong, context=HERE)
        said += [str(caught.value), repr(caught.value), *traceback.format_exception(caught.value)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for holder in (ring, cipher):
            with pytest.raises(TypeError):
                pickle.dumps(holder, protocol)
    text = "".join(said) + caplog.text
    assert "1 encryptions here; rotate it" in text
    for secret in (CANARY, repr(key)[2:-1], key.hex(), b64(key)):
        assert secret not in text


# Nonces and counts.


def test_naive_fixed_nonce_gives_away_the_difference_of_two_values() -> None:
    def naive(plain: bytes) -> bytes:
        return AESGCM(OLD).encrypt(bytes(12), plain, None)[:-16]

    assert naive(b"equal") == naive(b"equal")
    one, two = naive(b"my secret value"), naive(b"a known old one")
    xor = bytes(a ^ b for a, b in zip(one, two, strict=True))
    assert bytes(a ^ b for a, b in zip(xor, b"a known old one", strict=True)) == b"my secret value"
    tokens = Counter(CIPHER.encrypt(b"equal", context=HERE) for _ in range(100))
    assert max(tokens.values()) == 1


def test_a_warning_comes_once_when_a_key_has_been_used_too_often(caplog: pytest.LogCaptureFixture) -> None:
    cipher = FieldCipher(Keyring("k1", {"k1": OLD}), warn_after=3)
    for count in range(6):
        assert len(caplog.records) == (count > 2)
        cipher.encrypt(b"", context="c")
    assert caplog.messages == ["key k1: 3 encryptions here; rotate it"]
    assert MOST_ENCRYPTIONS == 4_294_967_296
    assert FieldCipher(Keyring("k1", {"k1": OLD}))._warn_after == MOST_ENCRYPTIONS
    wrong: Any
    for wrong in (0, -1, 1.5, math.nan, True, "1"):
        with pytest.raises(ValueError, match=rf"^warn_after must be a whole number over 0, got {wrong!r}$"):
            FieldCipher(Keyring("k1", {"k1": OLD}), warn_after=wrong)


def test_naive_fernet_tokens_show_when_they_were_made() -> None:
    token = Fernet(b64(OLD).encode()).encrypt_at_time(b"x", 1_700_000_000)
    assert int.from_bytes(base64.urlsafe_b64decode(token)[1:9]) == 1_700_000_000  # no key needed


# Rotation of single values.


def test_a_new_key_writes_and_the_old_one_still_reads_until_it_goes() -> None:
    token = CIPHER.encrypt(b"x", context=HERE)
    both = FieldCipher(Keyring("k2", {"k1": OLD, "k2": NEW}))
    assert both.needs_rotation(token)
    fresh = both.rotate(token, context=HERE)
    assert fresh.startswith("v1.k2.")
    assert not both.needs_rotation(fresh)
    assert both.rotate(fresh, context=HERE) is fresh
    with pytest.raises(DecryptError):
        both.rotate(token, context="elsewhere")
    assert FieldCipher(Keyring("k2", {"k2": NEW})).decrypt(fresh, context=HERE) == b"x"


def test_naive_dropping_of_the_old_key_loses_what_was_not_rotated() -> None:
    token = CIPHER.encrypt(b"x", context=HERE)
    fails(token, cipher=FieldCipher(Keyring("k2", {"k2": NEW})))
    multi = MultiFernet([Fernet(b64(NEW).encode())])  # no scheme can bring it back
    with pytest.raises(InvalidToken):
        multi.decrypt(Fernet(b64(OLD).encode()).encrypt(b"x"))


# Blind index.


def test_a_blind_index_is_a_truncated_hmac_under_its_own_key() -> None:
    key = bytes(range(32))
    expected = hashlib.new("sha256")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in key.ljust(64, b"\0")) + b"ann@example.com").digest()
    expected.update(bytes(b ^ 0x5C for b in key.ljust(64, b"\0")) + inner)  # HMAC by the book
    assert blind_index("ann@example.com", key) == expected.hexdigest()[:16]
    assert blind_index("ann@example.com", key) == blind_index("ann@example.com", key)
    assert len(blind_index("ann@example.com", key)) == 16
    assert len(blind_index("ann@example.com", key, bits=256)) == 64
    assert len(blind_index("ann@example.com", key, 16)) == 4
    assert blind_index("ann@example.com", key, 256).startswith(blind_index("ann@example.com", key))
    assert blind_index("ann@example.com", key) != blind_index("ann@example.com", INDEX)
    assert blind_index("ann@example.com", key) != blind_index("bob@example.com", key)
    wrong: Any
    for wrong in (0, 8, 12, 65, 264, 64.0, math.nan, True):
        with pytest.raises(ValueError, match=rf"^bits must be a multiple of 8 from 16 to 256, got {wrong!r}$"):
            blind_index("x", key, wrong)


def test_naive_deterministic_encryption_shows_equality_of_everything_it_holds() -> None:
    def naive(plain: bytes) -> bytes:
        return AESGCM(OLD).encrypt(bytes(12), plain, None)

    assert naive(b"HIV positive") == naive(b"HIV positive")
    rows = [(CIPHER.encrypt(b"x", context=f"t.c.{n}"), blind_index("x", INDEX)) for n in range(10)]
    assert len({token for token, _ in rows}) == 10  # the cipher text never repeats
    assert len({index for _, index in rows}) == 1  # and this is what the index gives away
