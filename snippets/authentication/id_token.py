"""Check an ID token as OpenID Connect Core 1.0 section 3.1.3.7 asks. It fetches nothing."""

from __future__ import annotations

import hmac
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jwt

LEEWAY_SECONDS = 60  # between the provider's clock and ours
MAX_CHARACTERS = 16_384


class LoginForged(Exception):
    """The answer does not belong to an attempt of this browser, or its token is not for us."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who signed in. The key of an account is (issuer, subject): an address can change hands.

    `email` is None unless the provider states, as a boolean, that it is verified.
    """

    issuer: str
    subject: str
    email: str | None
    email_verified: bool
    name: str | None


def same(sent: str, kept: str) -> bool:
    """Compare in constant time. As bytes, since `compare_digest` throws on "é"."""
    return hmac.compare_digest(sent.encode(errors="replace"), kept.encode(errors="replace"))


def published_keys(found: Sequence[Any]) -> dict[str, Any]:
    """Return the RSA keys of a key set (RFC 7517) by their id. Others are skipped."""
    keys = {}
    for entry in found:
        if isinstance(entry, dict) and entry.get("use", "sig") == "sig":
            try:
                keys[str(entry["kid"])] = jwt.PyJWK(entry, "RS256").key
            except (jwt.PyJWTError, KeyError):
                continue  # of another kind, or broken: the others still count
    return keys


def key_id(token: str) -> str | None:
    """Return the id of the key that a token says it is signed with: which one to look for.

    Raises:
        LoginForged: It is no token.
    """
    if len(token) > MAX_CHARACTERS:
        raise LoginForged("the ID token is too long")
    try:
        found = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, RecursionError) as error:
        raise LoginForged(f"no ID token: {type(error).__name__}") from None
    return str(found) if found else None


def verify(
    token: str, key: Any, *, client_id: str, issuers: Container[str], nonce: str, now: float
) -> dict[str, Any]:
    """Return the claims of a token that is signed, for us, fresh, and of this very attempt.

    Args:
        token: The ID token.
        key: The provider's public RSA key.
        client_id: What the provider calls this application: the token's audience.
        issuers: What `iss` may be.
        nonce: What this attempt sent.
        now: Seconds since 1970.

    Raises:
        LoginForged: Any of that does not hold.
    """
    # Which algorithm is ours to say, not the token's. Times are compared below, with our clock.
    options: jwt.types.Options = {
        "require": ["exp", "iat", "iss", "aud", "sub", "nonce"],
        "verify_exp": False,
        "verify_iat": False,
        "verify_nbf": False,
        "enforce_minimum_key_length": True,
    }
    try:
        claims = jwt.decode(
            token, key, algorithms=["RS256"], options=options, audience=client_id, issuer=issuers
        )
    except (jwt.PyJWTError, RecursionError) as error:
        raise LoginForged(f"the ID token was refused: {type(error).__name__}") from None
    if not all(type(claims[name]) in (int, float) for name in ("exp", "iat")):
        raise LoginForged("the ID token's times are not numbers")
    if not (now < claims["exp"] + LEEWAY_SECONDS and claims["iat"] <= now + LEEWAY_SECONDS):
        raise LoginForged("the ID token has expired, or is not valid yet")
    several = not isinstance(claims["aud"], str) and len(claims["aud"]) > 1
    if claims.get("azp", None if several else client_id) != client_id:
        raise LoginForged("the ID token was issued to another application")
    if not isinstance(claims["nonce"], str) or not same(claims["nonce"], nonce):
        raise LoginForged("the ID token's nonce belongs to another attempt")
    if not claims["sub"]:
        raise LoginForged("the ID token names nobody")
    return claims


def identity(claims: Mapping[str, Any], issuer: str) -> Identity:
    """Return whom verified claims name; `issuer` is the configured one, which never varies."""
    verified = claims.get("email_verified") is True  # the text "false" is true in Python
    email, name = claims.get("email"), claims.get("name")
    return Identity(
        issuer=issuer,
        subject=claims["sub"],
        email=email if verified and isinstance(email, str) else None,
        email_verified=verified,
        name=name if isinstance(name, str) else None,
    )
