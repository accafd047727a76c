"""Proves docs/patterns/authentication/oauth2-login.md: which ID tokens are believed, and what of them."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from id_token import Identity, LoginForged, identity, key_id, published_keys, same, verify
from servers.oidc import rsa_key

NOW, CLIENT, ISSUER, NONCE = 1_800_000_000, "our-client", "https://accounts.google.com", "n" * 43
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "aud": CLIENT,
    "sub": "1081",
    "iat": NOW,
    "exp": NOW + 300,
    "nonce": NONCE,
}
LEFT_OUT = object()


def claims(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (GOOD | changes).items() if value is not LEFT_OUT}


def signed(key: int = 1, /, **changes: Any) -> str:
    return jwt.encode(claims(**changes), rsa_key(key), algorithm="RS256", headers={"kid": "key-1"})


def by_hand(header: dict[str, Any], payload: bytes, signature: bytes = b"") -> str:
    parts = [json.dumps(header).encode(), payload, signature]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def check(token: str, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"client_id": CLIENT, "issuers": {ISSUER}, "nonce": NONCE, "now": NOW}
    return verify(token, rsa_key(1).public_key(), **(settings | options))


def refusal(token: str, **options: Any) -> str:
    with pytest.raises(LoginForged) as caught:
        check(token, **options)
    assert caught.value.__cause__ is None
    return str(caught.value)


def test_a_token_that_is_signed_and_ours_and_fresh_and_of_this_attempt_is_believed() -> None:
    assert check(signed()) == GOOD


@pytest.mark.parametrize("name", ["exp", "iat", "iss", "aud", "sub", "nonce"])
def test_a_token_that_lacks_a_claim_is_refused(name: str) -> None:
    assert refusal(signed(1, **{name: LEFT_OUT})) == "the ID token was refused: MissingRequiredClaimError"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://accounts.google.com.evil.example"}, "the ID token was refused: InvalidIssuerError"),
        ({"iss": "accounts.google.com"}, "the ID token was refused: InvalidIssuerError"),
        ({"aud": "another-client"}, "the ID token was refused: InvalidAudienceError"),
        ({"aud": []}, "the ID token was refused: MissingRequiredClaimError"),
        ({"aud": [5]}, "the ID token was refused: InvalidAudienceError"),
        ({"nonce": "m" * 43}, "the ID token's nonce belongs to another attempt"),
        ({"nonce": "é"}, "the ID token's nonce belongs to another attempt"),
        ({"nonce": 5}, "the ID token's nonce belongs to another attempt"),
        ({"sub": ""}, "the ID token names nobody"),
        ({"sub": 5}, "the ID token was refused: InvalidSubjectError"),
        ({"exp": str(NOW + 300)}, "the ID token's times are not numbers"),
        ({"exp": True}, "the ID token's times are not numbers"),
        ({"iat": str(NOW)}, "the ID token's times are not numbers"),
        ({"exp": float("nan")}, "the ID token has expired, or is not valid yet"),
        ({"iat": float("nan")}, "the ID token has expired, or is not valid yet"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused(changes: dict[str, Any], reason: str) -> None:
    assert refusal(signed(**changes)) == reason


def test_an_issuer_that_writes_its_name_in_two_ways_is_accepted_in_both() -> None:
    both = {ISSUER, "accounts.google.com"}
    for name in both:
        assert check(signed(iss=name), issuers=both)["iss"] == name


@pytest.mark.parametrize(
    ("aud", "azp", "fine"),
    [
        (CLIENT, LEFT_OUT, True),
        (CLIENT, CLIENT, True),
        (CLIENT, "another-client", False),
        ([CLIENT], LEFT_OUT, True),
        ([CLIENT, "another-client"], CLIENT, True),
        ([CLIENT, "another-client"], "another-client", False),
        ([CLIENT, "another-client"], LEFT_OUT, False),
        ([CLIENT, "another-client"], None, False),
    ],
)
def test_of_several_audiences_the_authorized_party_must_be_us(aud: Any, azp: Any, fine: bool) -> None:
    token = signed(aud=aud, azp=azp)
    if fine:
        assert check(token)["aud"] == aud
    else:
        assert refusal(token) == "the ID token was issued to another application"


@pytest.mark.parametrize(
    ("seconds", "fine"), [(0, True), (359.9, True), (360, False), (361, False), (-60, True), (-60.1, False)]
)
def test_a_token_is_believed_up_to_60_seconds_late_or_early(seconds: float, fine: bool) -> None:
    # It was made at NOW, for 300 seconds.
    if fine:
        assert check(signed(), now=NOW + seconds)
    else:
        assert refusal(signed(), now=NOW + seconds) == "the ID token has expired, or is not valid yet"


def test_a_token_of_another_key_or_algorithm_or_with_no_signature_is_refused() -> None:
    payload = json.dumps(GOOD).encode()
    public = rsa_key(1).public_key()
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    pem, der = (public.public_bytes(form, spki) for form in (serialization.Encoding.PEM, serialization.Encoding.DER))
    assert refusal(signed(2)) == "the ID token was refused: InvalidSignatureError"
    for name in ("none", "None", "nOnE"):
        assert refusal(by_hand({"alg": name, "kid": "key-1"}, payload)) == (
            "the ID token was refused: InvalidAlgorithmError"
        )
    import hmac

    for secret in (pem, der):  # the public key, taken for an HMAC secret
        text = by_hand({"alg": "HS256", "kid": "key-1"}, payload).rpartition(".")[0]
        mac = base64.urlsafe_b64encode(hmac.digest(secret, text.encode(), "sha256")).rstrip(b"=").decode()
        assert refusal(f"{text}.{mac}") == "the ID token was refused: InvalidAlgorithmError"
    assert refusal(jwt.encode(GOOD, rsa_key(1), algorithm="PS256")) == "the ID token was refused: InvalidAlgorithmError"
    own_key = {"jwk": json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(2).public_key()))}  # CVE-2026-27962
    smuggled = jwt.encode(GOOD, rsa_key(2), algorithm="RS256", headers=own_key)
    assert refusal(smuggled) == "the ID token was refused: InvalidSignatureError"


def test_one_flipped_bit_in_any_part_of_a_token_is_a_refusal() -> None:
    header, payload, signature = signed().split(".")
    for number, part in enumerate((header, payload, signature)):
        raw = bytearray(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        for at in range(0, len(raw), 7):
            raw[at] ^= 1
            changed = [header, payload, signature]
            changed[number] = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
            assert "refused" in refusal(".".join(changed))
            raw[at] ^= 1


@pytest.mark.parametrize(
    "token",
    ["", "a.b.c", "é.é.é", "..", "x" * 16_385, by_hand({"alg": "RS256", "kid": 5}, b"{}"), "[" * 9_000 + ".e30."],
)
def test_what_is_no_token_is_a_refusal_and_no_crash(token: str) -> None:
    with pytest.raises(LoginForged) as caught:
        key_id(token)
    assert "x" * 9 not in str(caught.value)


def test_a_deeply_nested_token_is_a_refusal_and_no_crash() -> None:
    deep = by_hand({"alg": "RS256", "kid": "key-1"}, b"[" * 5_000)
    assert refusal(deep)
    nested = base64.urlsafe_b64encode(b"[" * 11_000).decode()
    with pytest.raises(LoginForged):
        key_id(f"{nested}.e30.")


def test_the_key_is_looked_for_by_the_name_in_the_token() -> None:
    assert key_id(signed()) == "key-1"
    assert key_id(jwt.encode(GOOD, rsa_key(1), algorithm="RS256")) is None
    plain = by_hand({"alg": "RS256", "kid": "key-1"}, b"{}")
    for room, fine in ((16_384, True), (16_388, False)):  # base64 comes in fours
        token = plain + "A" * (room - len(plain))
        if fine:
            assert key_id(token) == "key-1"
        else:
            with pytest.raises(LoginForged, match=r"^the ID token is too long$"):
                key_id(token)


def test_only_published_rsa_keys_that_sign_are_kept_and_a_broken_one_spoils_nothing() -> None:
    good = jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key(1).public_key(), as_dict=True)
    point = jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
    edwards = jwt.algorithms.OKPAlgorithm.to_jwk(ed25519.Ed25519PrivateKey.generate().public_key(), as_dict=True)
    found = published_keys(
        [
            good | {"kid": "signs", "use": "sig"},
            good | {"kid": "unstated"},
            good | {"kid": "encrypts", "use": "enc"},
            good,  # without an id nothing can name it
            point | {"kid": "point"},
            edwards | {"kid": "edwards"},
            {"kty": "oct", "k": "c2VjcmV0", "kid": "symmetric"},
            {"kty": "RSA", "n": "@@", "e": "AQAB", "kid": "broken"},
            "no object",
        ]
    )
    assert set(found) == {"signs", "unstated"}
    assert all(isinstance(key, rsa.RSAPublicKey) for key in found.values())


def test_a_key_of_1024_bits_vouches_for_nothing() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = jwt.encode(GOOD, weak, algorithm="RS256")
    with pytest.raises(LoginForged, match="InvalidKeyError"):
        verify(token, weak.public_key(), client_id=CLIENT, issuers={ISSUER}, nonce=NONCE, now=NOW)


# Whom a token names.


@pytest.mark.parametrize(
    ("given", "email", "verified"),
    [
        ({"email": "ada@example.com", "email_verified": True}, "ada@example.com", True),
        ({"email": "ada@example.com", "email_verified": False}, None, False),
        ({"email": "ada@example.com", "email_verified": "true"}, None, False),
        ({"email": "ada@example.com", "email_verified": "false"}, None, False),
        ({"email": "ada@example.com", "email_verified": 1}, None, False),
        ({"email": "ada@example.com"}, None, False),
        ({"email": 5, "email_verified": True}, None, True),
        ({}, None, False),
    ],
)
def test_an_address_counts_only_when_it_is_verified_with_a_true(given: Any, email: str | None, verified: bool) -> None:
    assert identity(GOOD | given, ISSUER) == Identity(ISSUER, "1081", email, verified, None)


def test_naive_truth_of_a_text_makes_an_unverified_address_verified() -> None:
    sent = {"email": "victim@example.com", "email_verified": "false"}  # as some providers write it
    assert bool(sent["email_verified"]) is True
    assert identity(GOOD | sent, ISSUER).email is None


def test_the_account_key_holds_the_configured_issuer_however_the_token_writes_it() -> None:
    named = identity(claims(iss="accounts.google.com", name="Ada"), ISSUER)
    assert (named.issuer, named.subject, named.name) == (ISSUER, "1081", "Ada")
    assert identity(claims(name=5), ISSUER).name is None


def test_naive_pyjwt_decode_checks_neither_nonce_nor_authorized_party() -> None:
    stolen = signed(nonce="of another attempt")
    forwarded = signed(aud=[CLIENT, "another-client"], azp="another-client")
    settings: dict[str, Any] = {"algorithms": ["RS256"], "audience": CLIENT, "issuer": ISSUER}
    for token in (stolen, forwarded):
        assert jwt.decode(
            token, rsa_key(1).public_key(), options={"verify_exp": False, "verify_iat": False}, **settings
        )
        assert refusal(token).startswith("the ID token")


def test_text_is_compared_whatever_it_holds() -> None:
    assert same("é", "é")
    assert not same("é", "e")
    assert same("\ud800", "?")  # no text at all; and our own values never hold a question mark
