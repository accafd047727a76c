"""Proves docs/patterns/authentication/jwt.md: a token is believed only if our key signed it, for us, for now."""

from __future__ import annotations

import base64
import builtins
import hmac
import json
import logging
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed448, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.depth import examples
from jwt_keys import KeyRing, SigningKey
from jwt_tokens import Claims, InvalidToken, Issuer, Verifier

NOW, ISSUER, AUDIENCE = 1_800_000_000, "https://auth.example", "https://api.example"
SHARED = bytes(range(32))
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ED = SigningKey.generate("ed-1")
HS = SigningKey("hs-1", "HS256", SHARED)
RS = SigningKey("rs-1", "RS256", RSA_KEY, RSA_KEY.public_key())
KEYS = (ED, HS, RS)
GOOD: dict[str, Any] = {
    "iss": ISSUER,
    "aud": AUDIENCE,
    "sub": "ada",
    "iat": NOW,
    "exp": NOW + 900,
    "jti": "id-1",
    "scope": "read write",
}
LEFT_OUT = object()
every_key = pytest.mark.parametrize("key", KEYS, ids=lambda key: key.algorithm)


def issuer(key: SigningKey = ED, **options: Any) -> Issuer:
    return Issuer(KeyRing(key.kid, [key]), ISSUER, AUDIENCE, **{"clock": lambda: NOW, **options})


def verifier(key: SigningKey = ED, now: float = NOW, **options: Any) -> Verifier:
    return Verifier(KeyRing(None, [key]), ISSUER, AUDIENCE, clock=lambda: now, **options)


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def by_hand(
    claims: dict[str, Any] | bytes, header: dict[str, Any] | bytes | None = None, secret: bytes = SHARED
) -> str:
    """Sign with HMAC whatever it is, as an attacker or a careless issuer would."""
    usual = {"alg": "HS256", "typ": "at+jwt", "kid": "hs-1"}
    head = header if isinstance(header, bytes) else usual | (header or {})
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (head, claims)]
    text = ".".join(map(b64, parts))
    return f"{text}.{b64(hmac.digest(secret, text.encode(), 'sha256'))}"


def claims_with(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in (GOOD | changes).items() if value is not LEFT_OUT}


def refusal(token: Any, key: SigningKey = HS, **options: Any) -> str:
    with pytest.raises(InvalidToken) as caught:
        verifier(key, **options).verify(token)
    assert str(caught.value) == caught.value.reason
    assert caught.value.__cause__ is None
    return caught.value.reason


# What is issued.


@every_key
def test_what_is_issued_is_verified_with_every_kind_of_key(key: SigningKey) -> None:
    token = issuer(key).issue("ada", scopes=["read", "write"], extra={"tenant": 7})
    got = verifier(key).verify(token)
    assert (got.subject, got.scopes, got.extra) == ("ada", frozenset({"read", "write"}), {"tenant": 7})
    assert (got.issued_at, got.expires_at) == (NOW, NOW + 900)
    assert len(got.id) == 22
    assert jwt.get_unverified_header(token) == {"alg": key.algorithm, "typ": "at+jwt", "kid": key.kid}


def test_a_token_holds_the_claims_of_rfc_9068_and_whole_seconds() -> None:
    made = issuer(HS, clock=lambda: NOW + 0.9, ttl=60, new_id=lambda: "id-7").issue("ada")
    payload = json.loads(base64.urlsafe_b64decode(made.split(".")[1] + "=="))
    assert payload == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "ada",
        "iat": NOW,
        "exp": NOW + 60,
        "jti": "id-7",
        "scope": "",
    }
    assert verifier(HS).verify(made) == Claims("ada", frozenset(), NOW, NOW + 60, "id-7", {})


def test_every_token_has_an_id_of_its_own() -> None:
    made = issuer(HS)
    assert len({verifier(HS).verify(made.issue("ada")).id for _ in range(100)}) == 100


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | text,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(sub=text, extra=st.dictionaries(text.filter(lambda name: name not in GOOD), json_values, max_size=3))
@settings(max_examples=examples(60), deadline=None, database=None)
def test_any_subject_and_any_extra_come_back_as_they_were(sub: str, extra: dict[str, Any]) -> None:
    extra.pop("nbf", None)
    got = verifier(HS).verify(issuer(HS).issue(sub, extra=extra))
    assert (got.subject, got.extra) == (sub, extra)


@pytest.mark.parametrize("name", ["exp", "iat", "nbf", "iss", "aud", "sub", "jti", "scope"])
def test_extra_cannot_overwrite_a_registered_claim(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^extra must not set {name}$"):
        issuer().issue("ada", extra={name: "x", "fine": 1})


@pytest.mark.parametrize("sub", [1, None, "", b"ada", True])
def test_a_subject_that_is_no_text_is_not_signed(sub: Any) -> None:
    with pytest.raises(ValueError, match=r"^sub must be a text that is not empty$"):
        issuer().issue(sub)


@pytest.mark.parametrize("scopes", ["read", ["read write"], [""], ['re"ad'], ["re\\ad"], ["é"], ["a\n"]])
def test_scopes_that_are_no_list_of_words_are_not_signed(scopes: Any) -> None:
    with pytest.raises(ValueError, match=r"^scopes must be a list of words$"):
        issuer().issue("ada", scopes=scopes)


def test_what_is_not_json_or_too_long_is_not_signed() -> None:
    with pytest.raises(ValueError, match=r"^extra holds a value that is not JSON$"):
        issuer().issue("ada", extra={"when": datetime.now(UTC)})
    with pytest.raises(ValueError, match="JSON"):
        issuer().issue("ada", extra={"x": float("nan")})
    with pytest.raises(ValueError, match=r"^the token would have more than 8192 characters$"):
        issuer().issue("ada", extra={"x": "x" * 6_200})


@pytest.mark.parametrize("options", [{"issuer": ""}, {"audience": ""}])
def test_an_issuer_or_verifier_without_a_name_stops_the_start(options: dict[str, Any]) -> None:
    named: dict[str, Any] = {"issuer": ISSUER, "audience": AUDIENCE}
    with pytest.raises(ValueError, match="must not be empty"):
        Issuer(KeyRing("ed-1", [ED]), **(named | options))
    with pytest.raises(ValueError, match="must not be empty"):
        Verifier(KeyRing(None, [ED]), **(named | options))
    with pytest.raises(ValueError, match=r"^the key ring has no active key, so it cannot sign$"):
        Issuer(KeyRing(None, [ED]), **named)
    assert Issuer(KeyRing("ed-1", [ED]), **named, ttl=1)


@pytest.mark.parametrize("value", [0, -1, 0.5, True, float("nan"), float("inf"), "900", None])
def test_a_life_that_is_no_whole_number_of_seconds_stops_the_start(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^ttl must be a whole number of seconds over 0, got {value!r}$"):
        Issuer(KeyRing("ed-1", [ED]), ISSUER, AUDIENCE, ttl=value)


@pytest.mark.parametrize("value", [-0.5, True, float("nan"), float("inf"), "30", None])
def test_a_leeway_that_is_no_number_of_seconds_stops_the_start(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^leeway must be a number of seconds from 0, got {value!r}$"):
        Verifier(KeyRing(None, [ED]), ISSUER, AUDIENCE, leeway=value)


# What is believed.


@pytest.mark.parametrize("name", ["exp", "iat", "iss", "aud", "sub", "jti"])
def test_a_token_that_lacks_a_required_claim_is_refused(name: str) -> None:
    assert refusal(by_hand(claims_with(**{name: LEFT_OUT}))) == f"the token has no {name}"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example"}, "the token is of another issuer"),
        ({"iss": [ISSUER]}, "the token is of another issuer"),
        ({"aud": "https://other.example"}, "the token is for another audience"),
        ({"aud": []}, "the token is for another audience"),
        ({"aud": {AUDIENCE: 1}}, "the token is for another audience"),
        ({"aud": AUDIENCE + "/more"}, "the token is for another audience"),
        ({"sub": 1}, "sub, jti or scope is no text"),
        ({"jti": 1}, "sub, jti or scope is no text"),
        ({"scope": ["read"]}, "sub, jti or scope is no text"),
        ({"sub": ""}, "sub or jti is empty"),
        ({"jti": ""}, "sub or jti is empty"),
        ({"exp": str(NOW + 900)}, "exp, iat or nbf is no number"),
        ({"exp": None}, "exp, iat or nbf is no number"),
        ({"iat": True}, "exp, iat or nbf is no number"),
        ({"nbf": "0"}, "exp, iat or nbf is no number"),
        ({"exp": float("nan")}, "the token has expired"),
        ({"iat": float("nan")}, "the token is not valid yet"),
        ({"nbf": float("nan")}, "the token is not valid yet"),
    ],
)
def test_a_token_with_a_wrong_claim_is_refused_though_genuinely_signed(changes: dict[str, Any], reason: str) -> None:
    assert refusal(by_hand(claims_with(**changes))) == reason


@pytest.mark.parametrize("changes", [{"aud": ["https://other.example", AUDIENCE]}, {"nbf": NOW}, {"scope": LEFT_OUT}])
def test_a_list_of_audiences_with_ours_in_it_passes(changes: dict[str, Any]) -> None:
    assert verifier(HS).verify(by_hand(claims_with(**changes))).subject == "ada"


@pytest.mark.parametrize(
    ("now", "reason"),
    [
        (NOW + 929, None),
        (NOW + 929.999, None),
        (NOW + 930, "the token has expired"),
        (NOW + 931, "the token has expired"),
        (NOW - 30, None),
        (NOW - 31, "the token is not valid yet"),
    ],
)
def test_a_token_is_believed_until_its_expiry_and_leeway_and_not_a_second_longer(
    now: float, reason: str | None
) -> None:
    token = issuer(HS).issue("ada")
    if reason:
        assert refusal(token, now=now) == reason
    else:
        assert verifier(HS, now=now).verify(token)
    later = by_hand(claims_with(iat=NOW - 1_000, nbf=NOW + 31))
    assert refusal(later) == "the token is not valid yet"
    assert verifier(HS, now=NOW + 1).verify(later)
    assert refusal(issuer(HS).issue("ada"), now=NOW + 900, leeway=0) == "the token has expired"


@pytest.mark.parametrize("typ", ["JWT", "jwt", None, "", "id+jwt", "at+jwt ", 5])
def test_a_token_of_another_type_is_refused(typ: Any) -> None:
    assert refusal(by_hand(GOOD, {"typ": typ})) == "the token is not an access token"


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
def test_the_type_is_compared_without_case_and_with_its_long_form(typ: str) -> None:
    assert verifier(HS).verify(by_hand(GOOD, {"typ": typ}))


@pytest.mark.parametrize(
    "kid", [None, "", "of nobody", "../../dev/null", "' OR 1=1", "hs-1\x00", ["hs-1"], 5, {"a": 1}]
)
def test_a_key_that_is_not_in_the_ring_is_refused_without_looking_anywhere(
    kid: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = by_hand(GOOD, {"kid": kid})

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("I/O")

    monkeypatch.setattr(builtins, "open", forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    assert refusal(token) == "the token names no key, or one that is not believed"


@pytest.mark.parametrize("algorithm", ["none", "None", "nOnE", "NONE", "", None])
@every_key
def test_a_token_that_says_it_needs_no_signature_is_refused(key: SigningKey, algorithm: Any) -> None:
    header = {"alg": algorithm, "typ": "at+jwt", "kid": key.kid}
    for signature in ("", b64(b"x" * 32)):
        token = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(GOOD).encode())}.{signature}"
        assert refusal(token, key).startswith("the token was refused: ")


def test_a_public_key_is_never_taken_for_a_shared_secret() -> None:
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    for key in (RS, ED):
        for encoding in (serialization.Encoding.PEM, serialization.Encoding.DER):
            known = key.public.public_bytes(encoding, spki)
            token = by_hand(GOOD, {"kid": key.kid}, known)
            assert refusal(token, key) == "the token was refused: InvalidAlgorithmError"


def test_a_key_that_the_token_brings_along_is_not_used() -> None:
    attacker = SigningKey.generate("ed-1")
    brought = KeyRing(None, [attacker]).jwks()["keys"][0]
    for header in (
        {"jwk": brought},
        {"jku": "https://evil.example/jwks"},
        {"x5u": "https://evil.example/cert"},
        {"x5c": ["MIIB"]},
    ):
        token = jwt.PyJWS().encode(
            json.dumps(GOOD).encode(), attacker.private, "EdDSA", {"typ": "at+jwt", "kid": "ed-1"} | header
        )
        assert refusal(token, ED) == "the token was refused: InvalidSignatureError"


def test_an_extension_that_must_be_understood_and_is_not_is_refused() -> None:
    assert (
        refusal(by_hand(GOOD, {"crit": ["exp-policy"], "exp-policy": 1})) == "the token was refused: InvalidTokenError"
    )
    assert refusal(by_hand(GOOD, {"crit": []})) == "the token was refused: InvalidTokenError"


@pytest.mark.parametrize("payload", [b"[1]", b'"ada"', b"5", b"null", b"", b"{", b"\xff", b"[" * 5_000])
def test_a_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    assert refusal(by_hand(payload)).startswith("the token was refused: ")


def test_a_name_that_occurs_twice_is_refused_since_readers_would_disagree() -> None:
    twice = json.dumps(GOOD)[:-1].encode() + b', "sub": "root"}'
    assert decoded(by_hand(twice), options={"verify_exp": False, "verify_iat": False})["sub"] == "root"
    assert refusal(by_hand(twice)) == "the token was refused: ValueError"
    assert refusal(by_hand(GOOD, b'{"alg":"HS256","typ":"at+jwt","kid":"x","kid":"hs-1"}')) == (
        "the token was refused: ValueError"
    )


@pytest.mark.parametrize(
    "token",
    ["", ".", "..", "...", "a.b.c", "é.é.é", "\ud800.a.b", None, 5, b"a.b.c", "[" * 8_000, "e30.e30.e30", "A" * 8_193],
)
def test_what_is_no_token_is_a_refusal_and_no_other_error(token: Any) -> None:
    assert refusal(token)


def test_a_token_over_8_kib_is_refused_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    token = by_hand(claims_with(filler="x" * 5_800))
    exactly = by_hand(claims_with(filler="x" * (5_800 + (8_192 - len(token)) * 3 // 4)))
    assert 8_180 < len(exactly) <= 8_192
    assert verifier(HS).verify(exactly)
    monkeypatch.setattr(base64, "urlsafe_b64decode", None)
    assert refusal(by_hand(claims_with(filler="x" * 6_200))) == "the token is no text, or too long"


@every_key
def test_one_flipped_bit_in_any_segment_is_a_refusal(key: SigningKey) -> None:
    segments = issuer(key).issue("ada").split(".")
    for number, segment in enumerate(segments):
        raw = bytearray(base64.urlsafe_b64decode(segment + "=="))
        for bit in range(0, len(raw) * 8, 5):
            raw[bit // 8] ^= 1 << bit % 8
            assert refusal(".".join([*segments[:number], b64(bytes(raw)), *segments[number + 1 :]]), key)
            raw[bit // 8] ^= 1 << bit % 8


# Keys, and how they change.


def test_the_new_key_signs_and_tokens_of_the_old_one_hold_until_it_is_dropped() -> None:
    old, new = SigningKey.generate("2026-10"), SigningKey.generate("2026-11")

    def issue(ring: KeyRing) -> str:
        return Issuer(ring, ISSUER, AUDIENCE, clock=lambda: NOW).issue("ada")

    def believed(ring: KeyRing, token: str) -> bool:
        try:
            Verifier(ring, ISSUER, AUDIENCE, clock=lambda: NOW).verify(token)
        except InvalidToken:
            return False
        return True

    only_old, pending = KeyRing("2026-10", [old]), KeyRing("2026-10", [old, new])
    changed, only_new = KeyRing("2026-11", [old, new]), KeyRing("2026-11", [new])
    first, second = issue(only_old), issue(changed)
    assert jwt.get_unverified_header(issue(pending))["kid"] == "2026-10"
    assert jwt.get_unverified_header(second)["kid"] == "2026-11"
    assert [believed(ring, first) for ring in (only_old, pending, changed, only_new)] == [True, True, True, False]
    # A verifier that is one step behind believes the new key only if it was published before it signed.
    assert [believed(ring, second) for ring in (only_old, pending, changed, only_new)] == [False, True, True, True]


@pytest.mark.parametrize(
    ("kid", "algorithm", "private", "public", "message"),
    [
        ("", "HS256", SHARED, None, "a key's id must be 1 to 100 visible ASCII characters"),
        ("a b", "HS256", SHARED, None, "a key's id must be 1 to 100 visible ASCII characters"),
        ("x" * 101, "HS256", SHARED, None, "a key's id must be 1 to 100 visible ASCII characters"),
        (5, "HS256", SHARED, None, "a key's id must be 1 to 100 visible ASCII characters"),
        ("k", "HS256", SHARED[:31], None, "an HS256 key must be at least 32 bytes"),
        ("k", "HS256", None, None, "an HS256 key must be at least 32 bytes"),
        ("k", "HS256", "x" * 32, None, "an HS256 key must be at least 32 bytes"),
        ("k", "HS256", SHARED, RS.public, "an HS256 key must be at least 32 bytes"),
        ("k", "none", None, None, "the algorithm must be EdDSA, RS256 or HS256"),
        ("k", "HS512", SHARED * 2, None, "the algorithm must be EdDSA, RS256 or HS256"),
        ("k", "EdDSA", RSA_KEY, ED.public, "the private half is no EdDSA key"),
        ("k", "EdDSA", ED.private, None, "the public half is no EdDSA key"),
        ("k", "EdDSA", None, ed448.Ed448PrivateKey.generate().public_key(), "the public half is no EdDSA key"),
        ("k", "RS256", None, ED.public, "the public half is no RS256 key"),
        ("k", "EdDSA", SigningKey.generate("k").private, ED.public, "the two halves do not belong together"),
    ],
)
def test_a_key_that_is_weak_or_of_another_kind_is_refused_when_it_is_made(
    kid: Any, algorithm: str, private: Any, public: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        SigningKey(kid, algorithm, private, public)


def test_an_rsa_key_of_1024_bits_is_refused_and_the_edges_are_accepted() -> None:
    weak = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    with pytest.raises(ValueError, match=r"^an RS256 key must have at least 2048 bits$"):
        SigningKey("k", "RS256", weak, weak.public_key())
    assert SigningKey("x" * 100, "HS256", SHARED)
    assert SigningKey("k", "RS256", None, RSA_KEY.public_key()).private is None


@pytest.mark.parametrize(
    ("active", "keys", "message"),
    [
        (None, [], "a key ring needs at least one key, and each id once"),
        ("ed-1", [ED, SigningKey.generate("ed-1")], "a key ring needs at least one key, and each id once"),
        ("ed-1", [ED, HS], "a key ring holds keys of one algorithm"),
        ("ed-2", [ED], "the active key is not in the ring, or cannot sign"),
        ("ed-1", [SigningKey("ed-1", "EdDSA", None, ED.public)], "the active key is not in the ring, or cannot sign"),
    ],
)
def test_a_ring_that_cannot_work_is_refused_when_it_is_made(active: str, keys: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        KeyRing(active, keys)


@every_key
def test_what_is_published_verifies_and_holds_nothing_private(key: SigningKey) -> None:
    published = KeyRing(key.kid, [key]).jwks()
    if key is HS:
        assert published == {"keys": []}
        return
    (entry,) = published["keys"]
    assert entry.keys() & {"d", "p", "q", "dp", "dq", "qi", "k"} == set()
    assert (entry["kid"], entry["alg"], entry["use"]) == (key.kid, key.algorithm, "sig")
    elsewhere = KeyRing(None, [SigningKey.from_jwk(json.loads(json.dumps(entry)))])
    got = Verifier(elsewhere, ISSUER, AUDIENCE, clock=lambda: NOW).verify(issuer(key).issue("ada"))
    assert got.subject == "ada"
    with pytest.raises(ValueError, match="cannot sign"):
        KeyRing(key.kid, [SigningKey.from_jwk(entry)])


def private_jwk(key: SigningKey) -> dict[str, Any]:
    if key is HS:
        return {"kty": "oct", "k": b64(SHARED), "kid": key.kid, "alg": "HS256"}
    kinds: dict[str, Any] = {"EdDSA": jwt.algorithms.OKPAlgorithm, "RS256": jwt.algorithms.RSAAlgorithm}
    found: dict[str, Any] = kinds[key.algorithm].to_jwk(key.private, as_dict=True)
    return found | {"kid": key.kid, "alg": key.algorithm}


@every_key
def test_a_key_file_is_read_and_its_active_key_signs(key: SigningKey, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [private_jwk(key)]}))
    ring = KeyRing.from_env({"JWT_KEYS_FILE": f"{file}\n", "JWT_ACTIVE_KID": f" {key.kid} "})
    assert ring.active
    assert ring.active.public == key.public
    token = Issuer(ring, ISSUER, AUDIENCE, clock=lambda: NOW).issue("ada")
    assert verifier(key).verify(token).subject == "ada"


@pytest.mark.parametrize("name", ["JWT_KEYS_FILE", "JWT_ACTIVE_KID"])
@pytest.mark.parametrize("value", [None, "", " "])
def test_a_missing_variable_stops_the_start_and_is_named(name: str, value: str | None) -> None:
    environ = {"JWT_KEYS_FILE": "keys.json", "JWT_ACTIVE_KID": "k"}
    environ = {k: v for k, v in environ.items() if k != name} | ({} if value is None else {name: value})
    with pytest.raises(RuntimeError, match=rf"^{name} is not set, or is empty$"):
        KeyRing.from_env(environ)


CANARY = "canary-" + "k" * 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "JWT_KEYS_FILE cannot be read: No such file or directory"),
        (CANARY, "JWT_KEYS_FILE or JWT_ACTIVE_KID: it is no JSON key set"),
        (f'["{CANARY}"]', "JWT_KEYS_FILE or JWT_ACTIVE_KID: it is no JSON key set"),
        (f'{{"{CANARY}": 1}}', "JWT_KEYS_FILE or JWT_ACTIVE_KID: it is no JSON key set"),
        (f'{{"keys": ["{CANARY}"]}}', "JWT_KEYS_FILE or JWT_ACTIVE_KID: it is no JSON key set"),
        (f'{{"keys": [{{"kid": "k", "k": "{CANARY}"}}]}}', "not a JSON Web Key with kid and alg"),
        (
            f'{{"keys": [{{"kid": "k", "alg": "EdDSA", "kty": "OKP", "crv": "Ed25519", "x": "{CANARY}"}}]}}',
            "not a JSON",
        ),
        (f'{{"keys": [{{"kid": "k", "alg": "{CANARY}", "kty": "oct", "k": "AAAA"}}]}}', "not a JSON Web Key"),
        (f'{{"keys": [{{"kid": "other", "alg": "HS256", "kty": "oct", "k": "{CANARY}"}}]}}', "the active key is not"),
        ('{"keys": [{"kid": "k", "alg": "HS256", "kty": "oct", "k": "Y2FuYXJ5"}]}', "an HS256 key must be at least"),
        ('{"keys": []}', "a key ring needs at least one key"),
    ],
)
def test_an_unusable_key_file_stops_the_start_without_showing_what_it_holds(
    content: str | None, message: str, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match="JWT_KEYS_FILE") as caught:
        KeyRing.from_env({"JWT_KEYS_FILE": str(file), "JWT_ACTIVE_KID": "k"})
    assert message in str(caught.value)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_no_key_and_no_token_is_shown_whatever_happens(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    canary = b"canary-" + b"k" * 40
    key = SigningKey("k", "HS256", canary)
    ring = KeyRing("k", [key])
    maker, checker = Issuer(ring, ISSUER, AUDIENCE), Verifier(ring, ISSUER, AUDIENCE)
    token = maker.issue("ada")
    shown = [repr(thing) for thing in (key, ring, maker, checker, checker.verify(token), ring.jwks(), ED, RS)]
    for wrong_token in (token[:-2], token + "x", token.replace(".", "", 1), "x" * 9_000, by_hand(GOOD, secret=canary)):
        with pytest.raises(InvalidToken) as caught:
            checker.verify(wrong_token)
        shown += [*traceback.format_exception(caught.value), repr(caught.value)]
    halves = {"kid": "k", "alg": "EdDSA", "kty": "OKP", "crv": "Ed25519", "d": b64(canary), "x": b64(canary)}
    for wrong_key in ({"kid": "k k", "alg": "HS256", "kty": "oct", "k": b64(canary)}, halves):
        with pytest.raises(ValueError, match=r"[Kk]ey|halves") as failed:
            SigningKey.from_jwk(wrong_key)
        shown += traceback.format_exception(failed.value)
    everything = "\n".join([*shown, caplog.text])
    for secret in (canary.decode(), b64(canary), token, *token.split(".")[1:]):
        assert secret not in everything


# The naive ways, with PyJWT itself.


def decoded(token: str, **options: Any) -> Any:
    return jwt.decode(token, SHARED, ["HS256"], **{"audience": AUDIENCE, "issuer": ISSUER, **options})


def test_naive_decode_believes_a_token_without_expiry_forever() -> None:
    token = by_hand(claims_with(exp=LEFT_OUT, iat=int(time.time())))
    assert decoded(token)["sub"] == "ada"
    assert refusal(token) == "the token has no exp"


def test_naive_except_invalid_token_error_lets_another_error_through() -> None:
    assert not issubclass(jwt.InvalidKeyError, jwt.InvalidTokenError)
    token = jwt.encode(GOOD, RSA_KEY, algorithm="RS256")
    with pytest.raises(jwt.InvalidKeyError):  # a key that was mangled on its way into the environment
        jwt.decode(token, "-----BEGIN PUBLIC KEY----- mangled", algorithms=["RS256"])
    assert issubclass(jwt.InvalidKeyError, jwt.PyJWTError)


def test_naive_short_key_only_warns_and_a_missing_one_fails_at_the_first_request() -> None:
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        guessable = jwt.encode(GOOD, "secret", algorithm="HS256")
    with warnings.catch_warnings(action="ignore"):
        assert jwt.decode(guessable, "secret", ["HS256"], audience=AUDIENCE, options={"verify_iat": False})
    with pytest.raises(TypeError, match="Expected a string or bytes value"):
        jwt.encode(GOOD, None, algorithm="HS256")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 32 bytes"):
        SigningKey("k", "HS256", b"secret")


def test_naive_utcnow_moves_the_expiry_by_the_hosts_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "EST5")
    time.tzset()
    try:
        utcnow = datetime.fromtimestamp(NOW, UTC).replace(tzinfo=None)  # what datetime.utcnow() returns
        assert utcnow.timestamp() + 1_800 - NOW == 19_800  # half an hour became five and a half
        # PyJWT takes a naive datetime for UTC, so a local one is born expired.
        local = datetime.fromtimestamp(NOW, UTC).astimezone().replace(tzinfo=None)
        payload = jwt.decode(jwt.encode({"exp": local}, SHARED, "HS256"), options={"verify_signature": False})
        assert payload["exp"] == NOW - 5 * 3_600
        token = issuer(HS, ttl=1_800).issue("ada")
        assert verifier(HS).verify(token).expires_at - NOW == 1_800
    finally:
        monkeypatch.undo()
        time.tzset()


def test_naive_encode_signs_a_number_as_subject_and_never_decodes_it() -> None:
    token = jwt.encode(claims_with(sub=1, iat=int(time.time())), SHARED, algorithm="HS256")
    with pytest.raises(jwt.exceptions.InvalidSubjectError):
        decoded(token)
    with pytest.raises(ValueError, match="sub must be a text"):
        issuer(HS).issue(1)  # type: ignore[arg-type]


def test_naive_decode_believes_an_expiry_that_is_a_text() -> None:
    token = by_hand(claims_with(exp=str(int(time.time()) + 100), iat=int(time.time())))
    assert isinstance(decoded(token)["exp"], str)
    assert refusal(token, now=time.time()) == "exp, iat or nbf is no number"


def test_naive_decode_takes_an_id_token_for_an_access_token() -> None:
    id_token = by_hand(claims_with(exp=int(time.time()) + 100, iat=int(time.time())), {"typ": "JWT"})
    assert decoded(id_token)["sub"] == "ada"
    assert refusal(id_token) == "the token is not an access token"
